"""Regions: parts of a graph that one kernel computes, around one main operator.

What stands in front of the main operator is computed as its input is loaded (the prologue), what stands behind it
before its result is stored (the epilogue), and sums over all of a channel's pixels are made on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch

from codegen.triton.axes import Axes, followed, spread
from codegen.triton.pointwise import computing, printable
from rewrite.ops import Copy, LayerNorm, Permute, Reduction, Reshape, is_tensor, reduction, same_shape, value, view
from rewrite.ops.view import view_as

if TYPE_CHECKING:
    from torch.fx import Node

LONGEST = 12
"""Operators in front of a main operator, and behind it, that a region takes at most."""

STORED = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of what kernels read and write."""


class Main(Protocol):
    """An operator that a kernel is built around.

    Attributes:
        node: its result.
        input: what the prologue computes.
        nodes: what it replaces, the result last.
        roles: what else it reads, by the names of a kernel's arguments.
    """

    @property
    def node(self) -> Node: ...  # noqa: D102
    @property
    def input(self) -> Node: ...  # noqa: D102
    @property
    def nodes(self) -> tuple[Node, ...]: ...  # noqa: D102
    @property
    def roles(self) -> Mapping[str, Node]: ...  # noqa: D102


@dataclass(frozen=True)
class Region:
    """A main operator with what is fused to it.

    Attributes:
        main: the operator.
        sizes: of the result's coordinates ``n``, ``c``, ``h``, ``w``.
        prologue: pointwise operators, the last of which gives the main operator's input.
        epilogue: pointwise operators, views, copies and norms behind it, in order.
        totals: sums and means over rows and columns.
        axes: of the main operator's result and of all values of the epilogue.
    """

    main: Main
    sizes: Mapping[str, int]
    prologue: tuple[Node, ...] = ()
    epilogue: tuple[Node, ...] = ()
    totals: tuple[Node, ...] = ()
    axes: Mapping[Node, Axes] = field(default_factory=dict)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All that it computes."""
        return (*self.prologue, *self.main.nodes, *self.epilogue, *self.totals)

    @property
    def inputs(self) -> tuple[Node, ...]:
        """What is read where the main operator's input lies, that itself without a prologue; large ones first."""
        read = _read(self.prologue, ()) if self.prologue else (self.main.input,)
        return tuple(sorted(read, key=lambda node: (value(node).dim(), value(node).numel()), reverse=True))

    @property
    def extras(self) -> tuple[Node, ...]:
        """What is read where results lie."""
        return _read(self.epilogue, (self.main.node,))

    @property
    def operands(self) -> tuple[Node, ...]:
        """All that it reads, once each."""
        return tuple(dict.fromkeys((*self.inputs, *self.main.roles.values(), *self.extras)))

    @cached_property
    def outputs(self) -> tuple[Node, ...]:
        """The values that others read, sums last; of views what they are views of. As they were when first asked."""
        inside = set(self.nodes)
        found: dict[Node, None] = {}
        for node in (self.main.node, *self.epilogue):
            if any(user not in inside for user in node.users):
                found[base(node)] = None
        return (*found, *self.totals)

    @property
    def norms(self) -> tuple[LayerNorm, ...]:
        """The norms over channels in the epilogue."""
        return tuple(norm for node in self.epilogue if (norm := view_as(node, LayerNorm)) is not None)


def reach(region: Region) -> int:
    """The largest distance in memory between two elements of one sample, over all that a region reads and writes.

    Kernels count it with 32 bits, and samples with 64.
    """
    like = value(region.main.input).dim()
    read = [(node, spread(node, (("n",), *[()] * (like - 1)))) for node in region.inputs]
    added = [(node, spread(node, region.axes[region.main.node])) for node in region.extras]
    made = [(node, region.axes[node]) for node in region.outputs if node not in region.totals]
    return max((_reach(node, axes) for node, axes in (*read, *added, *made)), default=0)


def _reach(node: Node, axes: Axes | None) -> int:
    found = value(node)
    dims = zip(found.shape, found.stride(), axes or ((),) * found.dim(), strict=True)
    return sum((int(size) - 1) * int(stride) for size, stride, axis in dims if axis != ("n",))


def is_view(node: Node) -> bool:
    """Whether a node of an epilogue gives its input's elements under other indices, and nothing else."""
    return isinstance(view(node), (Permute, Reshape))


def base(node: Node) -> Node:
    """What a node of an epilogue is a view of; itself where it is none."""
    while is_view(node):
        node = node.all_input_nodes[0]
    return node


def regions(main: Main, axes: Axes, sizes: Mapping[str, int], sums: bool) -> Iterator[Region]:
    """All regions around a main operator, the smallest first.

    Args:
        main: the operator.
        axes: of its result.
        sizes: of the result's coordinates.
        sums: whether kernels make sums: over pixels, and over channels for norms.
    """
    before = _prologue(main)
    behind, known = _epilogue(main, axes, sizes, sums)
    ends = [0, *(i + 1 for i, node in enumerate(behind) if not is_view(node))]
    for start in range(len(before), -1, -1):
        for end in ends:
            chosen = tuple(behind[:end])
            held = {node: known[node] for node in (main.node, *chosen)}
            yield Region(main, sizes, tuple(before[start:]), chosen, _totals(held) if sums else (), held)


def _read(nodes: Sequence[Node], known: Sequence[Node]) -> tuple[Node, ...]:
    """The tensors that operators read that are neither among them nor known."""
    inside = {*nodes, *known}
    read = dict.fromkeys(each for node in nodes for each in node.all_input_nodes if each not in inside)
    return tuple(each for each in read if is_tensor(each))


def _prologue(main: Main) -> list[Node]:
    """The pointwise operators in front of a main operator that nothing else reads, in order."""
    found: list[Node] = []
    stack = [main.input]
    inside = set(main.nodes)
    while stack and len(found) < LONGEST:
        node = stack.pop()
        if node in inside or not node.users.keys() <= inside or not _fuses(node, main.input):
            continue
        found.append(node)
        inside.add(node)
        stack += node.all_input_nodes
    order = {node: i for i, node in enumerate(main.node.graph.nodes)}
    return sorted(found, key=order.__getitem__)


def _fuses(node: Node, like: Node) -> bool:
    """Whether a node is a pointwise operator that gives a value of another one's shape."""
    if node.op != "call_function" or not is_tensor(node) or not same_shape(node, like) or not printable(node):
        return False
    return all(is_tensor(operand) and _is_readable(operand, like) for operand in node.all_input_nodes)


def _is_readable(node: Node, like: Node) -> bool:
    if value(node).device != value(like).device:  # a number of the processor's among values of a GPU
        return False
    kind = value(node).dtype
    return kind in STORED or (kind != torch.float64 and computing(kind) is not None and not kind.is_complex)


def _epilogue(main: Main, axes: Axes, sizes: Mapping[str, int], sums: bool) -> tuple[list[Node], dict[Node, Axes]]:
    """What may follow a main operator in its kernel, in order, with the axes of its values."""
    found: list[Node] = []
    known: dict[Node, Axes] = {main.node: axes}
    loaded: dict[Node, Axes | None] = {}  # once each
    outside: set[Node] = set()  # what others make of the region's values: reading it would be a cycle
    started = False
    for node in main.node.graph.nodes:
        started = started or node is main.node
        if not started or node is main.node or node.op != "call_function":
            continue
        reads = node.all_input_nodes
        if not any(each in known or each in outside for each in reads):
            continue
        ends = any(each in outside for each in reads) or len(found) >= LONGEST
        followed = None if ends else _fused(node, known, sizes, sums)
        loads = {} if followed is None else _loads(node, known)
        if followed is None or any(loaded.get(each, made) != made for each, made in loads.items()):
            outside.add(node)
        else:
            found.append(node)
            known[node] = followed
            loaded.update(loads)
    return found, known


def _loads(node: Node, known: Mapping[Node, Axes]) -> dict[Node, Axes | None]:
    """The axes of what an operator reads beside known values."""
    inner = next(known[each] for each in node.all_input_nodes if each in known)
    others = [each for each in node.all_input_nodes if each not in known and is_tensor(each)]
    norm = view_as(node, LayerNorm)
    return {each: spread(each, inner) if norm is None else (("c",),) for each in others}


def _fused(node: Node, known: Mapping[Node, Axes], sizes: Mapping[str, int], sums: bool) -> Axes | None:
    """The axes of what a node makes of known values; None where a kernel cannot."""
    if not is_tensor(node) or value(node).dtype == torch.float64:
        return None
    inner = [each for each in node.all_input_nodes if each in known]
    axes = known[inner[0]]
    norm = view_as(node, LayerNorm)
    if norm is not None:
        over = sums and axes[-1] == ("c",) and len(norm.shape) == 1 and norm.input in known
        return axes if over and len(inner) == 1 and value(node).dtype in STORED else None
    if isinstance(view(node), (Permute, Reshape, Copy)):
        return followed(node, axes, sizes)
    if any(known[each] != axes for each in inner) or not _fuses(node, inner[0]):
        return None
    others = (each for each in node.all_input_nodes if each not in known)
    return axes if all(spread(each, axes) is not None for each in others) else None


def _totals(known: Mapping[Node, Axes]) -> tuple[Node, ...]:
    """Sums and means of known values over rows and columns."""
    found: list[Node] = []
    for node, axes in known.items():
        for user in node.users:
            made = _total(user)
            if made is not None and made.input is node and value(node).dtype in STORED:
                gone = {name for dim in made.dims for name in axes[dim]}
                kept = {name for dim, axis in enumerate(axes) if dim not in made.dims for name in axis}
                if {"h", "w"} >= gone and kept <= {"n", "c"} and gone:
                    found.append(user)
    return tuple(dict.fromkeys(found))


def _total(node: Node) -> Reduction | None:
    made = reduction(node) if node.op == "call_function" and is_tensor(node) else None
    return made if made is not None and made.kind in ("sum", "mean") else None
