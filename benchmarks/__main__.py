"""All CPU measurements, one after the other."""

from benchmarks import cpu, phases, staleness

phases.main()
staleness.main()
cpu.main([])
