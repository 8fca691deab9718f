"""The other strategy beside the search: make the rewrites of a plan, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewrite import printer
from rewrite.apply import Applied
from rewrite.errors import PlanError
from rewrite.plan import REMEDY
from rewrite.rule import Miss

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.driver import StepRun
    from rewrite.graph import Graph
    from rewrite.plan import Decision, Plan
    from rewrite.rule import Match, Rule


class Replay:
    """A strategy that asks, for each decision of a plan, its rule at its node, and nothing else.

    It serves one run of a driver over all steps, and may be stopped early by fuel.

    Args:
        plan: the decisions.
        graph: the graph that the driver rewrites, as it was captured.

    Raises:
        PlanError: the plan is for another program.
    """

    def __init__(self, plan: Plan, graph: Graph):
        plan.require(graph)
        self.plan, self.graph = plan, graph
        self._made = 0
        self._renamed: dict[str, str] = {}  # where nodes got other names than in the run that was recorded

    def __call__(self, run: StepRun) -> None:
        """Make the rewrites of one step.

        Raises:
            PlanError: a decision does not fit.
        """
        nodes = {node.name: node for node in self.graph.nodes}
        while self._made < len(self.plan.decisions) and not run.out_of_fuel:
            decision = self.plan.decisions[self._made]
            if decision.step != run.position:
                return
            self._make(run, decision, nodes)

    def finish(self) -> None:
        """Check that every decision was made, and that the program is the one of the plan.

        Raises:
            PlanError: something is missing, or the program is another one.
        """
        if self._made < len(self.plan.decisions):
            decision = self.plan.decisions[self._made]
            raise self._misfit(decision, f"its step, number {decision.step}, is over or is none of the pipeline")
        found = printer.digest(self.graph)
        if found != self.plan.after:
            raise PlanError(
                f"the plan leads to another program than it did: its digest is {self.plan.after[:12]}, and this one's "
                f"is {found[:12]}{self.plan.differences()}; {REMEDY}"
            )

    def _make(self, run: StepRun, decision: Decision, nodes: dict[str, Node]) -> None:
        rule = next((rule for rule in run.rules if rule.name == decision.rule), None)
        if rule is None:
            raise self._misfit(decision, f"step '{run.step.name}' has no such rule")
        missing = next((n for n in (decision.node, *decision.nodes) if self._now(n) not in nodes), None)
        if missing is not None:
            raise self._misfit(decision, f"the program has no node '{missing}'")
        node, *wanted = (nodes[self._now(name)] for name in (decision.node, *decision.nodes))
        reason = "the rule finds nothing there"
        for found in self._found(decision, rule, node):
            if isinstance(found, Miss):
                reason = str(found.refusal)
            elif found.nodes != tuple(wanted):
                reason = "the rule finds another match there"
            else:
                outcome = run.apply(found, node)
                if isinstance(outcome, Applied):
                    return self._follow(decision, outcome, nodes)
                reason = str(outcome.refusal) if isinstance(outcome, Miss) else outcome.reason
        raise self._misfit(decision, reason)

    def _found(self, decision: Decision, rule: Rule, node: Node) -> list[Match | Miss]:
        try:
            return list(rule.find(self.graph, (node,)))
        except Exception as error:
            raise self._misfit(decision, f"find raised {type(error).__name__}: {error}") from error

    def _follow(self, decision: Decision, applied: Applied, nodes: dict[str, Node]) -> None:
        added = applied.splice.added
        if len(added) != len(decision.made):
            raise self._misfit(decision, f"it adds {len(added)} nodes instead of {len(decision.made)}")
        for name, node in zip(decision.made, added, strict=True):
            nodes[node.name] = node
            self._renamed[name] = node.name
        for node in applied.erased:
            nodes.pop(node.name, None)
        self._made += 1

    def _now(self, name: str) -> str:
        """The present name of a node that the plan names."""
        return self._renamed.get(name, name)

    def _misfit(self, decision: Decision, reason: str) -> PlanError:
        return PlanError(
            f"decision {self._made + 1} of the plan, '{decision.rule}' at '{decision.node}', cannot be made: {reason}"
            f"{self.plan.differences()}; {REMEDY}"
        )
