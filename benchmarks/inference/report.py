"""What was recorded as a page of Markdown: times, ratios, means, and where the optimized model is slower."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.inference.contender import TITLES
from benchmarks.inference.ratios import INDUCTOR_BEST, means, ratios, titles

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

KINDS = {"ordinary": "Ordinary networks", "long": "Long and large kernels"}

_INTRODUCTION = """# Inference on the CPU

`python -m benchmarks.cpu` measures this; [cpu.json](cpu.json) has every figure, and

![How many times faster, row by row](cpu.svg)

the last two ratios of each row. float32, random weights. All contenders of a row run in turns in one process; each
figure is a median in milliseconds. ± is the A/A spread: how far the medians of two series of the same contender differ.
Every result was compared with eager PyTorch in float64. Two times in one cell are of the model as it is and with its
branches merged by timm (`timm.utils.reparameterize_model`). *Inductor* is `torch.compile` with freezing, images in
channels_last, and has the guards of Dynamo at each call, where the optimized model looks whether its weights have
changed. The runtimes have the same settings for the original as for the optimized model: the model as ONNX, as many
threads as torch, threads that do not spin between calls (ONNX Runtime), float32 and the latency hint (OpenVINO)."""

_RATIOS = """How many times faster the optimized model is; more than 1 is faster, ± the sum of both spreads. On the
same runtime: against the better one of the model as it is and merged; *as is* against the former alone. *best / best*:
the best of the optimized model on three runtimes against the best of all peers; *Inductor / best peer*: the optimized
model on Inductor alone against that."""


def page(record: Mapping[str, Any]) -> str:
    """The whole page."""
    rows = record["rows"]
    parts = [_INTRODUCTION, _environment(record["environment"])]
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    parts += ["## Means", "Geometric means of the ratios below.", _means(rows, kinds)]
    parts += ["## Ratios", _RATIOS]
    for kind in kinds:
        parts += [f"### {KINDS[kind]}", _ratio_table(_of(rows, kind))]
    parts += ["## Where the optimized model is slower", _losses(rows), "## Milliseconds"]
    for kind in kinds:
        parts += [f"### {KINDS[kind]}", _time_table(_of(rows, kind))]
    parts += _missing(record)
    return "\n\n".join(parts) + "\n"


def _of(rows: Iterable[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["kind"] == kind]


def _environment(facts: Mapping[str, Any]) -> str:
    packages = ", ".join(
        f"{name} {facts[name]}" for name in ("torch", "timm", "onnxruntime", "openvino", "python") if facts.get(name)
    )
    return f"{facts['processor']}, {facts['threads']} threads, {facts['date']}; {packages}."


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *lines))


def _means(rows: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> str:
    lines = []
    for name, some in ((KINDS[kind], _of(rows, kind)) for kind in kinds):
        found = means(some)
        lines.append([f"{name}, {len(some)} rows", *(_mean(found.get(title), len(some)) for title in titles())])
    return _table(["", *titles()], lines)


def _mean(found: tuple[float, int] | None, rows: int) -> str:
    """A mean, with the number of its rows where some lack the ratio."""
    if found is None:
        return ""
    return f"{found[0]:.2f}" + (f" ({found[1]} rows)" if found[1] != rows else "")


def _ratio_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        found = ratios(row)
        last = found.get(INDUCTOR_BEST)
        cells = [f"{found[title].value:.2f} ±{found[title].noise:.0%}" if title in found else "" for title in titles()]
        lines.append([row["model"], str(row["batch"]), *cells, last.peer if last else ""])
    return _table(["model", "batch", *titles(), "best peer"], lines)


def _time_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [(False, "eager", "eager")]
    columns += [(ours, key, f"{'ours, ' if ours else ''}{title}")
                for ours in (False, True) for key, title in TITLES.items() if key != "eager"]  # fmt: skip
    columns.insert(1, (False, "eager channels_last", "eager channels_last"))
    lines = []
    for row in rows:
        cells = []
        for ours, key, title in columns:
            names = [title] if "eager" in key or ours else [title, f"{title}, merged"]
            cells.append(" / ".join(_time(row["contenders"][name]) for name in names if name in row["contenders"]))
        lines.append([row["model"], str(row["batch"]), *cells])
    return _table(["model", "batch", *(title for _, _, title in columns)], lines)


def _time(entry: Mapping[str, Any]) -> str:
    median = entry["median"]
    digits = f"{median:.0f}" if median >= 1000 else f"{median:#.3g}".rstrip(".")
    return digits if entry["spread"] is None else f"{digits} ±{entry['spread']:.1%}"


def _losses(rows: Iterable[Mapping[str, Any]]) -> str:
    """The ratios under 1 by more than the noise."""
    lines = [
        f"- {row['model']}, batch {row['batch']}, {title}: {ratio.value:.2f} ±{ratio.noise:.1%} "
        f"({ratio.ours} against {ratio.peer})"
        for row in rows for title, ratio in ratios(row).items() if ratio.loses
    ]  # fmt: skip
    return "\n".join(lines) or "Nowhere beyond the noise."


def _missing(record: Mapping[str, Any]) -> list[str]:
    """What failed and what was skipped."""
    failed = [f"- {row['model']}, batch {row['batch']}, {name}: {reason.replace('|', chr(92) + '|')}"
              for row in record["rows"] for name, reason in row["failures"].items()]  # fmt: skip
    skipped = [f"- {row['model']}, batch {row['batch']}: {row['reason']}" for row in record.get("skipped", ())]
    parts = ["## What failed and is left out", "\n".join(failed)] if failed else []
    return [*parts, "## What was not measured", "\n".join(skipped)] if skipped else parts
