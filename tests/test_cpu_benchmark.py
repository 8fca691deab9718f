"""The benchmark of inference on the CPU: rows on a clock that the contenders move, failures, processes, the report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from benchmarks import cpu, harness
from benchmarks.inference import measuring, running
from benchmarks.inference.chart import chart
from benchmarks.inference.contender import Call, Contender
from benchmarks.inference.models import NETWORKS, Network, written
from benchmarks.inference.networks import ConformerConv, by_fft, gated
from benchmarks.inference.ours import Ours
from benchmarks.inference.peers import peers
from benchmarks.inference.ratios import BEST, INDUCTOR_BEST, means, ratios
from benchmarks.inference.report import page
from rewrite import timing

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def moving(clock: list[float], seconds: float, result: Tensor) -> Call:
    def call() -> Tensor:
        clock[0] += seconds
        return result

    return call


def fails() -> Call:
    raise RuntimeError("no such operator\nand more of it")


def test_a_row_has_what_runs_and_says_what_does_not(clock: list[float]) -> None:
    x = torch.ones(3, 2)
    calls = {"eager": moving(clock, 0.004, x), "Inductor": moving(clock, 0.002, x), "slow": moving(clock, 5.0, x)}
    contenders = [Contender(name, False, "eager", lambda c=call: c) for name, call in calls.items()]
    contenders += [
        Contender("ours, Inductor", True, "inductor", lambda: moving(clock, 0.001, x)),
        Contender("OpenVINO", False, "openvino", fails),
        Contender("ONNX Runtime", False, "onnxruntime", lambda: moving(clock, 0.001, x + 0.01)),
        Contender("other", False, "onnxruntime", lambda: moving(clock, 0.001, x[:1])),
    ]
    row = measuring.measure("tiny", contenders, x, x.double(), rounds=6)
    found = row["contenders"]
    assert (row["model"], row["batch"]) == ("tiny", 3)
    assert {name: entry["median"] for name, entry in found.items()} == pytest.approx(
        {"eager": 4, "Inductor": 2, "slow": 5000, "ours, Inductor": 1}
    )
    assert {name: entry["rounds"] for name, entry in found.items()} == {
        "eager": 12, "Inductor": 12, "slow": 1, "ours, Inductor": 12,
    }  # fmt: skip
    assert found["slow"]["spread"] is None
    assert found["eager"]["spread"] == found["eager"]["error"] == 0
    assert row["failures"] == {
        "OpenVINO": "RuntimeError: no such operator and more of it",
        "ONNX Runtime": "ValueError: its result differs from float64 by 0.01 of the largest value",
        "other": "ValueError: its result has the shape (1, 2) and not (3, 2)",
    }
    assert json.loads(json.dumps(row)) == row


def test_where_rounds_are_long_only_the_fastest_runs_twice(clock: list[float]) -> None:
    x = torch.ones(1)
    contenders = [
        Contender(name, False, "eager", lambda s=seconds: moving(clock, s, x))
        for name, seconds in {"slow": 2.0, "fast": 1.0}.items()
    ]
    found = measuring.measure("tiny", contenders, x, x.double(), seconds=10)["contenders"]
    assert {name: entry["rounds"] for name, entry in found.items()} == {"slow": 5, "fast": 5}
    assert found["slow"]["spread"] == 0


def test_a_row_without_anything_that_runs_is_empty() -> None:
    row = measuring.measure("tiny", [Contender("bad", False, "eager", fails)], torch.ones(1), torch.ones(1))
    assert row["contenders"] == {}
    assert list(row["failures"]) == ["bad"]


def test_the_networks_compute_the_same_either_way() -> None:
    torch.manual_seed(0)
    model, x = gated(4, 2, 40).eval(), torch.randn(2, 40, 4)
    with torch.no_grad():
        assert torch.allclose(model.double()(x.double()), by_fft(model)(x.double()), rtol=0, atol=1e-12)
        changed = x.double().clone()
        changed[:, 30:] += 1
        assert torch.allclose(model(changed)[:, :30], model(x.double())[:, :30], rtol=0, atol=1e-12)
        y = torch.randn(2, 40, 8)
        assert ConformerConv(8, 5).eval()(y).shape == y.shape


def test_the_names_are_different_and_of_both_kinds() -> None:
    assert len({network.name for network in NETWORKS}) == len(NETWORKS)
    assert {network.kind for network in NETWORKS[:4]} == {"ordinary", "long"}


def test_the_truth_of_a_network_is_float64() -> None:
    network = written("tiny", lambda: gated(4, 1, 40), (40, 4), by_fft)
    model = network.make()
    x = network.draw(model, 3)
    truth = network.truth(model, x)
    assert truth.dtype is torch.float64
    assert truth.shape == x.shape == (3, 40, 4)
    with torch.no_grad():
        assert torch.allclose(model(x).double(), truth, atol=1e-5)
    assert next(model.parameters()).dtype is torch.float32


class Branches(nn.Module):
    """Two branches that are one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.point = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.wide(x) + self.point(x)).relu()


def test_peers_and_ours_have_their_names_and_forms(tmp_path: Path) -> None:
    x = torch.randn(2, 4, 8, 8)
    model = Branches().eval()
    found = [*peers(model, x, tmp_path, lambda model: model), *Ours(model).contenders(x)]
    assert [entry.name for entry in found] == [
        "eager", "eager channels_last", "Inductor", "ONNX Runtime", "OpenVINO", "Inductor, merged",
        "ONNX Runtime, merged", "OpenVINO, merged", "ours, Inductor", "ours, ONNX Runtime", "ours, OpenVINO",
    ]  # fmt: skip
    assert [entry.ours for entry in found] == [False] * 8 + [True] * 3
    with torch.no_grad():
        assert found[1].prepare()().is_contiguous(memory_format=torch.channels_last)
    assert len(peers(model, x[0], tmp_path)) == 4


def test_a_failed_export_is_tried_once(tmp_path: Path) -> None:
    tried = []

    def make() -> nn.Module:
        tried.append(1)
        raise ValueError("cannot be merged")

    found = peers(Branches(), torch.randn(1, 4, 8, 8), tmp_path, lambda model: make())
    for entry in found[-2:]:
        with pytest.raises(ValueError, match="cannot be merged"):
            entry.prepare()
    assert len(tried) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_tiny_network_goes_all_the_way() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    network = written("tiny", Branches, (4, 12, 12), kind="ordinary")
    whole = Network("tiny", "ordinary", network.make, network.draw, merge=lambda model: model)
    first, second = measuring.rows(whole, (1, 3), seconds=0.1, rounds=5)
    assert (first["batch"], second["batch"]) == (1, 3)
    for row in (first, second):
        assert row["failures"] == {}
        assert set(ratios(row)) == {
            "Inductor", "Inductor as is", "ONNX Runtime", "ONNX Runtime as is", "OpenVINO", "OpenVINO as is", BEST,
            INDUCTOR_BEST,
        }  # fmt: skip
        assert max(entry["error"] for entry in row["contenders"].values()) < 1e-5
    tuned = [second["contenders"][name]["program"]["tuned"] for name in ("ours, Inductor", "ours, ONNX Runtime")]
    assert tuned == ["batch 1", "off"]


def entry(runtime: str, median: float, spread: float | None = 0.01, **more: Any) -> dict[str, Any]:
    return {"runtime": runtime, "ours": False, "variant": "", "median": median, "spread": spread, "error": 0.0, **more}


def recorded() -> dict[str, Any]:
    contenders = {
        "eager": entry("eager", 2000.0, None),
        "Inductor": entry("inductor", 20.0),
        "Inductor, merged": entry("inductor", 12.0, variant="merged"),
        "OpenVINO": entry("openvino", 8.0, 0.02),
        "ours, Inductor": entry("inductor", 10.0, ours=True),
        "ours, OpenVINO": entry("openvino", 4.0, ours=True),
    }
    first = {"model": "mobileone_s1", "batch": 1, "kind": "ordinary", "contenders": contenders, "date": "2026-01-02",
             "failures": {"ONNX Runtime": "RuntimeError: a | b"}, "seconds": 3.0}  # fmt: skip
    slower = {**contenders, "ours, OpenVINO": entry("openvino", 9.0, ours=True)}
    second = {**first, "model": "gated_conv1d_1024", "batch": 4, "kind": "long", "contenders": slower, "failures": {}}
    return {
        "environment": {**harness.environment(), "processor": "A", "threads": 2, "date": "2026-01-02"},
        "rows": [first, second],
        "skipped": [{"model": "sgconv", "batch": 1, "reason": "the limit of 5 s was reached"}],
    }


def test_ratios_are_on_the_same_runtime_and_best_against_best() -> None:
    found = ratios(recorded()["rows"][0])
    assert {title: ratio.value for title, ratio in found.items()} == pytest.approx({
        "Inductor": 1.2, "Inductor as is": 2, "OpenVINO": 2, "OpenVINO as is": 2, BEST: 2, INDUCTOR_BEST: 0.8,
    })  # fmt: skip
    assert found["Inductor"].peer == "Inductor, merged"
    assert found[INDUCTOR_BEST].noise == pytest.approx(0.03)
    assert found[INDUCTOR_BEST].loses
    assert not found[BEST].loses
    assert means(recorded()["rows"])[BEST] == (pytest.approx((2 * 8 / 9) ** 0.5), 2)


def test_the_page_has_times_ratios_means_losses_and_what_is_missing() -> None:
    text = page(recorded())
    for line in (
        "| Ordinary networks, 1 rows | 1.20 | 2.00 |  |  | 2.00 | 2.00 | 2.00 | 0.80 |",
        "| mobileone_s1 | 1 | 1.20 ±2% | 2.00 ±2% |  |  | 2.00 ±3% | 2.00 ±3% | 2.00 ±3% | 0.80 ±3% | OpenVINO |",
        "| mobileone_s1 | 1 | 2000 |  | 20.0 ±1.0% / 12.0 ±1.0% |  | 8.00 ±2.0% | 10.0 ±1.0% |  | 4.00 ±1.0% |",
        "- mobileone_s1, batch 1, Inductor / best peer: 0.80 ±3.0% (ours, Inductor against OpenVINO)",
        "- gated_conv1d_1024, batch 4, best / best: 0.89 ±3.0% (ours, OpenVINO against OpenVINO)",
        r"- mobileone_s1, batch 1, ONNX Runtime: RuntimeError: a \| b",
        "- sgconv, batch 1: the limit of 5 s was reached",
    ):
        assert line in text.splitlines()


def test_the_chart_is_well_formed_and_has_two_bars_a_row() -> None:
    root = ElementTree.fromstring(chart(recorded()))
    space = "{http://www.w3.org/2000/svg}"
    texts = [node.text for node in root.iter(f"{space}text")]
    assert {"mobileone_s1, 1", "gated_conv1d_1024, 4", "2.00", "0.80", "0.89", "1×"} <= set(texts)
    assert len(list(root.iter(f"{space}rect"))) == 2 + 4
    assert "prefers-color-scheme: dark" in str(root.find(f"{space}style").text)  # type: ignore[union-attr]
    for bar in root.iter(f"{space}rect"):
        assert float(bar.get("width", "0")) > 0
        assert float(bar.get("x", "-1")) >= 0


def scripted(body: str) -> running.Command:
    def command(task: running.Task, file: Path) -> Sequence[str]:
        start = f"file, model, batches = {str(file)!r}, {task.model!r}, {task.batches!r}\n"
        return [sys.executable, "-c", start + body]

    return command


WRITE = "import json\nopen(file, 'a').write(json.dumps({'model': model, 'batch': batches[0]}) + chr(10))\n"


def test_rows_of_a_process_that_dies_are_kept() -> None:
    rows: list[Any] = []
    skipped: list[Any] = []
    command = scripted(WRITE + "raise SystemExit('out of memory')")
    running.run([running.Task("a", (1, 4))], 50, command, rows.append, skipped.append)
    assert rows == [{"model": "a", "batch": 1}]
    assert skipped == [{"model": "a", "batch": 4, "reason": "its process ended with 1: out of memory"}]


def test_what_the_limit_leaves_no_time_for_is_skipped() -> None:
    rows: list[Any] = []
    skipped: list[Any] = []
    command = scripted(WRITE + "import time; time.sleep(60)")
    running.run([running.Task("a", (1, 4)), running.Task("b", (1,))], 3, command, rows.append, skipped.append)
    assert rows == [{"model": "a", "batch": 1}]
    assert [(row["model"], row["batch"]) for row in skipped] == [("a", 4), ("b", 1)]
    assert {row["reason"] for row in skipped} == {"the limit of 3 s was reached"}


def test_rows_are_added_to_the_record_and_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    record = {**recorded(), "environment": harness.environment()}
    (tmp_path / "cpu.json").write_text(json.dumps(record))
    kept = cpu.Record.read()
    kept.measured({**record["rows"][0], "model": "sgconv", "batch": 1})
    kept.skip({"model": "mobileone_s1", "batch": 1, "reason": "no time"})
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert [row["model"] for row in found["rows"]] == ["mobileone_s1", "gated_conv1d_1024", "sgconv"]
    assert found["skipped"] == []
    cpu.main(["--render"])
    assert "| sgconv | 1 |" in (tmp_path / "cpu.md").read_text()
    ElementTree.parse(tmp_path / "cpu.svg")


def test_rows_of_another_machine_are_not_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    (tmp_path / "cpu.json").write_text(json.dumps(recorded()))
    with pytest.raises(SystemExit, match="processor"):
        cpu.Record.read()
