"""All CPU measurements, one after the other."""

from benchmarks import cpu, phases, second_process, staleness

phases.main()
staleness.main()
second_process.main([])
cpu.main([])
