"""The ledger of an approximation: for each site what was predicted, what was measured, and what was done."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from rewrite.gain import total
from rewrite.report.text import scaled, table, wrapped

if TYPE_CHECKING:
    from rewrite.gain import Work
    from rewrite.graph import Graph

_COLUMNS = ("site", "module", "rule", "option", "error", "predicted", "output", "predicted", "so far", "FLOPs", "bytes")

State = Literal["taken", "rolled back", "left", "undone"]


@dataclass(frozen=True)
class Entry:
    """One site. Errors are relative: roots of the energy of what is wrong over that of what it is wrong about.

    Attributes:
        site: the name of its result in the program; what :meth:`ApproximatedModule.undo` takes.
        rule: what was applied, or would have been.
        module: the path of the module that it comes from.
        source: the user's line, as ``file:line``, or ''.
        option: what was taken, in words; '' where nothing was offered.
        state: ``"taken"``; ``"rolled back"``: chosen, and taken back once it was measured; ``"left"``: not chosen;
            ``"undone"``: by the user.
        predicted: the error of the site's output that the fit predicts.
        measured: that on the held-out batches, from the original inputs; None where it was not measured.
        predicted_drift: the error of the program's outputs by this site alone: what is predicted at the site times how
            much of an error there reaches the outputs, which is measured once for each site.
        measured_drift: that on the held-out batches; None where it was not measured.
        drift: the error of the outputs with this site and all that were taken before it in the program.
        before, after: the work of one sample, time by a nominal roofline.
        reason: why it was not taken, or ''.
    """

    site: str
    rule: str
    module: str
    source: str
    option: str
    state: State
    predicted: float
    measured: float | None
    predicted_drift: float
    measured_drift: float | None
    drift: float | None
    before: Work
    after: Work
    reason: str = ""

    @property
    def saved(self) -> float:
        """Seconds of one sample by the nominal roofline."""
        return self.before.seconds - self.after.seconds


@dataclass(frozen=True)
class Ledger:
    """All sites of an approximation, in the order of the program.

    Attributes:
        model_name: the class of the model.
        rules: what was asked for, as text.
        entries: one for each site.
        refused: where a rule began to match and did not, as text.
        drift: the error of the program's outputs with all that was taken, on the held-out batches; None once sites were
            undone, since when nothing has been measured.
        before, after: the work of one sample, time by a nominal roofline.
        parameters: numbers of weights before and after.
        fitted, held_out: how many batches weights were fitted to and errors were measured on.
        seconds: how long it took, by phase.
    """

    model_name: str
    rules: str
    entries: tuple[Entry, ...]
    refused: tuple[str, ...]
    drift: float | None
    before: Work
    after: Work
    parameters: tuple[int, int]
    fitted: int
    held_out: int
    seconds: dict[str, float]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def taken(self) -> tuple[Entry, ...]:
        """The sites that are approximated."""
        return tuple(entry for entry in self.entries if entry.state == "taken")

    def without(self, sites: Collection[str], graph: Graph) -> Ledger:
        """The ledger once some sites are undone, which leaves a program."""
        entries = [replace(entry, state="undone") if entry.state == "taken" and entry.site in sites else entry
                   for entry in self.entries]  # fmt: skip
        numbers = self.parameters[0], parameters(graph)
        return replace(self, entries=tuple(entries), drift=None, after=total(graph), parameters=numbers)

    def to_dict(self) -> dict[str, Any]:
        """The same as data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        head = f"{self.model_name}: {len(self.taken)} of {len(self.entries)} sites approximated by {self.rules}"
        rows: list[tuple[str, ...]] = [_COLUMNS]
        rows += [_row(entry) for entry in self.entries if entry.state in ("taken", "undone")]
        lines = [*wrapped("", head, 2)]
        lines += ["", *table(rows)] if len(rows) > 1 else []
        lines += ["", *self._others(), *self._summary()]
        return "\n".join(lines)

    def _summary(self) -> list[str]:
        old, new = self.before, self.after
        data = f"{self.held_out} held-out batches ({self.fitted} fitted to)"
        error = "not measured since sites were undone" if self.drift is None else f"{self.drift:.2g} on {data}"
        lines = wrapped("output error  ", error)
        for label, a, b, unit in (("FLOPs per sample", old.flops, new.flops, ""), ("bytes", old.bytes, new.bytes, "B"),
                                  ("parameters", *self.parameters, "")):  # fmt: skip
            lines += wrapped(f"{label}  ", f"{scaled(a, unit)} -> {scaled(b, unit)} ({_change(a, b)})")
        lines += wrapped("nominal time  ", f"{_change(old.seconds, new.seconds)}, by a roofline; nothing was timed")
        spent = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in self.seconds.items())
        return [*lines, *wrapped("took  ", spent)]

    def _others(self) -> list[str]:
        lines: list[str] = []
        for state in ("rolled back", "left"):
            reasons: dict[str, list[str]] = {}
            for entry in self.entries:
                if entry.state == state:
                    reasons.setdefault(f"{entry.rule}: {entry.reason}", []).append(entry.module)
            for reason, modules in reasons.items():
                some = ", ".join(modules[:3]) + (f" and {len(modules) - 3} more" if len(modules) > 3 else "")
                lines += wrapped(f"{state}  ", f"{reason} ({some})")
        return lines


def _row(entry: Entry) -> tuple[str, ...]:
    name = entry.site if entry.state == "taken" else f"{entry.site} (undone)"
    errors = entry.measured, entry.predicted, entry.measured_drift, entry.predicted_drift, entry.drift
    changes = (_change(getattr(entry.before, each), getattr(entry.after, each)) for each in ("flops", "bytes"))
    said = ("" if error is None else f"{error:.2g}" for error in errors)
    return name, entry.module, entry.rule, entry.option, *said, *changes


def _change(old: float, new: float) -> str:
    return f"{100 * (new - old) / old:+.0f} %" if old else ""


def parameters(graph: Graph) -> int:
    """The elements of a program's parameters."""
    return sum(tensor.numel() for tensor in graph.weights.values() if isinstance(tensor, nn.Parameter))
