"""Plans: the rewrites of a run as a value that can be kept, sent and made again.

    text = optimize(model, x).plan.to_json()
    fast = optimize(model, x, plan=text)  # the same rewrites and no search; each is verified, and so is the whole

A plan belongs to one program: another model, other sizes of images or another dtype make another program.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rewrite import printer
from rewrite.errors import PlanError
from rewrite.versions import versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewrite.driver import StepRecord
    from rewrite.graph import Graph
    from rewrite.pipeline import Pipeline

FORMAT = 1
"""Numbers the layout of the text; grows with every change that breaks readers."""

REMEDY = "optimize the model without plan= and keep the plan of that result"
_REMEDY_TEXT = "pass the text that plan.to_json() gave"


@dataclass(frozen=True)
class Decision:
    """One rewrite of a plan.

    Attributes:
        step: position of its step in the pipeline, from 0.
        rule: the rule's name.
        node: the name of the node at which the rule was asked.
        nodes: the names of the nodes that it matched, in order.
        made: the names that the nodes got which took their place; later decisions may name them.
    """

    step: int
    rule: str
    node: str
    nodes: tuple[str, ...]
    made: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The decisions of a run.

    Attributes:
        pipeline: the text of the pipeline.
        exclude: names of steps and rules that did not run, and paths of modules that were left alone.
        decisions: the rewrites in the order in which they were made.
        before, after: the digests of the program as captured and as rewritten, the same in every process.
        versions: of what made it, by name; they do not tell plans apart.
    """

    pipeline: str
    exclude: tuple[str, ...]
    decisions: tuple[Decision, ...]
    before: str
    after: str
    versions: Mapping[str, str] = field(default_factory=versions, compare=False)

    @classmethod
    def of(
        cls, pipeline: Pipeline, exclude: Sequence[str], records: Sequence[StepRecord], before: Graph, after: Graph
    ) -> Plan:
        """The plan of a run that was made: its records, and the graph as it was captured and as it became."""
        decisions = tuple(
            Decision(step, commit.rule, commit.node, commit.nodes, commit.made)
            for step, record in enumerate(records)
            for commit in record.commits
        )
        return cls(str(pipeline), tuple(exclude), decisions, printer.digest(before), printer.digest(after))

    def require(self, graph: Graph) -> None:
        """Check that the plan is for this program.

        Raises:
            PlanError: it is for another one.
        """
        found = printer.digest(graph)
        if found != self.before:
            raise PlanError(
                f"the plan is for another program: its digest is {self.before[:12]}, and that of this model, for these "
                f"inputs, is {found[:12]}{self.differences()}; {REMEDY}"
            )

    def differences(self) -> str:
        """In words, which versions differ from those of the plan, for messages; '' where none does."""
        now = versions()
        others = [f"{name} {was}" for name, was in self.versions.items() if now.get(name) not in (None, was)]
        return f" (the plan was made with {', '.join(others)})" if others else ""

    # -- text ---------------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The plan as text, one rewrite a line; :meth:`from_json` gives an equal plan."""
        head = {"format": FORMAT, **asdict(self)}
        rewrites = [json.dumps(decision) for decision in head.pop("decisions")]
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        rows = ",".join(f"\n  {text}" for text in rewrites)
        return "{\n " + ",\n ".join([*lines, f'"decisions": [{rows}\n ]']) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote.

        Raises:
            PlanError: text of another format, or malformed.
        """
        try:
            data = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise PlanError(f"the plan is not JSON ({error}); {_REMEDY_TEXT}") from None
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise PlanError(f"the plan has the format {found!r}, and this version reads format {FORMAT}; {REMEDY}")
        rows = enumerate(_field(data, "decisions", list), 1)
        return cls(
            _field(data, "pipeline", str), _names(data, "exclude"),
            tuple(_decision(row, f"decision {number}") for number, row in rows),
            _field(data, "before", str), _field(data, "after", str), _field(data, "versions", dict),
        )  # fmt: skip


def _decision(row: Any, where: str) -> Decision:
    return Decision(
        _field(row, "step", int, where), _field(row, "rule", str, where), _field(row, "node", str, where),
        _names(row, "nodes", where), _names(row, "made", where),
    )  # fmt: skip


def _field(data: Any, name: str, kind: type, where: str = "the plan") -> Any:
    """A field of the data.

    Raises:
        PlanError: there is none, or it is of another type.
    """
    value = data.get(name) if isinstance(data, dict) else None
    if not isinstance(value, kind):
        raise PlanError(f"the plan is malformed: {where} has {value!r} for '{name}', not a {kind.__name__}; "
                        f"{_REMEDY_TEXT}")  # fmt: skip
    return value


def _names(data: Any, name: str, where: str = "the plan") -> tuple[str, ...]:
    names = _field(data, name, list, where)
    if not all(isinstance(item, str) for item in names):
        raise PlanError(f"the plan is malformed: '{name}' of {where} holds more than names; {_REMEDY_TEXT}")
    return tuple(names)
