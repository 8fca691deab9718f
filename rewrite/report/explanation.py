"""An explanation: where rules match in a model, where they began to and did not, and what would make them."""

from __future__ import annotations

import html
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rewrite.gain import BYTES_PER_SECOND, FLOPS_PER_SECOND
from rewrite.numerics import note
from rewrite.pipeline import ChoicePass, rules_of, step_text
from rewrite.report.explained import explanation_text
from rewrite.report.findings import findings_of
from rewrite.report.json import plain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from rewrite.driver import StepRecord
    from rewrite.gain import Work
    from rewrite.pipeline import Step
    from rewrite.report.findings import Finding
    from rewrite.rule import Rule

FORMAT = 1


@dataclass(frozen=True)
class Coverage:
    """How far a rule came in a model.

    Attributes:
        rule, step: names of the rule and of the pass that it ran in.
        matched: in how many places it rewrote something.
        blocked: in how many it began to match and did not, or was rejected by verification.
        starts: what a match begins at, in words, or ''.
    """

    rule: str
    step: str
    matched: int
    blocked: int
    starts: str = ""

    @property
    def places(self) -> int:
        """In how many places it began to match."""
        return self.matched + self.blocked


@dataclass(frozen=True, repr=False)
class Explanation:
    """Why rules did not match; ``print(explanation)`` shows it, and iterating gives its findings.

    Attributes:
        model_name: the class of the model.
        pipeline: the text of what was run.
        coverage: each rule that ran, in order.
        findings: what blocks rewrites, the largest estimated gain first.
        whole: the work of the model in one call, of which gains are a share.
        notes: what the user should know, a sentence each.
        per_sample: whether work was counted for one sample; else for a call, whose batch is fixed.
    """

    model_name: str
    pipeline: str
    coverage: tuple[Coverage, ...]
    findings: tuple[Finding, ...]
    whole: Work
    notes: tuple[str, ...] = ()
    per_sample: bool = True

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __str__(self) -> str:
        return explanation_text(self)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON; ``format`` numbers the layout, as in :meth:`Report.to_dict`."""
        return {
            "format": FORMAT,
            "model": self.model_name,
            "pipeline": self.pipeline,
            "coverage": plain(self.coverage),
            "findings": plain(self.findings),
            "whole": plain(self.whole),
            "roofline": {"flops_per_second": FLOPS_PER_SECOND, "bytes_per_second": BYTES_PER_SECOND},
            "notes": list(self.notes),
            "per_sample": self.per_sample,
        }


def explanation_of(
    model_name: str, steps: Sequence[Step], records: Sequence[StepRecord], whole: Work, notes: Sequence[str] = (),
    exclude: Collection[str] = (), per_sample: bool = True, forbidden: Sequence[str] = (),
) -> Explanation:  # fmt: skip
    """The explanation of a run. What a rule said in its last step counts: what was in its way before is gone.

    Args:
        model_name: the class of the model.
        steps: what ran.
        records: what each of the steps did.
        whole: the work of the model as captured.
        notes: what the user should know.
        exclude: names of steps and rules that did not run.
        per_sample: whether work was counted for one sample; else for a call.
        forbidden: names of rules that did not run because of the numerics.
    """
    exclude = {*exclude, *forbidden}
    ran = [
        (rule, record)
        for step, record in zip(steps, records, strict=True)
        for rule in _asked(step)
        if step.name not in exclude and rule.name not in exclude
    ]
    last = {rule.name: record for rule, record in ran}
    rules = {rule.name: rule for rule, _ in ran}
    coverage = tuple(_coverage(rule, last[rule.name], records) for rule in rules.values())
    final = [record_of(record, {name for name in rules if last[name] is record}) for record in records]
    text = ", ".join(map(step_text, steps))
    out = dict.fromkeys(rule.name for step in steps for rule in _asked(step) if rule.name not in rules)
    named = [name for name in out if name not in forbidden]
    left = [*([f"{', '.join(named)} did not run: exclude names it"] if named else []), *note(forbidden)]
    return Explanation(model_name, text, coverage, findings_of(final, whole), whole, (*notes, *left), per_sample)


def _asked(step: Step) -> tuple[Rule, ...]:
    """The rules of a step that are asked wherever they may match; choices are asked where somebody measures."""
    return () if isinstance(step, ChoicePass) else rules_of(step)


def record_of(record: StepRecord, names: set[str]) -> StepRecord:
    """The record of some rules of a step."""
    return replace(
        record,
        commits=[commit for commit in record.commits if commit.rule in names],
        refused=[refused for refused in record.refused if refused.rule in names],
        rejections=[rejection for rejection in record.rejections if rejection.rule in names],
    )


def _coverage(rule: Rule, last: StepRecord, records: Iterable[StepRecord]) -> Coverage:
    matched = sum(commit.rule == rule.name for record in records for commit in record.commits)
    said = record_of(last, {rule.name})
    starts = rule.starts or (str(rule.pattern) if rule.pattern is not None else "")
    return Coverage(rule.name, last.name, matched, len(said.refused) + len(said.rejections), starts)
