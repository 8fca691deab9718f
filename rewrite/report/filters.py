"""The quality of a network's filters as a table, the worst layers first."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewrite.filter_quality import MARKS, NEAR_ZERO
from rewrite.report.json import plain
from rewrite.report.text import scaled, table, wrapped

if TYPE_CHECKING:
    from rewrite.filter_quality import FilterQuality

FORMAT = 1
_HEAD = ("layer", "kernel", "weights", "sparsity", "entropy", "dense", "variety", "random", "orthogonal")
_LEGEND = {
    "sparsity": f"the share of filters whose weights are all below {100 * NEAR_ZERO:g} % of the layer's largest one",
    "entropy": "of the filters' variance over its directions, log10",
    "dense": "the same of the filters that are not near zero",
    "variety": "the entropy as a share of the largest possible",
    "random": "the entropy as a part of that of random filters, where they are 3x3",
    "orthogonal": "one less the mean abs(cos) between the weights of two output channels",
}
_SHOWN = 40
"""So many layers that are not degenerate are shown."""


@dataclass(frozen=True, repr=False)
class FilterReport:
    """How good the filters of a network are; ``print(report)`` shows a table.

    Attributes:
        model_name: the class of the model.
        before: the convolutions of the model as it is, those with the most marks first, the larger ones before.
        after: those of the program after ``pipeline``, where batch norms are in the kernels, branches merged; None
            where nothing was rewritten, for want of an example.
        pipeline: the text of what was run for ``after``, or ''.
        notes: what the user should know, a sentence each.
    """

    model_name: str
    before: tuple[FilterQuality, ...]
    after: tuple[FilterQuality, ...] | None = None
    pipeline: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        paragraphs = [
            [_head(f"{self.model_name}: ", self.before)],
            _table(self.before),
            *self._rewritten(),
            self._meanings(),
            [line for note in self.notes for line in wrapped("note  ", note)],
        ]
        return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON; ``format`` numbers the layout, as in :meth:`Report.to_dict`."""
        return {
            "format": FORMAT,
            "model": self.model_name,
            "before": plain(self.before),
            "after": None if self.after is None else plain(self.after),
            "pipeline": self.pipeline,
            "notes": list(self.notes),
        }

    def _rewritten(self) -> list[list[str]]:
        if self.after is None:
            return []
        ran = wrapped("after  ", self.pipeline or "(no pass)")
        if self.after == self.before:
            return [[*ran, "the same"]]
        return [[*ran, _head("", self.after)], _table(self.after)]

    def _meanings(self) -> list[str]:
        marks = {mark for layer in (*self.before, *(self.after or ())) for mark in layer.marks}
        meanings = {**_LEGEND, **{mark: text for mark, text in MARKS.items() if mark in marks}}
        width = max(map(len, meanings))
        return [line for name, text in meanings.items() for line in wrapped(f"{name:<{width}}  ", text)]


def _head(start: str, layers: tuple[FilterQuality, ...]) -> str:
    marked = sum(bool(layer.marks) for layer in layers)
    kinds = [f"{sum(mark in layer.marks for layer in layers)} {mark}" for mark in MARKS]
    some = ", ".join(kind for kind in kinds if not kind.startswith("0 "))
    count = f"{len(layers)} convolution{'s' * (len(layers) != 1)}"
    return f"{start}{count}, {marked or 'none'} degenerate{f' ({some})' if some else ''}"


def _table(layers: tuple[FilterQuality, ...]) -> list[str]:
    if not layers:
        return []
    shown = layers[: sum(bool(layer.marks) for layer in layers) + _SHOWN]
    lines = table([_HEAD, *map(_row, shown)])
    marks = ["", *("  " + ", ".join(layer.marks) for layer in shown)]
    hidden = len(layers) - len(shown)
    more = [f"... and {hidden} smaller one{'s' * (hidden > 1)}, not degenerate"] if hidden else []
    return [*(f"{line}{text}".rstrip() for line, text in zip(lines, marks, strict=True)), *more]


def _row(layer: FilterQuality) -> tuple[str, ...]:
    kernel = "x".join(map(str, layer.shape)) + (f"/{layer.groups}" if layer.groups > 1 else "")
    numbers = (layer.sparsity, layer.entropy, layer.dense_entropy, layer.variety, layer.randomness, layer.orthogonality)
    return layer.name or "(model)", kernel, scaled(layer.parameters, ""), *map(_number, numbers)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
