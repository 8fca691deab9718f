"""The report of one run: everything that was done, refused and measured."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from rewrite.cost import Costs, Counts
from rewrite.driver import Commit, Rejection, StepRecord
from rewrite.errors import InputError
from rewrite.names import nearest
from rewrite.pipeline import known_names
from rewrite.report.diff import Diff, diff_of
from rewrite.report.json import report_data, report_fields
from rewrite.report.refusals import Refusals, Rejections
from rewrite.report.script import reproduction
from rewrite.report.table import report_text, rule_names
from rewrite.select.selected import Selected
from rewrite.verdict import Verdict

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from rewrite.driver import Refused


@dataclass(frozen=True, repr=False)
class Report:
    """What a run did to a model; ``print(report)`` shows it as a table.

    Attributes:
        model_name: the class of the model.
        pipeline: the text of the pipeline, which parses back to it.
        records: what each step did, in order.
        before, after: the counts of the program as captured and as rewritten.
        model_verdict: the comparison of the whole rewritten model with the source, None where it was not made.
        time: wall time in seconds by phase (capture, passes, verification, lowering, ...), without overlap.
        notes: what the user should know, a sentence each.
        versions: the versions that the run depended on, by name.
        per_sample: whether arithmetic and activations were counted for one sample; else for a whole call.
        costs: the counts as formulas of the sizes that are symbolic, of a whole call; None where they were not made.
        choices: what was decided where an operator had alternatives that were timed; nothing, with a note, where the
            program with what was chosen did not pay as a whole.
    """

    model_name: str
    pipeline: str
    records: Sequence[StepRecord]
    before: Counts
    after: Counts
    model_verdict: Verdict | None = None
    time: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    per_sample: bool = True
    costs: Costs | None = None
    choices: tuple[Selected, ...] = ()

    def refusals(self, rule: str | None = None) -> Refusals:
        """The places where a rule (or any rule of a step) began to match and did not, with reason and remedy.

        A list, printed in groups, as :func:`rewrite.report.refusals_text` has them.

        Raises:
            InputError: there is no rule or step of that name.
        """
        self._require(rule, (refused for record in self.records for refused in record.refused))
        return Refusals(
            refused
            for record in self.records
            for refused in record.refused
            if rule in (None, refused.rule, record.name)
        )

    def diff(self, rule: str | None = None, collapse: bool = False, algebra: bool = True) -> Diff:
        """What a rule or a step (or, by default, the run) changed, as a unified diff of the program.

        Args:
            rule: the name of a rule or a step.
            collapse: show rewrites that differ in names alone once, with the number of the others.
            algebra: show what computes new weights from old ones. Else lines of it are counted, and rewrites of nothing
                else are left out.

        Raises:
            InputError: there is no rule or step of that name.
        """
        commits = [commit for record in self.records for commit in record.commits]
        self._require(rule, commits)
        chosen = [commit for commit in commits if rule in (None, commit.rule, commit.step)]
        return replace(diff_of(chosen, collapse, algebra), none=self._nothing(rule, bool(chosen)))

    def _nothing(self, rule: str | None, made: bool) -> str:
        """What an empty diff prints."""
        if made:
            return "(no rewrites but of algebra on weights)"
        if rule is None:
            return "(no rewrites)"
        if rule in self._ran:
            return f"({rule} made no rewrites in this run)"
        return f"({rule} did not run: the pipeline is {self.pipeline})"

    @property
    def _ran(self) -> set[str]:
        return {name for record in self.records for name in (record.name, *record.rules, *rule_names(record))}

    def rejections(self, rule: str | None = None) -> Rejections:
        """The matches of a rule (or of any rule of a step) that were not made: they are not equal, or the rule failed.

        A list, printed as a paragraph for each.

        Raises:
            InputError: there is no rule or step of that name.
        """
        self._require(rule, (rejection for record in self.records for rejection in record.rejections))
        return Rejections(
            rejection
            for record in self.records
            for rejection in record.rejections
            if rule in (None, rejection.rule, record.name)
        )

    def reproduce(self, rewrite: int | Commit | Rejection, path: str | os.PathLike[str] | None = None) -> str:
        """One rewrite, or one rejected match, as a script that needs torch alone.

        The script holds both sides and draws their inputs, as verification does, at the recorded sizes and with a batch
        of two. It prints how much they differ, in the dtypes of the model and in float64, and exits with 1 where that
        is more than the rule promises. What a report that was loaded says goes into it as it is: to run the script is
        to run code of the file.

        Args:
            rewrite: the number of a rewrite, as in the diff, or one of ``rejections()``.
            path: a file to write it to.

        Raises:
            InputError: there is no such rewrite, or nothing was built that could be compared.
        """
        if isinstance(rewrite, bool) or not isinstance(rewrite, (int, Commit, Rejection)):
            raise InputError(f"{rewrite!r} is no rewrite; pass its number in the diff, or one of rejections()")
        text = reproduction(self._made(rewrite) if isinstance(rewrite, int) else rewrite, self.versions)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def _made(self, number: int) -> Commit:
        commits = {commit.number: commit for record in self.records for commit in record.commits}
        if number not in commits:
            there = f"numbers 1 to {max(commits)} were made" if commits else "no rewrite was made"
            raise InputError(f"there is no rewrite number {number}; {there}")
        return commits[number]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON: dictionaries, lists, strings and numbers.

        ``format`` numbers the layout and grows with every change that breaks readers. Numbers that JSON does not have
        (infinities and NaN) are None.
        """
        return report_data(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The report that :meth:`to_dict` gave; numbers that JSON does not have come back as NaN.

        Raises:
            InputError: data of another format, or malformed.
        """
        return cls(**report_fields(data, get_type_hints(cls)))

    def _require(self, rule: str | None, likely: Iterable[Commit | Refused | Rejection]) -> None:
        """Check a name; for an unknown one the nearest of those that made what is asked for is suggested."""
        if rule is None or rule in self._ran or rule in known_names():
            return
        fired = dict.fromkeys(commit.rule for record in self.records for commit in record.commits)
        made = f"rewrites were made by {', '.join(fired)}" if fired else "no rule made a rewrite"
        names = {item.rule for item in likely}
        raise InputError(f"there is no rule or step '{rule}' ({made}){nearest(rule, names) if names else ''}")

    def __str__(self) -> str:
        return report_text(self)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"
