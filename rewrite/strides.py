"""The strides that a caller sees, kept over all the rewrites of a run.

A rule may leave a value in another layout, and operators behind it hand that on. So strides belong to the graph as a
whole: before its rewrites :class:`Strides` remembers those that are seen, and afterwards brings the recorded values up
to date, and copies what a caller, or an operator that depends on strides, would find in other ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from rewrite import compat
from rewrite.aliases import alias_sources, roots
from rewrite.graph import fake_call
from rewrite.provenance import KEY, Origin, origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rewrite.graph import Graph

aten = torch.ops.aten

RESTORED = "restore-strides"
"""What reports name as the maker of the copies."""

READS_STRIDES = frozenset({
    aten.as_strided.default, aten.view.default, aten.view.dtype, aten.view_as_complex.default,
})  # fmt: skip

_FORMATS = ((0, torch.contiguous_format), (4, torch.channels_last), (5, torch.channels_last_3d))

_Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def reads_strides(node: Node) -> bool:
    """Whether an operator depends on the strides of what it reads."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return node.target in READS_STRIDES or node.target.namespace != "aten"


def same_strides(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of the same shape have the same strides; those of dimensions of size one say nothing."""
    known = compat.statically_known_true
    return all(known(size == 1) or known(i == j) for size, i, j in zip(a.shape, a.stride(), b.stride(), strict=True))


def equal_strides(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same strides, those of dimensions of size one too, which kernels look at."""
    return all(compat.statically_known_true(i == j) for i, j in zip(a.stride(), b.stride(), strict=True))


def copies(graph: Graph) -> int:
    """How many copies of a graph were made to keep strides."""
    return sum(node.target is aten.clone.default and _is_restoring(node) for node in graph.calls())


def note(graph: Graph) -> tuple[str, ...]:
    """What a user should know of these copies, a sentence for a report where there are any."""
    number = copies(graph)
    what = "1 value is" if number == 1 else f"{number} values are"
    return (f"{what} copied, so that strides are those of the model ('{RESTORED}' in the program)",) * bool(number)


def _is_restoring(node: Node) -> bool:
    made = origin(node)
    return made is not None and made.rule == RESTORED


@dataclass(frozen=True)
class Strides:
    """A graph as it was before it was rewritten, as far as strides depend on it.

    Attributes:
        operands: what each operator read, in order.
        values: what each node was recorded as.
        outputs: what the flat outputs were recorded as.
    """

    operands: dict[Node, list[Node]]
    values: dict[Node, Any]
    outputs: list[Any]

    @classmethod
    def of(cls, graph: Graph) -> Strides:
        """The graph as it is now."""
        values = {node: node.meta.get("val") for node in graph.nodes}
        outputs = [values.get(value) if isinstance(value, Node) else None for value in graph.outputs]
        return cls({node: _operands(node) for node in graph.calls()}, values, outputs)

    def release(self, graph: Graph) -> bool:
        """Take the copies of an earlier run out, for other rewrites may make them superfluous; whether there are any.

        :meth:`restore` brings back those that are needed still.
        """
        made = [node for node in graph.calls() if _is_restoring(node)]
        for node in made:
            node.replace_all_uses_with(node.all_input_nodes[0])
        graph.eliminate_dead()
        return bool(made)

    def restore(self, graph: Graph) -> None:
        """Record values anew behind what was rewritten, and copy what is seen to the strides that it had.

        Values that may be views of inputs or weights stay what they are, and so does what no copy can give the strides.
        """
        _Restoring(self, graph).run()


class _Restoring:
    """The repair of one graph."""

    def __init__(self, before: Strides, graph: Graph):
        self.before, self.graph = before, graph
        self.number = count(1)

    def run(self) -> None:
        self.record()
        for node, wanted in dict(self.returned()).items():
            if not _agrees(node, wanted):  # it may have been repaired with another one
                self.repair(node, wanted)

    def returned(self) -> Iterator[tuple[Node, Any]]:
        """What the user gets and what it was recorded as; what is written to state is copied into its own strides."""
        user = self.graph.signature.outputs
        for node, wanted in zip(self.graph.outputs[:user], self.before.outputs, strict=False):
            if isinstance(node, Node):
                yield node, wanted

    # -- recorded values ----------------------------------------------------------------------------------------------

    def record(self) -> None:
        """Bring the recorded values up to date: what reads what it did before gives what it did."""
        for node in self.graph.calls():
            was = self.before.operands.get(node)
            found = self.before.values[node] if was and self.reads_alike(node, was) else self.value(node)
            if _moved(found, node.meta["val"]):
                node.meta["val"] = found

    def reads_alike(self, node: Node, was: list[Node]) -> bool:
        pairs = zip(_operands(node), was, strict=False)
        return not any(_moved(now.meta["val"], self.before.values[old]) for now, old in pairs)

    def value(self, node: Node) -> Any:
        """The value of an operator for what is recorded of its operands; None where that cannot be told."""
        if not isinstance(node.target, torch._ops.OpOverload) and not isinstance(node.meta["val"], Tensor):
            return None
        if reads_strides(node) and node in self.before.operands:
            self.keep_read(node)
        try:
            return self.call(node.target, *node.args, **node.kwargs)
        except Exception:  # a view of what is no longer dense, or an operator that fake tensors are not for
            return self.viewed_copy(node) if node.target is aten.view.default else None

    def viewed_copy(self, node: Node) -> Any:
        """The value of a view for a copy of its operand, which lies in other strides than before."""
        source = node.all_input_nodes[0]
        was = self.before.operands.get(node)
        copied = self.copy(source, self.before.values[was[0]] if was else None, node)
        if copied is None:
            return None
        node.replace_input_with(source, copied)
        return self.call(node.target, *node.args, **node.kwargs)

    def keep_read(self, node: Node) -> None:
        """Let an operator that depends on strides read those that it had; a view may read any of which it is one."""
        operands, was = _operands(node), self.before.operands[node]
        if node.target is aten.view.default or len(operands) != len(was):
            return
        for operand, old in dict(zip(operands, was, strict=True)).items():
            wanted = self.before.values[old]
            if not _agrees(operand, wanted):
                copied = self.copy(operand, wanted, node)
                if copied is not None:
                    node.replace_input_with(operand, copied)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        with compat.without_fresh_symbols(self.graph.fake_mode):
            return fake_call(self.graph.fake_mode, target, args, kwargs)

    # -- copies -------------------------------------------------------------------------------------------------------

    def repair(self, node: Node, wanted: Tensor) -> None:
        """Copy a returned value, or what it and others are views of, so that these still are views of one another."""
        own = set(roots(node))
        if any(root.op != "call_function" for root in own):
            return
        family = {other: then for other, then in self.returned() if not own.isdisjoint(roots(other))}
        link: Node | None = node
        while link is not None:
            value, then = link.meta["val"], wanted if link is node else self.before.values.get(link)
            # what splits has several values, and none to be copied
            if isinstance(value, Tensor) and any(
                self.copy_link(link, chain, family) for chain in self.layouts(value, then)
            ):
                return
            sources = alias_sources(link)
            link = sources[0] if len(sources) == 1 else None

    def copy_link(self, link: Node, chain: list[_Call], family: dict[Node, Any]) -> bool:
        """Let results be views of a copy of what they are views of, if that has the strides for all of them."""
        values = {link: self.result(link.meta["val"], chain)}
        if not all(self.viewed(node, values) and same_strides(values[node], then) for node, then in family.items()):
            return False
        readers = [user for user in link.users if user in values]
        copied = self.insert(link, chain, self.graph.output if family.keys() == {link} else link.next)
        for reader in readers:
            reader.replace_input_with(link, copied)
        user, results = self.graph.signature.outputs, self.graph.outputs
        results[:user] = [copied if result is link else result for result in results[:user]]  # not a written state
        self.graph.output.args = (tuple(results),)
        self.record()
        return True

    def viewed(self, node: Node, values: dict[Node, Any]) -> bool:
        """Add the value of a view to those of what it is a view of; False where it cannot be told."""
        if node not in values:
            sources = alias_sources(node)
            if len(sources) != 1 or not self.viewed(sources[0], values):
                return False
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: values.get(arg, arg.meta["val"]))
            try:
                values[node] = self.call(node.target, *args, **kwargs)
            except Exception:  # the layout has no such view
                return False
        return True

    def copy(self, source: Node, wanted: Tensor | None, reader: Node) -> Node | None:
        """A copy for one reader, dense or in the strides of another value; None where no copy has them."""
        value = source.meta["val"]
        for chain in self.layouts(value, wanted):
            if wanted is None or same_strides(self.result(value, chain), wanted):
                return self.insert(source, chain, reader)
        return None

    def layouts(self, value: Tensor, wanted: Any) -> Iterator[list[_Call]]:
        """Ways to copy: in each format that there is, then in the order of the wanted strides."""
        for rank, layout in _FORMATS:
            if rank in (0, value.dim()):
                yield [(aten.clone.default, (), {"memory_format": layout})]
        steps = _hints(wanted.stride()) if isinstance(wanted, Tensor) else None
        if steps is not None:
            order = sorted(range(len(steps)), key=lambda dim: -steps[dim])
            back = [order.index(dim) for dim in range(len(order))]
            clone: _Call = (aten.clone.default, (), {"memory_format": torch.contiguous_format})
            yield [(aten.permute.default, (order,), {}), clone, (aten.permute.default, (back,), {})]

    def result(self, value: Any, chain: Iterable[_Call]) -> Any:
        for target, args, kwargs in chain:
            value = self.call(target, value, *args, **kwargs)
        return value

    def insert(self, source: Node, chain: Iterable[_Call], before: Node) -> Node:
        """The operators of a way to copy, put before a node."""
        known = dict(source.meta)
        meta: dict[str, Any] = {key: known[key] for key in ("stack_trace", "nn_module_stack") if key in known}
        meta[KEY] = Origin(RESTORED, next(self.number), (source.name,))
        for target, args, kwargs in chain:
            with self.graph.fx.inserting_before(before):
                node = self.graph.fx.create_node("call_function", target, (source, *args), kwargs, target._opname)
            node.meta.update(meta)
            node.meta["val"] = self.call(target, *node.args, **node.kwargs)
            source = node
        self.graph.touch()
        return source


def _operands(node: Node) -> list[Node]:
    """The nodes that a node reads, in order, as often as it does."""
    found: list[Node] = []
    collect: Callable[[Node], Any] = found.append
    fx.map_arg((node.args, node.kwargs), collect)
    return found


def _agrees(node: Node, wanted: Any) -> bool:
    """Whether a node is recorded in the wanted strides, or there are none to be compared."""
    return all(map(same_strides, _tensors(node.meta.get("val")), _tensors(wanted)))


def _moved(found: Any, recorded: Any) -> bool:
    """Whether tensors lie in other strides than recorded."""
    if found is recorded:
        return False
    pairs = zip(_tensors(found), _tensors(recorded), strict=False)
    return not all(equal_strides(a, b) for a, b in pairs)


def _tensors(value: Any) -> list[Tensor]:
    leaves = compat.tree_flatten(value)[0]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout is torch.strided]


def _hints(strides: Iterable[Any]) -> list[int] | None:
    """The strides in the example, None where one depends on values of tensors."""
    found: list[int] = []
    for stride in strides:
        if isinstance(stride, torch.SymInt):
            if compat.is_unbacked(stride):
                return None
            stride = compat.hint(stride)
        found.append(int(stride))
    return found
