"""Merge the arithmetic by which a gate chooses between two values into one interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.fx import Node

from rewrite.ops import Negation, Product, Sum, is_tensor, value, view_as
from rewrite.provenance import called
from rewrite.rule import Fidelity, Match, Miss, Refusal, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class MergeSelection(Rule):
    r"""Merge two products with a gate and with what it leaves of one, and their sum, into one interpolation.

    .. math:: a p + (1 - a) q = \mathrm{lerp}(q, p, a)

    Highway networks and gated recurrent units choose so between a new and an old value, selective convolutions between
    two kernels. Where the two values are layers of one geometry over one input, ``merge-siblings`` makes one layer of
    them, of which the interpolation then reads two pieces. Four elementwise operators become one.

    The sum :math:`q + a (p - q)` loses the digits of a small :math:`p` beside a large :math:`q`; torch begins at the
    nearer end, so that each term is rounded as it was, for gates outside of 0 to 1 too. Where both values are the same
    infinity, or their difference is not finite, so is the result, which might have been finite or that infinity.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a sum of a value times a gate and another one times what the gate leaves"
    keeps = ()

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each sum among ``dirty`` that a gate and its complement weigh."""
        for node in dirty:
            found = view_as(node, Sum)
            if found is not None and not graph.is_constant(node):
                result = self._look(found)
                if result is not None:
                    yield result

    def _look(self, total: Sum) -> Match | Miss | None:
        products = [view_as(term.node, Product) for term in total.terms if term.coefficient == 1]
        known = [product for product in products if product is not None and not product.divided]
        if len(known) < 2:
            return None
        for taken, left in (known, known[::-1]):
            for rest, old in ((left.left, left.right), (left.right, left.left)):
                gate, chain = _complement(rest)
                if gate is None or not is_tensor(old) or gate not in (taken.left, taken.right):
                    continue
                new = taken.right if taken.left is gate else taken.left
                if is_tensor(new):
                    return self._match(total, (taken.node, left.node), chain, (gate, new, old))  # type: ignore[arg-type]
        return None

    def _match(
        self, total: Sum, products: tuple[Node, Node], chain: tuple[Node, ...], operands: tuple[Node, Node, Node]
    ) -> Match | Miss:
        nodes = tuple(sorted({*products, *chain, total.node}))
        kept = tuple(node for node in chain if any(user not in nodes for user in node.users))
        other = next((node for node in operands if value(node).dtype != value(total.node).dtype), None)
        if other is not None:
            refusal = Refusal(f"one operand is {value(other).dtype}, the result {value(total.node).dtype}", other,
                              f"convert {called(other)} to {value(total.node).dtype}")  # fmt: skip
            return Miss(self.name, total.node, refusal, nodes)
        gate, new, old = operands
        return Match(self, nodes, (*kept, total.node), {"gate": gate, "new": new, "old": old, "chain": chain})

    def rewrite(self, match: Match, g: Builder) -> tuple[Node, ...]:
        """What others read of the complement, and the interpolation."""
        kept = match.outputs[:-1]
        needed = match.chain[: match.chain.index(kept[-1]) + 1] if kept else ()
        copies = {node: g.keep(node) for node in needed}
        return (*(copies[node] for node in kept), g(aten.lerp.Tensor, match.old, match.new, match.gate))


def _complement(node: Node | float) -> tuple[Node | None, tuple[Node, ...]]:
    """The gate ``a`` of which a value is ``1 - a``, and the operators that compute it, in graph order."""
    found = view_as(node, Sum)
    if found is None:
        return None, ()
    number = next((term for term in found.terms if term.node is None), None)
    gate = next((term for term in found.terms if term.node is not None), None)
    if number is None or gate is None or number.coefficient != 1:
        return None, ()
    negated = view_as(gate.node, Negation)
    if gate.coefficient == 1 and negated is not None:
        return negated.input, (negated.node, found.node)
    return (gate.node, (found.node,)) if gate.coefficient == -1 else (None, ())
