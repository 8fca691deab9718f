"""Reading an add-tree as a linear form.

Sums unite the branches of their terms; a negation, a product with a constant or an evaluated batch norm multiplies all
branches below it. What is none of these is the identity of itself, as one more source.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from passes import affine
from passes.obstruction import compute, dtype_name, obstruction
from passes.reparameterize.behind import behind
from passes.reparameterize.forms import Branch, Factor, Form, Obstacle, Shift, Tree
from passes.reparameterize.kernels import Taps
from rewrite.ops import (
    AveragePool,
    BatchNorm,
    Cast,
    Convolution,
    Linear,
    Negation,
    Pad,
    Product,
    Sum,
    Term,
    is_tensor,
    same_type,
    value,
    view,
    view_as,
)
from rewrite.provenance import called
from rewrite.rule import Refusal, read_elsewhere

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from rewrite.graph import Graph


def read_tree(graph: Graph, root: Node, axis: int) -> Tree:
    """The add-tree that ends in ``root``, with its channels in dimension ``axis``, a known number.

    With ``axis`` 1 of ``[N, C, *size]`` the branches are convolutions, with the last one they are linear layers.
    """
    reader = _Reader(graph, root, axis)
    found = view_as(root, Sum)
    terms, sums = found.flatten() if found is not None else ((Term(1.0, root),), ())
    forms = tuple((term, reader.term(term)) for term in terms)
    inside = {*sums, *(node for _, form in forms if form is not None for node in form.nodes)}
    obstacles = _distinct([*reader.obstacles, *_shared(root, reader.shared, inside)])
    return Tree(root, axis, forms, tuple(dict.fromkeys(sums)), obstacles)


def _distinct(obstacles: Sequence[Obstacle]) -> tuple[Obstacle, ...]:
    """One obstacle for each layer: where a layer reaches the sum on several ways, its last one stops all of them."""
    return tuple(
        found
        for i, found in enumerate(obstacles)
        if not any(set(found.nodes).intersection(other.nodes) for other in obstacles[i + 1 :])
    )


def _shared(root: Node, nodes: Iterable[Node], inside: Collection[Node]) -> Iterator[Obstacle]:
    """Obstacles for branches that something outside of the tree reads too."""
    for node in nodes:
        other = next((user for user in node.users if user not in inside), None)
        if other is not None and isinstance(view(node), (Convolution, Linear, AveragePool, BatchNorm)):
            yield _obstacle(read_elsewhere(node, other, root), node)


def _obstacle(refusal: Refusal, node: Node) -> Obstacle:
    """The obstacle at ``node``, whose source is what is below its norm, its layer or pool, padding and conversion."""
    nodes: list[Node] = []
    source = node
    for kinds in ((BatchNorm,), (Convolution, Linear, AveragePool), (Pad,), (Cast,)):
        found = view(source)
        if isinstance(found, kinds) and (source is node or len(source.users) == 1):
            nodes.extend(found.nodes)
            source = found.input
    return Obstacle(refusal, source, tuple(nodes))


def consumer(node: Node) -> Node | None:
    """The sum, negation, product or norm that alone reads a node as part of an add-tree, or None."""
    if len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    if view(reader) is None and len(reader.users) == 1:
        reader = next(iter(reader.users))  # a norm is a call and its getitem
    found = view(reader)
    if isinstance(found, (Sum, Negation, Product)):
        return reader
    return reader if isinstance(found, BatchNorm) and found.input is node else None


class _Reader:
    """Reads the forms of nodes that have the root's shape and dtype, so that a form is a sum without broadcasting."""

    def __init__(self, graph: Graph, root: Node, axis: int):
        self.graph, self.root, self.axis = graph, root, axis
        self.shape: list[Any] = list(value(root).shape)
        self.channels: int = self.shape[axis]
        self.dims = len(self.shape) - 1 - axis
        self.obstacles: list[Obstacle] = []
        self.shared: list[Node] = []

    def note(self, refusal: Refusal, node: Node) -> None:
        self.obstacles.append(_obstacle(refusal, node))

    def term(self, term: Term) -> Form | None:
        if term.node is None:
            return Form(shifts=(Shift(term.coefficient),))
        form = self.read(term.node)
        return form if form is None or term.coefficient == 1 else form.scaled(Factor(term.coefficient))

    def read(self, node: Node) -> Form | None:
        """The form of a node over one source; None for one of another shape or dtype."""
        if self.graph.is_constant(node):
            return Form(shifts=(Shift(node),)) if self._per_channel(node) else None
        if not same_type(node, self.root):
            self._note_dtype(node)
            return None
        shared = node is not self.root and len(node.users) > 1
        form = None if shared else self._operator(node)
        if shared:
            self.shared.append(node)
        if form is None or len(form.sources) > 1:
            return Form((Branch(node, None, (Taps(),) * self.dims, (1,) * self.dims, self.channels),))
        return form

    def _note_dtype(self, node: Node) -> None:
        mine, wanted = value(node).dtype, value(self.root).dtype
        if mine != wanted and isinstance(view(node), (Convolution, Linear, AveragePool, BatchNorm)):
            reason = f"a branch is {mine} and the sum {wanted}"
            self.note(Refusal(reason, node, compute(node, dtype_name(self.root))), node)

    def _note_between(self, node: Node) -> None:
        found = obstruction(self.graph, node)
        if found is not None:
            self.note(behind(found, self.root), found.layer.node)

    def _operator(self, node: Node) -> Form | None:
        found = view(node)
        if isinstance(found, Convolution):
            return self._convolution(found)
        if isinstance(found, Linear):
            return self._linear(found)
        if isinstance(found, AveragePool):
            return self._pool(found)
        if isinstance(found, BatchNorm):
            return self._norm(found)
        if isinstance(found, Sum):
            return self._sum(found)
        if isinstance(found, Negation):
            form = self.read(found.input)
            return form and form.scaled(Factor(-1.0), (node,))
        if isinstance(found, Product):
            return self._product(found)
        self._note_between(node)
        return None

    def _sum(self, found: Sum) -> Form | None:
        branches: list[Branch] = []
        shifts: list[Shift] = []
        nodes: list[Node] = []
        for term in found.terms:
            form = self.term(term)
            if form is None:
                return None
            branches.extend(form.branches)
            shifts.extend(form.shifts)
            nodes.extend(form.nodes)
        return Form(tuple(branches), tuple(shifts), (*nodes, found.node))

    def _product(self, found: Product) -> Form | None:
        data, factor = found.left, found.right
        if not self._is_factor(factor) and not found.divided:
            data, factor = factor, data
        if not is_tensor(data) or not self._is_factor(factor):
            self._note_factor(found)
            return None
        form = self.read(data)  # type: ignore[arg-type]
        return form and form.scaled(Factor(factor, found.divided), (found.node,))

    def _note_factor(self, found: Product) -> None:
        """The obstacle of a product of a branch with what is not one constant for each channel."""
        for data, factor in ((found.left, found.right), (found.right, found.left)):
            if not isinstance(view(data), (Convolution, Linear, AveragePool, BatchNorm)) or not is_tensor(factor):
                continue
            assert isinstance(data, Node)
            assert isinstance(factor, Node)
            if not self.graph.is_constant(factor):
                self.note(affine.varying(self.graph, factor, "the factor of a branch"), data)
            elif found.divided and data is found.right:
                self.note(Refusal("a factor is divided by a branch", found.node, "divide the branch by it"), data)
            else:
                remedy = f"give it the shape {[self.channels, *[1] * self.dims]}"
                self.note(Refusal("the factor of a branch is not one for each channel", factor, remedy), data)
            return

    def _norm(self, norm: BatchNorm) -> Form | None:
        if self.axis != 1:
            return None
        refusal = affine.norm_refusal(self.graph, norm)
        if refusal is not None:
            self.note(refusal, norm.node)
            return None
        form = self.read(norm.input)
        if form is None:
            return None
        form = form.scaled(Factor(norm), norm.nodes)
        return replace(form, shifts=(*form.shifts, Shift(norm)))

    def _is_factor(self, operand: Node | float) -> bool:
        if isinstance(operand, (int, float)):
            return True
        return self.graph.is_constant(operand) and self._per_channel(operand)

    def _per_channel(self, node: Node) -> bool:
        """Whether a constant is one number for each channel, or one number."""
        shape = list(value(node).shape)
        aligned = [1] * (len(self.shape) - len(shape)) + shape
        return (
            not value(node).dtype.is_complex
            and len(aligned) == len(self.shape)
            and aligned[self.axis] in (1, self.channels)
            and all(size == 1 for d, size in enumerate(aligned) if d != self.axis)
        )

    def _linear(self, linear: Linear) -> Form | None:
        if self.dims or self._refused(linear):
            return None
        return Form((Branch(linear.input, linear, (), (), 1, linear.in_features),), nodes=(linear.node,))

    def _refused(self, layer: affine.Layer) -> bool:
        refusal = affine.layer_refusal(self.graph, layer)
        if refusal is not None:
            self.note(refusal, layer.node)
        return refusal is not None

    def _convolution(self, conv: Convolution) -> Form | None:
        if conv.dims != self.dims or self._refused(conv):
            return None
        if conv.transposed:
            remedy = f"write {called(conv.node)} as a plain convolution, with its kernel flipped"
            self.note(Refusal("the convolution is transposed", conv.node, remedy), conv.node)
            return None
        source, padding, mode, pads = _padded_source(conv.input, conv.padding)
        taps = tuple(
            Taps(count, dilation if count > 1 else 1, low, high)
            for count, dilation, (low, high) in zip(conv.kernel, conv.dilation, padding, strict=True)
        )
        width = conv.in_channels // conv.groups
        return Form((Branch(source, conv, taps, conv.stride, conv.groups, width, mode),), nodes=(*pads, conv.node))

    def _pool(self, pool: AveragePool) -> Form | None:
        if not pool.batched or pool.dims != self.dims:
            return None
        padding = tuple((amount, amount) for amount in pool.padding)
        source, padding, mode, pads = _padded_source(pool.input, padding)
        taps = tuple(Taps(count, 1, *pair) for count, pair in zip(pool.kernel, padding, strict=True))
        refusal = self._pool_refusal(pool, source, taps)
        if refusal is not None:
            self.note(refusal, pool.node)
            return None
        branch = Branch(source, pool, taps, pool.stride, self.channels, 1, mode)
        return Form((branch,), nodes=(*pads, pool.node))

    def _pool_refusal(self, pool: AveragePool, source: Node, taps: tuple[Taps, ...]) -> Refusal | None:
        if pool.divisor is None and not pool.counts_padding and any(pool.padding):
            return Refusal("the pool divides a window at the border by its part inside the input", pool.node,
                           "set count_include_pad=True")  # fmt: skip
        if pool.ceil_mode:
            sizes: list[Any] = list(value(source).shape[2:])
            for part, size, outputs, stride in zip(taps, sizes, self.shape[2:], pool.stride, strict=True):
                if not isinstance(size, int) or part.outputs(size, stride) != outputs:
                    return Refusal("windows of the pool hang over the end of the input", pool.node,
                                   "set ceil_mode=False")  # fmt: skip
        return None


def _padded_source(
    node: Node, padding: tuple[tuple[int, int], ...]
) -> tuple[Node, tuple[tuple[int, int], ...], str, tuple[Node, ...]]:
    """What a window operator with zero padding reads: ``(source, padding, mode, pad nodes that this includes)``."""
    pad = view_as(node, Pad)
    zeros = any(amount for pair in padding for amount in pair)
    if pad is not None and len(node.users) == 1 and len(pad.amounts) <= len(padding):
        amounts = ((0, 0),) * (len(padding) - len(pad.amounts)) + pad.amounts
        if all(amount >= 0 for pair in amounts for amount in pair):
            if pad.mode == "constant" and pad.fill == 0:
                total = tuple((a + low, b + high) for (a, b), (low, high) in zip(amounts, padding, strict=True))
                return pad.input, total, "zeros" if any(map(any, total)) else "", (node,)
            if pad.mode != "constant" and not zeros:
                return pad.input, amounts, pad.mode, (node,)
    return node, padding, "zeros" if zeros else "", ()
