"""The weight program: how folded weights are computed from the user's tensors, kept so that it can run again.

Two kinds of weight code meet here. The user's own (weight norm, learned positions, implicit filters) runs as written,
in its own dtypes: its rounding and masks are part of the model. The algebra that rules introduce (a batch norm folded
into a kernel, branches added up) runs in float64 and is rounded once, at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from rewrite import evaluate
from rewrite.provenance import origin

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from torch.fx import Node


def is_algebra(node: Node) -> bool:
    """Whether a node is weight algebra that a rule introduced."""
    made = origin(node)
    return made is not None and made.algebra


class Evaluator:
    """Evaluates constant nodes, each once: the user's code in its own dtypes, the rules' algebra in float64.

    Args:
        source: gives the tensor of a ``get_attr`` target.
        dtype_of: the dtype that a value of this recorded dtype has now; the identity unless the model was converted.
        results: for names of values that were folded before, the node that computes them. They are computed again, so
            that what is built on them is not rounded twice.
    """

    def __init__(
        self,
        source: Callable[[str], Tensor],
        dtype_of: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype,
        results: Mapping[str, Node] | None = None,
    ):
        self._source = source
        self._dtype_of = dtype_of
        self._results = results or {}
        self._exact: dict[Node, Any] = {}

    def know(self, node: Node, value: Any) -> None:
        """Give the value of a node that is not to be computed."""
        self._exact[node] = value

    def exact(self, node: Node) -> Any:
        """The value before its final rounding."""
        stack = [self._resolve(node)]
        while stack:
            top = stack[-1]
            missing = [arg for arg in map(self._resolve, top.all_input_nodes) if arg not in self._exact]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if top not in self._exact:
                self._exact[top] = self._compute(top)
        return self._exact[self._resolve(node)]

    def _resolve(self, node: Node) -> Node:
        """The node that computes a value: for the name of a folded one, the node that was folded."""
        if node.op != "get_attr" or node in self._exact:
            return node
        return self._results.get(str(node.target), node)

    def rounded(self, node: Node) -> Tensor:
        """The value in the dtype that the node is recorded with."""
        return self._round(self._resolve(node), self.exact(node))  # type: ignore[no-any-return]

    def _round(self, node: Node, value: Any) -> Any:
        if isinstance(value, Tensor) and is_algebra(node):
            return value.to(self._dtype_of(node.meta["val"].dtype))
        return value

    def _compute(self, node: Node) -> Any:
        if node.op == "get_attr":
            return self._source(str(node.target)).detach()
        double = is_algebra(node)

        def read(argument: Node) -> Any:
            argument = self._resolve(argument)
            exact = self._exact[argument]
            return exact if double else self._round(argument, exact)

        args, kwargs = fx.map_arg((node.args, node.kwargs), read)
        with torch.no_grad():
            return evaluate.call(node, args, kwargs, double)


@dataclass(eq=False)
class WeightProgram:
    """The constant nodes that were folded away, and the names of their results.

    Attributes:
        fx: ``get_attr`` nodes of the user's tensors and operator nodes; no output node.
        results: folded name to node.
    """

    fx: fx.Graph = field(default_factory=fx.Graph)
    results: dict[str, Node] = field(default_factory=dict)
    _known: dict[Any, Node] = field(default_factory=dict, repr=False)

    def absorb(self, node: Node, name: str) -> None:
        """Take over the computation of a constant node under a new name; what earlier ones compute is shared."""
        self.results[name] = self._copy(node, {})

    def _copy(self, node: Node, mapping: dict[Node, Node]) -> Node:
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [arg for arg in top.all_input_nodes if arg not in mapping]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if top in mapping:
                continue
            folded = self.results.get(str(top.target)) if top.op == "get_attr" else None
            mapping[top] = folded if folded is not None else self._add(top, mapping)
        return mapping[node]

    def _add(self, node: Node, mapping: dict[Node, Node]) -> Node:
        key = _key(node, mapping)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self.fx.node_copy(node, mapping.__getitem__)
        return known

    def keep(self, names: Iterable[str]) -> None:
        """Forget every result that is not named."""
        kept = set(names)
        self.results = {name: node for name, node in self.results.items() if name in kept}
        needed: set[Node] = set()
        stack = list(self.results.values())
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                stack.extend(node.all_input_nodes)
        self._known = {key: node for key, node in self._known.items() if node in needed}
        for node in reversed(self.fx.nodes):
            if node not in needed and node.op != "output":
                self.fx.erase_node(node)

    def copy(self) -> WeightProgram:
        """An independent copy."""
        twin = WeightProgram()
        mapping: dict[Node, Node] = {}
        for node in self.fx.nodes:
            mapping[node] = twin._add(node, mapping)
        twin.results = {name: mapping[node] for name, node in self.results.items()}
        return twin

    @property
    def sources(self) -> tuple[str, ...]:
        """The qualified names of the user's tensors that are read, sorted."""
        return tuple(sorted({str(node.target) for node in self.fx.nodes if node.op == "get_attr"}))

    def origins(self, node: Node) -> frozenset[str]:
        """The names of the user's tensors that a constant node comes from, also through values that were folded."""
        names, seen, stack = set(), set(), [node]
        while stack:
            top = stack.pop()
            if top.op == "get_attr":
                folded = self.results.get(str(top.target))
                if folded is None:
                    names.add(str(top.target))
                    continue
                top = folded
            if top not in seen:
                seen.add(top)
                stack.extend(top.all_input_nodes)
        return frozenset(names)

    def evaluate(
        self,
        sources: Mapping[str, Tensor],
        dtype_of: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype,
    ) -> dict[str, Tensor]:
        """All folded values from the user's tensors; fresh tensors that share no storage with them."""
        return self.values(Evaluator(sources.__getitem__, dtype_of), sources)

    def values(self, evaluator: Evaluator, sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What :meth:`evaluate` returns, from an evaluator over the sources."""
        values = {name: evaluator.rounded(node) for name, node in self.results.items()}
        owned = {tensor.untyped_storage().data_ptr() for tensor in sources.values()}
        return {name: own(value, owned) for name, value in values.items()}

    def lost(self, evaluator: Evaluator) -> str:
        """Which folded value does not fit its dtype, in words; '' where all do.

        It does not where an element is too large for the dtype, or where all of a kernel's are so small that they lose
        digits or vanish. The weights that it comes from may fit, and with them the model.
        """
        for name, node in self.results.items():
            exact = evaluator.exact(node)
            if is_algebra(node) and isinstance(exact, Tensor) and exact.is_floating_point() and exact.numel():
                dtype = evaluator.rounded(node).dtype
                limits, largest, what = torch.finfo(dtype), float(exact.abs().max()), str(dtype).removeprefix("torch.")
                if limits.max < largest < math.inf:
                    return f"'{name}' overflows {what} when it is folded"
                if exact.dim() > 1 and 0 < largest < limits.tiny:
                    return f"'{name}' is too small for {what} when it is folded"
        return ""


def own(value: Tensor, storages: Collection[int]) -> Tensor:
    """The value in memory of its own: copied where it is a view of one of ``storages`` or of a larger tensor."""
    value = value.resolve_conj().resolve_neg()
    storage = value.untyped_storage()
    if storage.data_ptr() in storages or storage.nbytes() > value.numel() * value.element_size():
        return value.clone()
    return value


def _key(node: Node, mapping: Mapping[Node, Node]) -> Any:
    """What tells nodes of a weight program apart: the operator, its operands, and how it is rounded."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), mapping.__getitem__)
    dtype = getattr(node.meta.get("val"), "dtype", None)
    return node.op, node.target, str(args), str(kwargs), is_algebra(node), dtype
