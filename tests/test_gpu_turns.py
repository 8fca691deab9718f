"""What the benchmark of a GPU stands on: time limits, programs that take turns, kernels compiled ahead."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, harness
from benchmarks.kernels import ahead, gpu_cases, gpu_models
from benchmarks.kernels.bound import Setting
from benchmarks.kernels.budget import Budget, TimeUp, limited
from benchmarks.kernels.layers import Layer, image
from benchmarks.kernels.programs import Program
from benchmarks.kernels.turns import Turns
from codegen.triton.device import REFERENCE, Device
from tests.gpu.kernel_worker import Checker


def test_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    budget = Budget(100)
    now[0] = 40.0
    assert (budget.spent, budget.left) == (30, 70)
    assert budget.until(50).left == 20
    assert budget.until(1000).left == 70
    now[0] = 120.0
    assert budget.left == -10


def test_work_that_takes_too_long_ends() -> None:
    def work() -> None:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                pytest.fail("it is caught by what goes on with the next contender")

    with limited(0.05), pytest.raises(TimeUp, match="longer than 0 s"):
        work()
    with limited(0.05):
        pass
    time.sleep(0.1)


PROGRAM = """
import sys, time
from benchmarks.kernels.programs import Teller
teller = Teller()
print("noise")
for i in range(2):
    teller.tell(ready=True)
    assert teller.wait() == "go"
    begin = time.time()
    time.sleep(0.1)
    teller.tell(row={"name": sys.argv[1], "begin": begin, "end": time.time()})
if sys.argv[1] == "fails":
    teller.tell(failed="no memory")
"""


def test_programs_take_turns() -> None:
    rows: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    run = [sys.executable, "-c", PROGRAM]
    commands = {name: [*run, name] for name in ("a", "b", "fails")}
    commands["dies"] = [sys.executable, "-c", "import sys; print('@@ {', flush=True); sys.exit('out of luck')"]
    commands["killed"] = [sys.executable, "-c", "import os; os.abort()"]
    turns = Turns(commands, 3, rows.append, failures.__setitem__)
    turns.start()
    turns.pause()
    turns.run(Budget(60))
    assert turns.close() == []
    assert sorted(row["name"] for row in rows) == ["a", "a", "b", "b", "fails", "fails"]
    spans = sorted((row["begin"], row["end"]) for row in rows)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    assert failures["fails"] == "no memory"
    assert failures["dies"] == "it ended with status 1: out of luck"
    assert "status -6" in failures["killed"]


def test_programs_that_do_not_end_are_ended() -> None:
    commands = {name: [sys.executable, "-c", "import time; time.sleep(600)"] for name in ("a", "b")}
    turns = Turns(commands, 1, lambda row: None, lambda name, reason: None)
    started = time.perf_counter()
    turns.run(Budget(0.5))
    assert turns.close() == ["a", "b"]
    assert time.perf_counter() - started < 30


LAUNCH = """
import json, sys, torch
from pathlib import Path
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from benchmarks.kernels import ahead_worker

driver.set_active(ahead_worker.Absent(GPUTarget("cuda", 90, 32)))
source = ahead_worker.source_module().Source(**json.loads(Path(sys.argv[1]).read_text())["source"])
tensors = [torch.empty(16) for kind in source.signature.values() if kind == "*fp32"]
source.kernel().run(*tensors, 2, grid=(1, 1, 1), warmup=True, **source.constants, num_warps=source.warps,
                    num_stages=source.stages)
"""


def test_kernels_are_compiled_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch with tensors finds what was compiled without any."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    plan = Setting(image(6, (7, 9), (3, 1), bias=False, padded=False), torch.float32, True, 2, "cpu").plan()
    kernel = plan.candidates[0].emit().launchable
    with ahead.Ahead(1) as compiling:
        compiling.add(kernel)
        compiling.add(kernel)
        assert len(compiling.asked) == 1
        assert compiling.wait(120) == 0
    made = sorted((tmp_path / "cache").rglob("*"))
    assert any(path.suffix == ".cubin" for path in made)
    (tmp_path / "kernel.json").write_text(json.dumps({"source": dataclasses.asdict(kernel.source)}))
    surroundings = {name: said for name, said in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", LAUNCH, str(tmp_path / "kernel.json")], capture_output=True, text=True,
                          env={**surroundings, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted((tmp_path / "cache").rglob("*")) == made


CASES = """
import os, sys
from benchmarks.kernels.programs import Teller
teller = Teller()
first, seconds = teller.wait().split()
teller.tell(rate=4e12)
for number in range(int(first), 6):
    teller.tell(begin=number)
    if number == 1:
        print("an illegal access", file=sys.stderr, flush=True)
        os._exit(3)
    if number == 2:
        teller.tell(failed="no kernel")
    elif number == 4 and sys.argv[1] == "late":
        sys.exit(0)
    else:
        teller.tell(rows=[{"case": f"case {number}", "failures": {}, "candidates": [], "group": "g"}])
teller.tell(begin=6)
"""


@pytest.mark.parametrize("late", [False, True])
def test_a_case_that_kills_the_program_is_skipped(
    late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    record = gpu.Record("gpu_kernels")
    command = [sys.executable, "-c", CASES, "late" if late else "all"]
    measured = gpu.Cases(record, [f"name {number}" for number in range(6)], command)
    measured.start()
    measured.run(Budget(60))
    assert [row["case"] for row in record.rows] == [f"case {number}" for number in ((0, 3) if late else (0, 3, 4, 5))]
    assert record.failures == {"name 1": "it ended with status 3: an illegal access", "name 2": "no kernel"}
    assert record.skipped == (["name 4", "name 5"] if late else [])
    assert json.loads((tmp_path / "gpu_kernels.json").read_text())["copy_bytes_per_second"] == 4e12
    assert "4.00 TB/s" in capsys.readouterr().out


def test_a_program_that_never_begins_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    record = gpu.Record("gpu_kernels")
    gpu.Cases(record, ["a", "b"], [sys.executable, "-c", "raise SystemExit('no driver')"]).run(Budget(60))
    assert record.failures == {"all cases": "it ended with status 1: no driver"}
    assert record.skipped == ["a", "b"]


def test_a_program_that_says_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu, "_STARTS", 0.3)
    record = gpu.Record("gpu_kernels")
    gpu.Cases(record, ["a"], [sys.executable, "-c", "import time; time.sleep(600)"]).run(Budget(60))
    assert record.failures == {"all cases": "nothing was heard for 0 s"}


def test_both_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a GPU that is not there, with programs that measure nothing."""
    layer = image(6, (7, 9), 3)
    assert layer.captured  # before torch is told of a GPU
    for name, fake in {"is_available": lambda: True, "current_device": lambda: 0,
                       "get_device_name": lambda on=None: "NVIDIA H200",
                       "get_device_capability": lambda on=None: (9, 0)}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(gpu.device, "of", lambda on: REFERENCE)
    monkeypatch.setattr(gpu, "cases", lambda: [gpu_cases.Case(f"name {i}", "g", layer, 2) for i in range(6)])
    monkeypatch.setattr(gpu, "Ahead", lambda processes, target: ahead.Ahead(0, target))
    monkeypatch.setattr(gpu, "Program", lambda name, command: Program(name, [sys.executable, "-c", CASES, "all"]))
    monkeypatch.setattr(gpu_models, "MODELS", ("net",))
    row = {"model": "net b2", "ms": {}, "noise": 0.0}
    said = f"from benchmarks.kernels.programs import Teller; Teller().tell(row={row!r})"
    command = [sys.executable, "-c", said]
    monkeypatch.setattr(
        gpu, "networks", lambda record, lock, at_once: Turns({"net": command}, 1, record.add, record.fail)
    )
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    assert gpu.main([]) == 1
    kept = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("gpu_kernels", "gpu")}
    assert kept["gpu"]["rows"] == [row]
    assert [each["case"] for each in kept["gpu_kernels"]["rows"]] == ["case 0", "case 3", "case 4", "case 5"]
    assert set(kept["gpu_kernels"]["failures"]) == {"name 1 b2", "name 2 b2"}
    assert kept["gpu_kernels"]["kernels"] == 8
    assert kept["gpu_kernels"]["rates"] == "H200"
    printed = capsys.readouterr().out
    assert "net b2" in printed
    assert "failed: name 1 b2: it ended with status 3" in printed
    (tmp_path / "gpu.json").unlink()
    assert gpu.main(["--part", "networks"]) == 0


def checked(device: str, rates: Device) -> list[tuple[str, Setting]]:
    """Settings for a worker: one that is right, one that has no kernel, and one that ends the process."""

    class Fatal(Setting):
        def plan(self) -> Any:
            os._exit(9)

    layer = image(6, (7, 9), (3, 1))
    broken = Layer(lambda: torch.nn.Conv2d(3, 3, 1), ("chw",), {"c": 3, "h": 4, "w": 4})
    return [
        ("right", Setting(layer, torch.float32, True, 2, device, rates)),
        ("none", Setting(broken, torch.float32, True, 2, device, rates)),
        ("fatal", Fatal(layer, torch.float32, True, 2, device, rates)),
    ]


def test_a_worker_checks_kernels_and_may_die() -> None:
    checker = Checker("tests.test_gpu_turns:checked", "cpu")
    try:
        assert checker.check(0)
        with pytest.raises(AssertionError, match="there is no kernel for the layer"):
            checker.check(1)
        assert checker.check(0)
        with pytest.raises(AssertionError, match="it ended with status 9"):
            checker.check(2)
        assert checker.check(0)
    finally:
        checker.close()
