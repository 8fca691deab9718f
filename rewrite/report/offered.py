"""What rules offer in a model, as a table: what could stand where, and what both sides cost."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewrite.driver import Rejection, refused
from rewrite.gain import BYTES_PER_SECOND, FLOPS_PER_SECOND, gain
from rewrite.pipeline import step_text
from rewrite.provenance import place
from rewrite.report.diff import sides
from rewrite.report.findings import Place
from rewrite.report.json import plain
from rewrite.report.refusals import groups, refusals_text
from rewrite.report.text import roofline, scaled, table, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rewrite.crossover import Crossover
    from rewrite.driver import Refused
    from rewrite.flops import Sizes
    from rewrite.gain import Work
    from rewrite.offering import Failure, Offer, Offers

FORMAT = 1
_HEAD = ("rule", "FLOPs", "bytes", "time", "change", "where")


@dataclass(frozen=True)
class Alternative:
    """What a rule could put in the place of some operators; ``print(alternative)`` is the diff.

    Attributes:
        rule: its name.
        place: the node that is replaced, with its module and the user's line.
        before, after: the work of both sides, an estimate; what is computed from weights alone is free,
            for it is folded.
        removed, added: the lines of the program before and after, as they would be.
        draws: on how many draws of values both sides were compared.
        pipeline: what to give as ``pipeline=`` to :func:`rewrite.optimize` to make what the rule offers, as code.
        crossovers: from which sizes on the alternative takes fewer operations, where the rule says so.
    """

    rule: str
    place: Place
    before: Work
    after: Work
    removed: tuple[str, ...]
    added: tuple[str, ...]
    draws: int
    pipeline: str
    crossovers: tuple[Crossover, ...] = ()

    @property
    def change(self) -> float:
        """The part of the estimated time that is added, or, less than zero, saved."""
        return self.after.seconds / self.before.seconds - 1 if self.before.seconds else 0.0

    def __str__(self) -> str:
        spot = self.place
        head = " ".join(filter(None, (f"@@ {self.rule}", f" {spot}", "@@", spot.text)))
        said = {spot.module, spot.source, f"by {self.rule} #0"}
        removed, added = sides(self.removed, self.added, said, algebra=False)
        return "\n".join([head, *(f"- {line}" for line in removed), *(f"+ {line}" for line in added)])


@dataclass(frozen=True, repr=False)
class Offered:
    """What rules offer in a model; ``print(offered)`` shows it, and iterating gives the alternatives.

    Attributes:
        model_name: the class of the model.
        pipeline: the text of what ran before the rules were asked.
        rules: those that were asked, as pipelines write them.
        alternatives: the largest estimated saving first. Several may concern the same operators.
        refused: where a rule began to match and did not, with reason and remedy; :meth:`refusals` is the text.
        rejections: matches of which nothing came, because the rule failed or verification said no.
        notes: what the user should know, a sentence each.
        per_sample: whether work was counted for one sample; else for a call, whose batch is fixed.
    """

    model_name: str
    pipeline: str
    rules: tuple[str, ...]
    alternatives: tuple[Alternative, ...]
    refused: tuple[Refused, ...]
    rejections: tuple[Rejection, ...]
    notes: tuple[str, ...] = ()
    per_sample: bool = True

    def __iter__(self) -> Iterator[Alternative]:
        return iter(self.alternatives)

    def __len__(self) -> int:
        return len(self.alternatives)

    def __getitem__(self, index: int) -> Alternative:
        return self.alternatives[index]

    def __str__(self) -> str:
        paragraphs = [self._head(), self._table(), self._crossovers(), self._failed(), self._refused(),
                      [line for note in self.notes for line in wrapped("note  ", note)], self._how()]  # fmt: skip
        return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def refusals(self, places: int = 3) -> str:
        """Why rules offer nothing where they began to match: a paragraph for each rule and reason, with its places."""
        return refusals_text(self.refused, places)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON; ``format`` numbers the layout, as in :meth:`Report.to_dict`."""
        return {
            "format": FORMAT,
            "model": self.model_name,
            "pipeline": self.pipeline,
            "rules": list(self.rules),
            "alternatives": plain(self.alternatives),
            "refused": plain(self.refused),
            "rejections": plain(self.rejections),
            "roofline": {"flops_per_second": FLOPS_PER_SECOND, "bytes_per_second": BYTES_PER_SECOND},
            "notes": list(self.notes),
            "per_sample": self.per_sample,
        }

    def _head(self) -> list[str]:
        count = len(self.alternatives)
        title = f"{self.model_name}: {count or 'no'} offer{'s' * (count != 1)}"
        asked = f"asked  {', '.join(self.rules) or 'no rule'}"
        return [title, *wrapped("after  ", self.pipeline or "(no pass)"), *wrapped("", asked, 7)]

    def _table(self) -> list[str]:
        rows = [(item.rule, *_both(item), f"{100 * item.change:+.0f} %") for item in self.alternatives]
        where = [_where(item.place) for item in self.alternatives]
        lines = table([_HEAD[:-1], *rows]) if rows else []
        return [f"{line}  {text}" for line, text in zip(lines, [_HEAD[-1], *where], strict=False)]

    def _crossovers(self) -> list[str]:
        """Each once, with the first place that it holds for."""
        first: dict[str, Alternative] = {}
        for item in self.alternatives:
            for crossover in item.crossovers:
                first.setdefault(str(crossover), item)
        return [line for text, item in first.items() for line in wrapped(f"{item.place.node}  ", text, 2)]

    def _failed(self) -> list[str]:
        return [
            line
            for item in self.rejections
            for line in wrapped("  ", f"{item.rule} at '{item.node}' failed: {item.reason}", 4)
        ]

    def _refused(self) -> list[str]:
        if not self.refused:
            return []
        kinds, count = len(groups(self.refused)), len(self.refused)
        many = f"{count} place{'s' * (count != 1)} for {kinds} reason{'s' * (kinds != 1)}"
        return [f"refused in {many}; print(found.refusals()) tells"]

    def _how(self) -> list[str]:
        if not self.alternatives:
            return []
        best = self.alternatives[0]
        return [
            *wrapped("", f"{roofline('Costs', self.per_sample)} Nothing was measured, and nothing was made."),
            f"To make what a rule offers, here {best.rule}, name it:",
            f"  optimize(model, example_inputs, pipeline={best.pipeline})",  # not wrapped, to be copied
            'exclude="path.of.module" leaves a place as it is.',
        ]  # fmt: skip


def _both(item: Alternative) -> tuple[str, str, str]:
    old, new = item.before, item.after
    return (
        f"{scaled(old.flops, '')} -> {scaled(new.flops, '')}",
        f"{scaled(old.bytes, 'B')} -> {scaled(new.bytes, 'B')}",
        f"{_time(old.seconds)} -> {_time(new.seconds)}",
    )


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def _where(spot: Place) -> str:
    where = ", ".join(part for part in (spot.module, spot.source) if part)
    return f"{spot.node} ({where})" if where else spot.node


def offered_of(
    model_name: str, pipeline: str, found: Offers, sizes: Sizes, pipelines: Mapping[str, str],
    notes: Sequence[str] = (),
) -> Offered:  # fmt: skip
    """What was found in a graph, without references to its nodes.

    Args:
        model_name: the class of the model.
        pipeline: what ran before, as text.
        found: what the rules offer.
        sizes: of the graph's values.
        pipelines: by the text of a rule that was asked, what makes its offers, as code.
        notes: what the user should know.
    """
    alternatives = [_alternative(offer, pipelines[step_text(offer.rule)]) for offer in found]
    alternatives.sort(key=lambda item: item.after.seconds - item.before.seconds)
    misses = tuple(refused(miss, miss.matched, gain(miss.matched, sizes)) for miss in found.misses)
    failures = tuple(map(_rejection, found.failures))
    return Offered(model_name, pipeline, tuple(pipelines), tuple(alternatives), misses, failures, tuple(notes),
                   sizes.per_sample)  # fmt: skip


def _alternative(offer: Offer, pipeline: str) -> Alternative:
    anchor = offer.match.anchor
    spot = Place(anchor.name, *place(anchor))
    return Alternative(
        offer.rule.name, spot, offer.before, offer.after, offer.removed, offer.added, offer.verdict.draws, pipeline,
        offer.crossovers,
    )  # fmt: skip


def _rejection(failure: Failure) -> Rejection:
    module, source, text = place(failure.node)
    return Rejection(failure.rule, failure.rule, module, source, failure.reason, None, failure.node.name, text=text)
