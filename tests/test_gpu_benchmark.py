"""The benchmark of a GPU and what its tests share, without one: layers, contenders, times, turns, tables, budgets."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import gpu, harness
from benchmarks.kernels import ahead, bound, comparing, gpu_cases, gpu_kernels, gpu_models, measuring, peers, summary
from benchmarks.kernels.budget import Budget
from benchmarks.kernels.layers import Layer, image, inception, mixed, mixer, separable, sequence
from benchmarks.kernels.measuring import Times
from rewrite.ops import value
from tests.gpu.kernel_cases import CASES, check

LAYERS: dict[str, Layer] = {
    "norm": image(6, (7, 9), 3, behind=("norm", "gelu")),
    "means": image(6, (9, 8), 3, 2, behind=("silu",), squeeze=True),
    "residual": image(6, (7, 9), 3, before="relu6", behind=("gelu", "scale", "residual")),
    "unpadded": image(6, (7, 9), (3, 1), bias=False, padded=False),
    "causal": sequence(6, 19, 4, behind="silu", gated=True),
    "sequence": sequence(6, 19, 5, causal=False, last=False),
    "inception": mixer(inception(16), (7, 9)),
    "mixed": mixer(mixed(9, 3, 5), (7, 9), "silu"),
    "separable": separable(6, 4, 9, 3),
}


class Told:
    """A clock that knows how long calls take: a call's ``seconds``, and a flush."""

    flush = 1e-3

    def __init__(self) -> None:
        self.replays = 0
        self._called: list[Any] = []

    def begin(self) -> None:
        pass

    def record(self, call: Callable[[], Any], repeats: int, cold: bool) -> Callable[[], Any]:
        """The seconds of calls that do not tell them are ten microseconds."""
        if call not in self._called:
            self._called.append(call)
            call()

        def replay() -> None:
            self.replays += 1

        taken = getattr(call, "seconds", 1e-5 * (call is not measuring.nothing)) * (1.5 if cold else 1.0) + (
            self.flush if cold else 0.0
        )
        replay.seconds = repeats * taken  # type: ignore[attr-defined]
        return replay

    def seconds(self, replay: Callable[[], Any]) -> float:
        replay()
        return float(replay.seconds)  # type: ignore[attr-defined]


def taking(seconds: float, result: Any = None) -> Callable[[], Any]:
    def call() -> Any:
        return result

    call.seconds = seconds  # type: ignore[attr-defined]
    return call


def failing() -> Any:
    raise ValueError("not\nthis one")


# -- layers and cases -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_recorded_at_other_sizes_than_it_was_captured_at(name: str, last: bool) -> None:
    layer = LAYERS[name]
    module = layer.flat(torch.bfloat16, last, 3)
    inputs = [torch.empty(shape, device="meta") for shape in layer.shapes(3)]
    wanted = layer.module().to("meta")(*inputs)
    given = [value(node).shape for node in module.graph.output_node().args[0]]  # type: ignore[union-attr, arg-type]
    assert given == [x.shape for x in comparing.flat(wanted)]
    with torch.no_grad():
        found = module(*layer.draw(torch.bfloat16, last, 3, "cpu"))
    assert [x.shape for x in found] == given


def test_weights_and_inputs_are_the_same_each_time() -> None:
    layer = LAYERS["norm"]
    for one, other in zip(layer.module().parameters(), layer.module().parameters(), strict=True):
        assert torch.equal(one, other)
        assert (one != 0).all()
    assert torch.equal(*(layer.draw(torch.float32, True, 2, "cpu")[0] for _ in range(2)))
    first, second = (layer.draw(torch.float32, last, 2, "cpu")[0] for last in (True, False))
    assert torch.equal(first, second)
    assert first.stride()[1] == 1 != second.stride()[1]


# bfloat16 products of matrices are none in the interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["means", "residual", "causal", "inception", "separable"])
def test_kernels_of_layers_agree_with_float64(name: str, dtype: torch.dtype) -> None:
    assert check(bound.Setting(LAYERS[name], dtype, False, 2, "cpu"), candidates=1)


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = bound.Setting(LAYERS["residual"], torch.float32, True, 1, "cpu")
    given = bound.interpreted
    monkeypatch.setattr(bound, "interpreted", lambda kernel, by: lambda xs: [y * 1.01 for y in given(kernel, by)(xs)])
    with pytest.raises(AssertionError, match="are allowed"):
        check(setting, candidates=1)


def test_what_a_plan_knows() -> None:
    planned = bound.Setting(LAYERS["separable"], torch.float32, True, 2).layer
    plan = bound.Setting(planned, torch.float32, True, 2, "cpu").plan()
    assert not plan.is_whole
    assert plan.operations == 2 * 2 * 6 * 81 * 9
    assert plan.bytes == 4 * (2 * 2 * 6 * 81 + 6 * 9)
    assert plan.seconds(0) > 2e-6
    assert bound.Setting(LAYERS["causal"], torch.float32, True, 2, "cpu").plan().is_whole
    with pytest.raises(ValueError, match="no kernel"):
        bound.Setting(Layer(lambda: nn.Conv2d(3, 3, 1), ("chw",), {"c": 3, "h": 4, "w": 4}),
                      torch.float32, True, 2, "cpu").plan()  # fmt: skip


def test_the_cases_have_names_of_their_own_and_the_important_ones_come_first() -> None:
    found = gpu_cases.cases()
    titles = [case.title(last) for case in found for last in case.layouts]
    assert len(set(titles)) == len(titles)
    sizes = {(k, size, batch) for k in gpu_cases.KERNELS for size in gpu_cases.STAGES for batch in gpu_cases.BATCHES}
    plain = [case for case in found if case.name.startswith("dw") and "+" not in case.name and case.layer.stride == 1]
    assert {f"dw{k} {size[0]}x{size[1]} b{batch}" for k, size, batch in sizes} <= {
        f"{case.name} b{case.batch}" for case in plain
    }
    first = [case.group for case in found[:30]]
    assert {"dw7", "fused", "mixer", "large", "bands", "KernelBench"} <= set(first)
    shapes = {case.name: case.layer.shapes(case.batch) for case in found if case.group == "KernelBench"}
    assert shapes["KernelBench 82"] == [(16, 64, 512, 512)]
    assert shapes["KernelBench 84"] == [(64, 128, 256, 512)]
    assert all(len(case.layer.shapes(2)) >= 1 for case in CASES.values())


# -- times ------------------------------------------------------------------------------------------------------------


def test_what_is_written_between_calls_is_subtracted() -> None:
    calls = {"fast": taking(10e-6), "slow": taking(40e-6), "broken": failing}
    found = measuring.measure(calls, Told(), rounds=5)
    assert found.times["fast"].warm == pytest.approx(10e-6)
    assert found.times["fast"].cold == pytest.approx(15e-6)
    assert found.times["slow"].cold == pytest.approx(60e-6)
    assert found.failures == {"broken": "ValueError: not this one"}
    assert found.noise == pytest.approx(0)


def test_what_is_hopeless_is_timed_in_the_first_rounds_alone() -> None:
    both, fast = Told(), Told()
    measuring.measure({"fast": taking(1e-3), "slow": taking(1.0)}, both, rounds=10)
    measuring.measure({"fast": taking(1e-3)}, fast, rounds=10)
    assert both.replays - fast.replays == 2 + 3 * 2
    assert not measuring.measure({"broken": failing}, Told()).times


def test_rounds_end_with_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1000))
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(next(now)))
    clock = Told()
    measuring.measure({"fast": taking(1e-3)}, clock, seconds=0.5, rounds=100)
    assert clock.replays == 2 + 3 * (1 + 2 * 2)


def test_the_rate_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "measure", lambda calls, clock, rounds: measuring.Measurement(
        {"copy": Times(1e-3, 1e-3)}, {}, 0.0))  # fmt: skip
    assert measuring.copy_rate(Told(), "cpu", 4096) == pytest.approx(8192e3)


def test_graphs_and_events(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            happened.append("event")

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return 2.5

    class Graph:
        def replay(self) -> None:
            happened.append("replay")

    class Stream:
        def wait_stream(self, other: Stream) -> None:
            pass

    @contextmanager
    def recording(graph: Graph, pool: Any) -> Any:
        happened.append(f"begin {pool}")
        yield
        happened.append("end")

    @contextmanager
    def on(stream: Stream) -> Any:
        yield

    given = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, device, **k: given(4, **k))
    for name, fake in {"Event": Event, "CUDAGraph": Graph, "Stream": Stream, "current_stream": Stream, "stream": on,
                       "graph": recording, "graph_pool_handle": lambda: "pool", "synchronize": lambda: None,
                       "_sleep": lambda cycles: happened.append("sleep")}.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    clock = measuring.Graphs()
    replay = clock.record(lambda: happened.append("call"), 3, True)
    assert happened == ["call", "call", "begin pool", "call", "call", "call", "end"]
    happened.clear()
    assert clock.seconds(replay) == pytest.approx(2.5e-3)
    assert happened == ["sleep", "event", "replay", "event"]


# -- contenders and rows ----------------------------------------------------------------------------------------------


def test_settings_of_cudnn_are_put_back() -> None:
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.enabled
    for choice in peers.choices():
        with peers.choosing(choice):
            assert torch.backends.cudnn.benchmark
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.enabled) == before


def test_where_cudnn_has_no_choice_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_has_choice", lambda: False)
    assert peers.choices() == ("auto", "native")
    with peers.choosing("native"):
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled


def test_the_operators_in_both_layouts() -> None:
    layer = LAYERS["norm"]
    calls = peers.eager(layer.module(), layer.draw(torch.float32, True, 2, "cpu"))
    assert {name.split(",")[0] for name in calls} == {"first", "last"}
    results = [call() for call in calls.values()]
    assert all(torch.allclose(result, results[0], atol=1e-5) for result in results)
    layer = LAYERS["causal"]
    assert set(peers.eager(layer.module(), layer.draw(torch.float32, True, 2, "cpu"))) == set(peers.choices())


def machine() -> comparing.Machine:
    return comparing.Machine(Told(), 1e12, "cpu", candidates=2)


def test_a_case_is_compared() -> None:
    case = gpu_cases.Case("tiny", "dw3", LAYERS["unpadded"], 2, torch.float32)
    rows = comparing.compare(case, machine())
    assert [row["case"] for row in rows] == ["tiny b2 last", "tiny b2 first"]
    for row in rows:
        assert json.loads(json.dumps(row)) == row
        assert row["whole"]
        assert row["failures"] == {}
        assert [each["number"] for each in row["candidates"]] == [0, 1]
        assert all(each["error"] < 1e-4 for each in row["candidates"])
        assert row["ours"]["number"] in (0, 1)
        assert row["best"] in row["peers"]
    assert "no kernel runs" not in summary.table(rows)


def test_kernels_that_do_not_run_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    given = comparing.bound

    def broken(setting: bound.Setting, number: int) -> bound.Bound:
        if number == 0:
            raise RuntimeError("ptxas died")
        return given(setting, number)

    monkeypatch.setattr(comparing, "bound", broken)
    case = gpu_cases.Case("tiny", "dw3", LAYERS["means"], 2, torch.float32, (True,))
    (row,) = comparing.compare(case, machine())
    assert list(row["failures"].values()) == ["RuntimeError: ptxas died"]
    assert row["ours"]["number"] == 1
    monkeypatch.setattr(comparing, "bound", lambda setting, number: broken(setting, 0))
    (row,) = comparing.compare(case, machine())
    assert "ours" not in row
    assert "no kernel runs: RuntimeError: ptxas died" in summary.table([row])


def test_a_kernel_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "distance", lambda found, wanted: math.nan)
    case = gpu_cases.Case("tiny", "dw3", LAYERS["means"], 2, torch.float32, (True,))
    (row,) = comparing.compare(case, machine())
    assert "ours" not in row
    assert all("off" in reason for reason in row["failures"].values())


def test_the_arithmetic_of_a_row() -> None:
    case = gpu_cases.Case("tiny", "dw3", LAYERS["norm"], 2, torch.float32, (True,))
    plan = case.setting(True, "cpu").plan()
    name = case.title(True)
    ours = comparing._Ours(plan, errors={f"{name} #0": 1e-6, f"{name} #1": 1e-6})
    times = {
        f"{name} #0": Times(20e-6, 30e-6), f"{name} #1": Times(10e-6, 25e-6), "copy": Times(4e-6, 5e-6),
        "first, auto": Times(15e-6, 75e-6), "last, auto": Times(40e-6, 50e-6), "compile": Times(30e-6, 60e-6),
    }  # fmt: skip
    rate = plan.bytes / 2e-6
    found = measuring.Measurement(times, {}, 0.01)
    row = comparing.row(case, True, ours, found, dataclasses.replace(machine(), rate=rate))
    assert row["ours"]["number"] == 1
    assert row["ours"]["us"] == {"warm": 10, "cold": 25}
    assert (row["best"], row["best_ratio"]) == ("first, auto", {"warm": 1.5, "cold": 2.0})
    assert (row["best_same_layout"], row["best_same_layout_ratio"]) == ("compile", {"warm": 3.0, "cold": 2.0})
    assert row["share_of_copy"] == {"warm": 0.2, "cold": 0.08}
    assert row["copy_us"] == {"warm": 4, "cold": 5}
    line = summary.table([row]).splitlines()[-1]
    assert all(each in line for each in ("tiny b2 last", "10.0", "25.0", "first, auto", "1.50", "2.00", "3.00", "8%"))


# -- summaries --------------------------------------------------------------------------------------------------------


def test_ranks() -> None:
    assert summary.ranks([3, 1, 2, 1]) == [4, 1.5, 3, 1.5]
    assert summary.rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert summary.rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert summary.rank_correlation([1, 2, 3, 4, 5], [1, 3, 2, 5, 4]) == pytest.approx(0.8)
    assert math.isnan(summary.rank_correlation([1, 1], [1, 2]))


def row_of(name: str, group: str, times: list[float], predicted: list[float], ratio: float) -> dict[str, Any]:
    candidates = [
        {"number": i, "schedule": "s", "us": {"warm": t, "cold": t}, "predicted_us": p}
        for i, (t, p) in enumerate(zip(times, predicted, strict=True))
    ]
    ratios = {"warm": ratio, "cold": ratio}
    return {
        "case": name, "group": group, "whole": True, "candidates": candidates, "failures": {},
        "ours": min(candidates, key=lambda each: each["us"]["warm"]), "best": "x", "peers": {"x": ratios},
        "best_ratio": ratios, "share_of_copy": ratios,
    }  # fmt: skip


def test_a_short_table_has_each_case_in_its_faster_layout() -> None:
    rows = [row_of(f"{name} b2{layout}", "g", [taken], [1], 2)
            for name, layout, taken in (("a", " last", 3.0), ("a", " first", 2.0), ("b", "", 5.0), ("c", " last", 1.0))
            ]  # fmt: skip
    lines = summary.short(rows, 2).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["a b2 first", "b b2", "and 1 more cases"]
    assert all(len(line) <= 128 for line in lines)
    assert len(summary.short(rows).splitlines()) == 4


def test_predictions() -> None:
    rows = [row_of("a", "g", [10, 20, 40], [10, 10, 20], 2), row_of("b", "h", [4, 2, 3], [1, 2, 3], 8)]
    found = summary.predictions(rows)
    assert found["kernels"] == 6
    assert found["bias"] == pytest.approx(math.log(2) / 2)
    assert found["first_is_best"] == 0.5
    assert found["rank_across"] == pytest.approx(1)
    assert found["rank_within"] == pytest.approx((math.sqrt(0.75) - 0.5) / 2, abs=1e-6)
    assert summary.groups(rows)["all"] == {"rows": 2, "best warm": 4, "best cold": 4}
    assert summary.groups(rows)["h"]["best warm"] == 8
    assert "predictions" in summary.closing(rows)
    assert json.loads(json.dumps(summary.predictions([])))["log_error"] == -1


# -- networks ---------------------------------------------------------------------------------------------------------


def test_networks_are_called_and_recorded() -> None:
    subject = gpu_models.Subject(nn.Conv2d(3, 4, 3).eval(), lambda batch: torch.ones(batch, 3, 8, 8))
    assert list(subject.calls(2)) == ["optimized", "eager last", "eager first", "compile", "reduce-overhead"]
    calls = {"optimized": taking(0, torch.ones(2)), "eager last": taking(0, torch.ones(2)), "compile": failing,
             "reduce-overhead": taking(0)}  # fmt: skip
    found, failures = gpu_models.prepared(calls, lambda call: call)
    assert set(found) == {"optimized", "optimized, graph", "eager last", "eager last, graph", "reduce-overhead"}
    assert failures == {"compile": "ValueError: not this one"}

    def unrecorded(call: Any) -> Any:
        raise RuntimeError("it synchronizes")

    _, failures = gpu_models.prepared({"optimized": taking(0)}, unrecorded)
    assert failures == {"optimized, graph": "RuntimeError: it synchronizes"}
    row = gpu_models.measured("tiny", 2, found, failures, torch.ones(2), seconds=0.1)
    assert row["model"] == "tiny b2"
    assert row["error"] == 0
    assert "eager last" in gpu_models.table([row])


def test_what_takes_minutes_comes_last() -> None:
    commands = gpu.networks(gpu.Record("gpu"), "lock", 2).commands
    names = list(commands)
    assert names[: len(gpu_models.MODELS)] == list(gpu_models.MODELS)
    assert names[-1].endswith("max-autotune")
    assert commands["resnet18"][-3:] == ["32", "1", "128"]
    assert commands[names[-1]][-2:] == ["32", "max-autotune"]


def test_ratios_of_networks() -> None:
    medians = {"optimized": 1.0, "optimized, graph": 0.5, "eager last": 3.0, "compile": 2.0, "reduce-overhead": 0.8,
               "compile, graph": 0.75}  # fmt: skip
    assert gpu_models.ratios(medians) == {
        "plain": {"best": "compile", "ratio": 2.0}, "graph": {"best": "compile, graph", "ratio": 1.5},
    }  # fmt: skip
    assert gpu_models.ratios({"optimized": 1.0}) == {}


# -- the whole --------------------------------------------------------------------------------------------------------


def test_there_is_nothing_to_measure_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().out


def test_one_case_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    broken = Layer(lambda: nn.Conv2d(3, 3, 1), ("chw",), {"c": 3, "h": 4, "w": 4})
    names = {"broken": broken, "tiny": LAYERS["unpadded"], "late": LAYERS["norm"]}
    chosen = [gpu_cases.Case(name, "g", layer, 2, torch.float32, (True,)) for name, layer in names.items()]
    record = gpu.Record("gpu_kernels")
    told = gpu.Cases(record, [case.name for case in chosen], [])
    budget = Budget(1000)
    given = gpu_kernels.compare

    def compare(case: gpu_cases.Case, *args: Any, **more: Any) -> Any:
        if case.name == "tiny":
            budget.seconds = 0
        return given(case, *args, **more)

    monkeypatch.setattr(gpu_kernels, "compare", compare)
    monkeypatch.setattr(gpu_kernels, "limited", lambda seconds: nullcontext())
    assert gpu_kernels.measure(chosen, machine(), budget, lambda **said: told._take(said)) == 0
    told.run(Budget(-1))
    kept = json.loads((tmp_path / "gpu_kernels.json").read_text())
    assert [row["case"] for row in kept["rows"]] == ["tiny b2 last"]
    assert "no kernel for the layer" in kept["failures"]["broken"]
    assert kept["skipped"] == ["late"]
    assert kept["predictions"]["kernels"] == 2
    gpu._print(record, gpu.Record("gpu"))
    said = capsys.readouterr().out
    assert "left out for want of time: late" in said
    assert "failed: broken" in said
    assert said.rstrip().splitlines()[-1].startswith("predictions")


def test_kernels_are_planned_ahead(capsys: pytest.CaptureFixture[str]) -> None:
    broken = Layer(lambda: nn.Conv2d(3, 3, 1), ("chw",), {"c": 3, "h": 4, "w": 4})
    chosen = [gpu_cases.Case(name, "g", layer, 2) for name, layer in (("broken", broken), ("tiny", LAYERS["norm"]))]
    with ahead.Ahead(0) as compiling:
        gpu.plan_ahead(compiling, chosen, bound.REFERENCE, 2, Budget(100))
        assert len(compiling.asked) == 4
        gpu.plan_ahead(compiling, chosen, bound.REFERENCE, 4, Budget(-1))
        assert len(compiling.asked) == 4
        assert compiling.wait(1) == 4
    assert "broken b2 last: not compiled ahead" in capsys.readouterr().out


def test_programs_do_not_measure_kernels_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[Any] = []
    monkeypatch.setattr(gpu_models.fcntl, "flock", lambda file, how: locked.append(how))
    monkeypatch.setattr(gpu_models.Target, "measure", lambda self, what, inner=None: inner() if inner else what)
    gpu_models.share_measurements(str(tmp_path / "lock"))
    target = gpu_models.Target()
    assert target.measure("outer", lambda: target.measure("inner")) == "inner"
    assert len(locked) == 1
    assert target.measure("again") == "again"
    assert len(locked) == 2
