"""What stands in the way of rewrites, one finding for each cause."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rewrite.driver import Rejection
from rewrite.report.refusals import without_places

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rewrite.driver import Refused, StepRecord
    from rewrite.gain import Work

_TARGET = re.compile(r" = ([\w.]+)\(")


@dataclass(frozen=True)
class Place:
    """Where a rule looked.

    Attributes:
        node: the name of the node that it looked at.
        module: the path of the module that the node belongs to, '' for the root.
        source: the user's line as ``file:line``, or ''.
        text: that line, or ''.
    """

    node: str
    module: str
    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.module} ({self.source})" if self.module and self.source else (
            self.module or self.source or f"'{self.node}'"
        )  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A rewrite that began to match and was not made.

    Attributes:
        rule: the rule; where several stop at one cause, the one that came furthest.
        step: the pass that it ran in.
        also: the others.
        places: where; findings that differ in names and sizes alone are one with several places, the first of which
            the rest of the fields describe.
        reason: why not, in one sentence.
        remedy: the smallest change that would make it match; '' where verification rejected the rewrite.
        culprit: the line of the program that is in the way, or ''.
        culprit_text: the user's line that it comes from, or ''.
        matched: the lines of the program that had matched.
        gain: what the rewrite would save in all places together, an estimate; see :mod:`rewrite.gain`.
        share: its part of the model's nominal time.
        rejected: the rule matched, and verification did not accept what it made.
    """

    rule: str
    step: str
    also: tuple[str, ...]
    places: tuple[Place, ...]
    reason: str
    remedy: str
    culprit: str
    culprit_text: str
    matched: tuple[str, ...]
    gain: Work
    share: float
    rejected: bool = False

    @property
    def module(self) -> str:
        """The module of the first place."""
        return self.places[0].module

    @property
    def source(self) -> str:
        """The user's line of the first place, as ``file:line``."""
        return self.places[0].source

    @property
    def text(self) -> str:
        """The user's line of the first place."""
        return self.places[0].text


def findings_of(records: Iterable[StepRecord], whole: Work) -> tuple[Finding, ...]:
    """One finding for each cause, what differs in names and sizes alone together, the largest estimated gain first.

    Args:
        records: what the passes refused and rejected.
        whole: the work of the whole model, of which gains are a share.
    """
    causes = _by_cause([finding for record in records for finding in _findings(record, whole)])
    return tuple(sorted(_collapsed(causes, whole), key=lambda finding: -finding.gain.seconds))


def _findings(record: StepRecord, whole: Work) -> list[Finding]:
    def finding(item: Refused | Rejection, remedy: str, culprit: str, text: str) -> Finding:
        place = Place(item.node, item.module, item.source, item.text)
        return Finding(item.rule, record.name, (), (place,), item.reason, remedy, culprit, text, item.matched,
                       item.gain, _share(item.gain, whole), isinstance(item, Rejection))  # fmt: skip

    found = [finding(item, item.remedy, item.culprit_line, item.culprit_text) for item in record.refused]
    # a rejected rewrite is the rule's defect or the limit of what can be checked: no change of the model is to be made
    return found + [finding(item, "", "", "") for item in record.rejections]


def _share(gain: Work, whole: Work) -> float:
    return gain.seconds / whole.seconds if whole.seconds else 0.0


def _by_cause(findings: Sequence[Finding]) -> list[Finding]:
    """The nearest finding of each cause.

    Findings of one pass at one node have one cause, and so have those of several rules with one reason and culprit, and
    those for one reason where what has matched is part of what has matched for another: the norms of branches that
    would merge.
    """
    kept: dict[int, Finding] = {}
    for i in sorted(range(len(findings)), key=lambda i: -len(findings[i].matched)):
        finding = findings[i]
        near = next((j for j, other in kept.items() if _same_cause(finding, other)), None)
        if near is None:
            kept[i] = finding
        elif finding.rule not in (kept[near].rule, *kept[near].also):
            kept[near] = replace(kept[near], also=(*kept[near].also, finding.rule))
    return [kept[i] for i in sorted(kept)]


def _same_cause(finding: Finding, kept: Finding) -> bool:
    if finding.step == kept.step and finding.places[0].node == kept.places[0].node:
        return True
    if without_places(finding.reason) != without_places(kept.reason):
        return False
    same = bool(finding.culprit) and finding.culprit == kept.culprit and finding.rule not in (kept.rule, *kept.also)
    return same or set(finding.matched) < set(kept.matched)


def _collapsed(findings: Iterable[Finding], whole: Work) -> list[Finding]:
    """Findings for one reason at operators of the same kinds as one, described by that of the largest gain."""
    families: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        kinds = tuple(target for line in finding.matched for target in _TARGET.findall(line.partition("  # ")[0]))
        reason, remedy = without_places(finding.reason), without_places(finding.remedy)
        families.setdefault((finding.rule, finding.step, reason, remedy, kinds, finding.rejected), []).append(finding)
    return [_united(family, whole) for family in families.values()]


def _united(family: Sequence[Finding], whole: Work) -> Finding:
    first = max(family, key=lambda finding: finding.gain.seconds)
    others = [finding for finding in family if finding is not first]
    gain = first.gain
    for finding in others:
        gain += finding.gain
    return replace(
        first, gain=gain, share=_share(gain, whole), places=tuple(f.places[0] for f in (first, *others)),
        also=tuple(dict.fromkeys(rule for finding in family for rule in finding.also)),
    )  # fmt: skip
