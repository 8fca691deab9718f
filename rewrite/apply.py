"""One match, whoever found it: checked, built, verified and spliced, or the reason why not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewrite import printer
from rewrite.aliases import alias_classes
from rewrite.errors import RuleError
from rewrite.fragment import Builder, Fragment, extract
from rewrite.provenance import module_path
from rewrite.repro import Repro, record
from rewrite.rule import Match, Miss, Refusal, admit
from rewrite.splice import Splice, changed_aliases
from rewrite.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import Node

    from rewrite.graph import Graph
    from rewrite.rule import Rule
    from rewrite.verdict import Verifier


@dataclass(frozen=True)
class Prepared:
    """A match that may take the place of its nodes; the graph is as it was.

    Attributes:
        match: the match.
        old, new: the fragment that would be replaced, and its replacement.
        verdict: what verification said.
        repro: both sides as text.
    """

    match: Match
    old: Fragment
    new: Fragment
    verdict: Verdict
    repro: Repro


@dataclass(frozen=True)
class Applied:
    """A match that took the place of its nodes.

    Attributes:
        match: the match; its nodes are erased, or dead.
        removed, added: the lines of the program before and after.
        verdict: what verification said.
        repro: both sides as text.
        splice: what was added, and what reads it.
        erased: the nodes that are gone.
    """

    match: Match
    removed: tuple[str, ...]
    added: tuple[str, ...]
    verdict: Verdict
    repro: Repro
    splice: Splice
    erased: tuple[Node, ...]


@dataclass(frozen=True)
class Failed:
    """A match that left the graph as it was: the rule failed, or what it built is not equal.

    Attributes:
        match: the match.
        reason: why.
        verdict: what verification said, None where it was not asked.
        repro: both sides as text, None where the rule built none.
    """

    match: Match
    reason: str
    verdict: Verdict | None = None
    repro: Repro | None = None


def _checked(rule: Rule, match: Match) -> Refusal | None:
    """What the rule itself says of a match."""
    found: Any = rule.check(match)
    if found is not None and not isinstance(found, Refusal):
        raise RuleError(f"check of '{rule.name}' returned {found!r}; return None or Refusal(reason, culprit, remedy)")
    return found


@dataclass(frozen=True)
class Applier:
    """Applies matches to one graph.

    Attributes:
        graph: the graph, rewritten in place.
        verifier: checks each match; None accepts all.
        exclude: paths of modules that are left alone.
    """

    graph: Graph
    verifier: Verifier | None
    exclude: frozenset[str]

    def apply(self, match: Match, number: int, admitted: Callable[[Match], None]) -> Applied | Miss | Failed:
        """Check, build, verify and splice a match. Whatever a rule does, the graph stays right; see :meth:`prepare`."""
        prepared = self.prepare(match, number, admitted)
        return self._splice(prepared) if isinstance(prepared, Prepared) else prepared

    def prepare(
        self, match: Match, number: int, admitted: Callable[[Match], None] = lambda match: None
    ) -> Prepared | Miss | Failed:
        """Check, build and verify a match. The graph is only read.

        Args:
            match: what a rule found.
            number: of the rewrite, if it is made.
            admitted: told of the match between its checks and the building of its replacement.
        """
        rule = match.rule
        try:
            refusal = self._excluded(match) or admit(self.graph, match) or _checked(rule, match)
            if refusal is not None:
                return Miss(rule.name, match.anchor, refusal, match.nodes)
            admitted(match)
            old = extract(match)
            builder = Builder(self.graph, match, number)
            new = builder.finish(rule.rewrite(match, builder))
            repro = record(self.graph, match, old, new)
        except Exception as error:
            return Failed(match, f"raised {type(error).__name__}: {error}")
        try:
            verdict = Verdict(True) if self.verifier is None else self.verifier.verify(self.graph, match, old, new)
        except Exception as error:  # what cannot be checked is not made
            return Failed(match, f"verification raised {type(error).__name__}: {error}", repro=repro)
        if not verdict.accepted:
            return Failed(match, verdict.reason, verdict, repro)
        return Prepared(match, old, new, verdict, repro)

    def _excluded(self, match: Match) -> Refusal | None:
        for node in match.nodes:
            path = module_path(node)
            names = [repr(name) for name in self.exclude if path == name or path.startswith(f"{name}.")]
            if names:
                remedy = f"leave {' and '.join(sorted(names))} out of exclude"
                return Refusal(f"module '{path}' is excluded", node, remedy)
        return None

    def _splice(self, prepared: Prepared) -> Applied | Failed:
        match = prepared.match
        removed = tuple(printer.program(match.nodes))
        before = alias_classes(self.graph)
        splice = Splice(self.graph, match, prepared.new)
        changed = changed_aliases(self.graph, before)
        if changed:
            splice.rollback()
            return Failed(match, changed, prepared.verdict, prepared.repro)
        added = tuple(printer.program(splice.new)) or tuple(
            f"{old.name} = {printer.argument_text(node)}"
            for old, node in zip(match.outputs, splice.results, strict=True)
        )
        return Applied(match, removed, added, prepared.verdict, prepared.repro, splice, tuple(splice.commit()))
