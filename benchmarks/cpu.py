"""Inference on the CPU: the optimized model against eager, frozen Inductor, ONNX Runtime and OpenVINO.

    python -m benchmarks.cpu [--seconds S]      all rows, in a new record
    python -m benchmarks.cpu --missing          those that are not recorded, added to the record
    python -m benchmarks.cpu NAME ... [--batch N ...] [--add]
                                                some rows; printed, and with --add put into the record
    python -m benchmarks.cpu --render           the pages from the record

The record is ``results/cpu.json``, written anew with each row; ``results/cpu.md`` and ``results/cpu.svg`` are made of
it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks import harness
from benchmarks.inference.chart import chart
from benchmarks.inference.models import BY_NAME, NETWORKS
from benchmarks.inference.ratios import BEST, INDUCTOR_BEST, means, ratios
from benchmarks.inference.report import page
from benchmarks.inference.running import Task, command, run

BATCHES = (1, 4)

_SAME = ("processor", "cores", "threads", "torch", "timm", "onnxruntime", "openvino")


def _key(row: dict[str, Any]) -> tuple[int, int]:
    names = list(BY_NAME)
    return names.index(row["model"]) if row["model"] in names else len(names), row["batch"]


@dataclass
class Record:
    """The rows that are there and those that are not.

    Attributes:
        rows: as they were measured.
        skipped: model, batch and reason.
        kept: whether they are written to disk.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    kept: bool = True
    _started: float = field(default_factory=time.perf_counter)

    @classmethod
    def read(cls, kept: bool = True) -> Record:
        """What is on disk."""
        path = harness.RESULTS / "cpu.json"
        found = json.loads(path.read_text()) if path.exists() else {"environment": {}, "rows": []}
        rows = [row for row in found["rows"] if "contenders" in row]
        here = harness.environment()
        other = [name for name in _SAME if rows and found["environment"].get(name) != here[name]]
        if other:
            raise SystemExit(f"the record is of another {', '.join(other)}; measure all rows anew, without --add")
        return cls(rows, found.get("skipped", []), kept)

    def measured(self, row: dict[str, Any]) -> None:
        """Take a new row in."""
        self._forget(row)
        self.rows = sorted([*self.rows, row], key=_key)
        found = ratios(row)
        said = ", ".join(f"{title} {found[title].value:.2f}" for title in (BEST, INDUCTOR_BEST) if title in found)
        failed = f"; left out: {', '.join(row['failures'])}" if row["failures"] else ""
        self._say(row, f"{said} ({row['seconds']:.0f} s){failed}")

    def skip(self, row: dict[str, Any]) -> None:
        """Note a row that is not there; one that was measured before stays."""
        if all((row["model"], row["batch"]) != (other["model"], other["batch"]) for other in self.rows):
            self._forget(row)
            self.skipped = sorted([*self.skipped, row], key=_key)
        self._say(row, f"skipped: {row['reason']}")

    def _forget(self, row: dict[str, Any]) -> None:
        def others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [one for one in rows if (one["model"], one["batch"]) != (row["model"], row["batch"])]

        self.rows, self.skipped = others(self.rows), others(self.skipped)

    def _say(self, row: dict[str, Any], what: str) -> None:
        elapsed = time.perf_counter() - self._started
        print(f"[{elapsed:5.0f} s] {row['model']}, batch {row['batch']}: {what}", flush=True)
        if self.kept:
            harness.save("cpu", self.rows, skipped=self.skipped)


def render() -> None:
    """Write the page and the chart of the record."""
    record = json.loads((harness.RESULTS / "cpu.json").read_text())
    if any("contenders" not in row for row in record["rows"]):
        raise SystemExit("the record is of an older form; measure anew with python -m benchmarks.cpu")
    (harness.RESULTS / "cpu.md").write_text(page(record))
    (harness.RESULTS / "cpu.svg").write_text(chart(record))
    print(harness.RESULTS / "cpu.md")


def _arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description="Inference on the CPU.")
    parser.add_argument("names", nargs="*", help=f"models, by default all: {', '.join(BY_NAME)}")
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES), help="batches (1 and 4)")
    parser.add_argument("--add", action="store_true", help="put the rows into the record")
    parser.add_argument("--missing", action="store_true", help="only rows that are not recorded; implies --add")
    parser.add_argument("--seconds", type=float, default=1740.0, help="after which rows are skipped (%(default)s)")
    parser.add_argument("--tuned", choices=("auto", "each"), default="auto",
                        help="each: tune for every runtime and batch, not only where that is quick")  # fmt: skip
    parser.add_argument("--render", action="store_true", help="measure nothing; write the pages from the record")
    found = parser.parse_args(given)
    unknown = [name for name in found.names if name not in BY_NAME]
    if unknown:
        parser.error(f"no model of this benchmark: {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    return found


def main(given: list[str]) -> None:
    """Measure, print, save."""
    options = _arguments(given)
    if options.render:
        render()
        return
    add = options.add or options.missing
    some = bool(options.names) or options.batch != list(BATCHES)
    record = Record.read() if add else Record(kept=not some)
    there = {(row["model"], row["batch"]) for row in record.rows} if options.missing else set()
    tasks = []
    for name in options.names or [network.name for network in NETWORKS]:
        batches = tuple(batch for batch in options.batch if (name, batch) not in there)
        tasks += [Task(name, batches)] if batches else []
    run(tasks, options.seconds, command(options.tuned), record.measured, record.skip)
    if record.kept and record.rows:
        render()
    elif not record.kept:
        print(page({"environment": harness.environment(), "rows": record.rows, "skipped": record.skipped}))
    if record.kept and record.skipped:
        print(f"{len(record.skipped)} rows were not measured: python -m benchmarks.cpu --missing")
    for title, (value, count) in means(record.rows).items():
        print(f"{title}: {value:.2f} (geometric mean of {count})")


if __name__ == "__main__":
    main(sys.argv[1:])
