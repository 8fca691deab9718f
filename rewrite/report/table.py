"""A report as a table in plain text."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rewrite.report.refusals import groups
from rewrite.report.text import scaled, table, wrapped
from rewrite.symbolic import is_per_sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewrite.driver import Refused, Rejection, StepRecord
    from rewrite.report.data import Report
    from rewrite.select.selected import Selected
    from rewrite.verdict import Verdict

_HEAD = ("pass", "found", "applied", "refused", "rejected", "draws", "time")
_NAME = 46
_LONG = 200


@dataclass
class _Row:
    """A pass, or one of its rules; ``remarks`` stand below it."""

    name: str
    applied: int = 0
    refused: list[Refused] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    draws: str = ""
    time: str = ""

    @property
    def found(self) -> int:
        return self.applied + len(self.refused) + len(self.rejections)

    def cells(self) -> tuple[str, ...]:
        counts = (self.found, self.applied, len(self.refused), len(self.rejections))
        return (self.name, *map(str, counts), self.draws, self.time)

    def remarks(self) -> list[str]:
        lines = []
        if self.refused:
            group = groups(self.refused)[0]
            lines.append(f"refused {_part(len(group), len(self.refused))}: {group[0].why}")
        if self.rejections:
            first = self.rejections[0]
            where = ", ".join(part for part in (first.source, first.module) if part)
            place = f" ({where})" if where else ""
            lines.append(f"rejected {_part(1, len(self.rejections))}: {first.reason}{place}")
        return lines


def _part(some: int, total: int) -> str:
    return str(total) if some == total else f"{total}, {'one' if some == 1 else some} of them"


def report_text(report: Report) -> str:
    """The whole report: passes, counts, verification, times, notes.

    ``found`` is how many places a rule looked at: where it was applied, where it was refused after it had begun to
    match (but not where that would gain nothing), and where verification rejected the result or the rule itself failed.
    """
    made = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    paragraphs = [
        [f"{report.model_name}{f' ({made})' if made else ''}", *wrapped("pipeline  ", report.pipeline)],
        _passes(report.records) if report.records else [],
        _choices(report.choices),
        _costs(report),
        [*wrapped("verification  ", _verification(report.model_verdict)), *wrapped("time  ", _split(report))],
        [line for note in report.notes for line in wrapped("note  ", note)],
    ]
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)


def _choices(choices: Sequence[Selected]) -> list[str]:
    """What was chosen by time, equal decisions together; what stays as it is in one line."""
    found: dict[tuple[str, tuple[tuple[str, float], ...]], int] = {}
    left = 0
    for choice in choices:
        if not choice.chosen:
            left += 1
            continue
        times = tuple((name or "as it is", ms) for name, ms in choice.ms.items())
        found[choice.chosen, times] = found.get((choice.chosen, times), 0) + 1
    lines = []
    for (chosen, times), number in found.items():
        said = ", ".join(f"{name} {ms:.3g}" for name, ms in times)
        lines += wrapped("  ", f"{number} x {chosen}: {said} ms")
    if left:
        lines.append(f"  {left} operators with alternatives stay as they are")
    return ["chosen by the time of each alternative", *lines] if found else []


def _passes(records: Sequence[StepRecord]) -> list[str]:
    rows: list[tuple[tuple[str, ...], list[str], str]] = [(_HEAD, [], "")]
    records = [_worth(record) for record in records]
    idle = [record for record in records if not rule_names(record)]
    for record in records:
        if record in idle:
            continue
        step, *rules = _rows(record)
        rows.append((step.cells(), [] if rules else step.remarks(), "  "))
        rows += [(rule.cells(), rule.remarks(), "    ") for rule in rules]
    lines: list[str] = []
    for text, (_, remarks, indent) in zip(table([cells for cells, _, _ in rows]), rows, strict=True):
        lines.append(text)
        lines += [line for remark in remarks for line in wrapped(indent, remark)]
    if idle:
        names = ", ".join(dict.fromkeys(_short(record.step) for record in idle))
        spent = _seconds(sum(record.seconds for record in idle))
        lines += wrapped("found nothing  ", f"{names} ({spent})")
    return lines if len(rows) > 1 else lines[1:]


def rule_names(record: StepRecord) -> list[str]:
    """The rules that a step has something to say of, each once: those that rewrote first, in that order."""
    names = [commit.rule for commit in record.commits]
    names += [refused.rule for refused in record.refused]
    return list(dict.fromkeys(names + [rejection.rule for rejection in record.rejections]))


def _worth(record: StepRecord) -> StepRecord:
    """A record without the refusals whose gain is estimated as nothing, which explanations list apart."""
    return replace(record, refused=[refused for refused in record.refused if refused.gain.seconds])


def _rows(record: StepRecord) -> list[_Row]:
    """The row of a step, then those of its rules unless the step is its only rule."""
    step = _Row(_short(record.step), len(record.commits), record.refused, record.rejections, str(record.draws),
                _seconds(record.seconds))  # fmt: skip
    names = rule_names(record)
    if names in ([], [record.name]):
        return [step]
    return [step] + [
        _Row(
            f"  {_short(name)}",
            sum(commit.rule == name for commit in record.commits),
            [refused for refused in record.refused if refused.rule == name],
            [rejection for rejection in record.rejections if rejection.rule == name],
        )
        for name in names
    ]


def _short(name: str) -> str:
    return textwrap.shorten(name, _NAME, placeholder="...") if " " in name else name[:_NAME]


def _costs(report: Report) -> list[str]:
    unit_of_work = "sample" if report.per_sample else "call"
    rows = [("", "before", "after", "change")]
    for label, name, unit in (
        ("weight-bearing operators", "weight_bearing", ""),
        ("operators", "operators", ""),
        ("parameters", "parameters", None),
        ("weights", "weight_bytes", "B"),
        (f"FLOPs per {unit_of_work}", "flops", None),
        (f"activations written per {unit_of_work}", "activation_bytes", "B"),
    ):
        old, new = getattr(report.before, name), getattr(report.after, name)
        texts = [str(number) if unit == "" else scaled(number, unit or "") for number in (old, new)]
        rows.append((label, *texts, f"{100 * (new - old) / old:+.0f} %" if old else ""))  # type: ignore[arg-type]
    return [*table(rows), *_formulas(report)]


def _formulas(report: Report) -> list[str]:
    """The counts that no number for one sample says: with a part for each call, or with other sizes that are free."""
    if report.costs is None:
        return []
    lines, per = [], "call of N samples" if report.per_sample else "call"
    for label, name in (("FLOPs", "flops"), ("activations written", "activation_bytes")):
        counts = [getattr(side, name) for side in (report.costs.before, report.costs.after)]
        if all(is_per_sample(number) if report.per_sample else isinstance(number, int) for number in counts):
            continue
        texts = [text if len(text) <= _LONG else "a long formula (report.costs)" for text in map(str, counts)]
        lines += wrapped(f"{label} per {per}  ", " -> ".join(texts), 2)
    return lines


def _verification(verdict: Verdict | None) -> str:
    if verdict is None:
        return "the whole model was not compared with the source"
    spent = f"{verdict.draws} draw{'s' * (verdict.draws != 1)}, {_seconds(verdict.seconds)}"
    if not verdict.accepted:
        return f"the whole model does NOT agree with the source: {verdict.reason} ({spent})"
    text = f"the whole model agrees with the source; its error is {verdict.error:.2g} of what is allowed"
    if verdict.distances is not None:
        new, old = verdict.distances
        text += f"; in norm it is {new:.1e} from float64, and the source {old:.1e}"
    return f"{text} ({spent})"


def _split(report: Report) -> str:
    if not report.time:
        return ""
    parts = ", ".join(f"{phase} {_seconds(seconds)}" for phase, seconds in report.time.items())
    return f"{_seconds(sum(report.time.values()))}: {parts}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"
