"""Depthwise mixers in a graph: each channel of the result is one channel of the input, convolved by itself.

A mixer is one depthwise convolution, or several of other kernels over parts of the channels, put together again, as in
MixNet and InceptionNeXt; channels may also pass unchanged. One-dimensional convolutions are those of images of one row.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewrite.ops import Concatenation, Convolution, Pad, Piece, Slice, is_tensor, value, view, view_as

if TYPE_CHECKING:
    from torch.fx import Graph, Node


@dataclass(frozen=True)
class Window:
    """Where the taps of one result lie, each pair for rows and columns.

    Attributes:
        kernel: taps.
        stride: from result to result.
        dilation: from tap to tap.
        low: rows and columns of zeros before the input; those behind it follow from the result's size.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    low: tuple[int, int]

    def __str__(self) -> str:
        text = f"{self.kernel[0]}x{self.kernel[1]}"
        text += "" if self.stride == (1, 1) else f" stride {self.stride[0]}x{self.stride[1]}"
        return text if self.dilation == (1, 1) else f"{text} dilation {self.dilation[0]}x{self.dilation[1]}"


POINT = Window((1, 1), (1, 1), (1, 1), (0, 0))


@dataclass(frozen=True)
class Branch:
    """Channels with one kind of kernel.

    Attributes:
        weight: ``[channels, 1, *kernel]``; None where channels pass unchanged.
        bias: ``[channels]`` or None.
        window: where the taps lie.
        source, target: the first channel in the input and in the result.
        channels: how many there are.
    """

    weight: Node | None
    bias: Node | None
    window: Window
    source: int
    target: int
    channels: int

    @property
    def operands(self) -> tuple[Node, ...]:
        """Weight and bias, as far as there are any."""
        return tuple(node for node in (self.weight, self.bias) if node is not None)


@dataclass(frozen=True)
class Mixer:
    """Branches over all channels of a result.

    Attributes:
        node: the result, ``[N, C, H, W]`` or ``[N, C, L]``.
        input: ``[N, C', H', W']`` or ``[N, C', L']``, before any zeros.
        branches: by target channel, without gaps.
        nodes: what it replaces, in the order of the graph, the result last.
    """

    node: Node
    input: Node
    branches: tuple[Branch, ...]
    nodes: tuple[Node, ...]

    @property
    def roles(self) -> dict[str, Node]:
        """Weights and biases, numbered where there are several branches."""
        found = {}
        for number, branch in enumerate(self.branches):
            ending = str(number) if len(self.branches) > 1 else ""
            given = {"weight": branch.weight, "bias": branch.bias}
            found.update({name + ending: node for name, node in given.items() if node is not None})
        return found

    @property
    def layouts(self) -> dict[Node, tuple[int, ...]]:
        """Strides of constant weights that stand the channels of a tap side by side, where those of the input are."""
        weights = [branch.weight for branch in self.branches if branch.weight is not None]
        beside = value(self.input).stride()[1] == 1
        return {weight: by_tap(value(weight).shape) for weight in weights if beside and weight.op == "get_attr"}

    def __str__(self) -> str:
        kinds = [f"{b.channels} unchanged" if b.weight is None else f"{b.channels} {b.window}" for b in self.branches]
        return f"depthwise [{', '.join(kinds)}]"


def by_tap(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of ``[C, 1, *kernel]`` that lies in memory as ``[*kernel, C]``."""
    channels, _, *kernel = (int(size) for size in shape)
    steps = [channels * math.prod(kernel[dim + 1 :]) for dim in range(len(kernel))]
    return (1, channels * math.prod(kernel), *steps)


def planes(shape: Collection[int]) -> tuple[int, int, int, int]:
    """``[N, C, H, W]`` of an image, or of a sequence as an image of one row."""
    n, c, *size = (int(s) for s in shape)
    return (n, c, size[0], size[1]) if len(size) == 2 else (n, c, 1, size[0])


def mixers(graph: Graph) -> Iterator[Mixer]:
    """The mixers of a graph with recorded values of fixed sizes; none shares an operator with another one."""
    taken: set[Node] = set()
    for node in reversed(list(graph.nodes)):  # a concatenation comes before its parts
        found = None if node in taken else (_concatenated(node) or _alone(node))
        if found is not None and taken.isdisjoint(found.nodes):
            taken.update(found.nodes)
            yield found


def why_not(conv: Convolution) -> str:
    """Why a convolution is no mixer; '' where it is one."""
    if conv.transposed:
        return "it is transposed"
    if not conv.batched:
        return "it has no batch"
    if conv.dims > 2:
        return f"it has {conv.dims} dimensions, and there is code for one and two"
    if not conv.groups == conv.in_channels == conv.out_channels:
        return f"its {conv.groups} groups are not its {conv.in_channels} input and {conv.out_channels} output channels"
    return "" if conv.groups > 1 else "it has one channel"


def _alone(node: Node) -> Mixer | None:
    """A convolution; with the slice behind it that leaves out the last results, as causal ones are written."""
    cut = view_as(node, Slice)
    first = cut is not None and cut.dim == value(node).dim() - 1 and cut.start in (None, 0) and cut.step == 1
    conv = cut.input if cut is not None and first and len(cut.input.users) == 1 else node
    branch = _convolved(conv)
    if branch is None:
        return None
    made, source, nodes = branch
    return Mixer(node, source, (made,), nodes if conv is node else (*nodes, node))


def _convolved(node: Node) -> tuple[Branch, Node, tuple[Node, ...]] | None:
    """A depthwise convolution: its branch, what it reads before zeros are put around, and its nodes."""
    conv = view_as(node, Convolution)
    if conv is None or why_not(conv) or not (is_tensor(conv.input) and is_tensor(conv.weight)):
        return None
    low = [pair[0] for pair in conv.padding]
    source, nodes = conv.input, [node]
    zeros = view_as(source, Pad)
    if zeros is not None and _is_around(zeros, conv.dims) and len(source.users) == 1:
        low = [mine + theirs[0] for mine, theirs in zip(low, _amounts(zeros, conv.dims), strict=True)]
        nodes, source = [source, node], zeros.input
    window = Window(_pair(conv.kernel, 1), _pair(conv.stride, 1), _pair(conv.dilation, 1), _pair(tuple(low), 0))
    return Branch(conv.weight, conv.bias, window, 0, 0, conv.out_channels), source, tuple(nodes)


def _is_around(pad: Pad, dims: int) -> bool:
    """Whether zeros are put around images, and nothing is cut off."""
    amounts = [amount for pair in pad.amounts for amount in pair]
    spatial = len(pad.amounts) <= dims or not any(amount for pair in pad.amounts[:-dims] for amount in pair)
    return pad.mode == "constant" and pad.fill == 0 and min(amounts) >= 0 and spatial


def _amounts(pad: Pad, dims: int) -> list[tuple[int, int]]:
    return ([(0, 0)] * dims + list(pad.amounts))[-dims:]


def _pair(sizes: tuple[int, ...], filling: int) -> tuple[int, int]:
    rows, columns = (filling, *sizes)[-2:]
    return rows, columns


def _concatenated(node: Node) -> Mixer | None:
    """Convolutions of parts of one input's channels, put together."""
    whole = view_as(node, Concatenation)
    if whole is None or whole.dim != 1 or value(node).dim() not in (3, 4):
        return None
    branches: list[Branch] = []
    nodes: list[Node] = []
    inputs: set[Node] = set()
    target = 0
    for part in whole.inputs:
        found = _part(part)
        if found is None or (part.users.keys() != {node} and found[0].weight is not None):
            return None
        branch, source, own = found
        branches.append(Branch(branch.weight, branch.bias, branch.window, branch.source, target, branch.channels))
        inputs.add(source)
        nodes += own
        target += branch.channels
    if len(inputs) != 1 or all(branch.weight is None for branch in branches):
        return None
    order = {each: i for i, each in enumerate(node.graph.nodes)}
    inside = sorted(dict.fromkeys(nodes), key=order.__getitem__)
    return Mixer(node, inputs.pop(), tuple(branches), (*inside, node))


def _part(node: Node) -> tuple[Branch, Node, list[Node]] | None:
    """A part of a concatenation: a convolution of some channels, or these channels themselves."""
    convolved = _convolved(node)
    if convolved is None:
        cut = _cut(node)
        if cut is None:
            return None
        source, start = cut
        return Branch(None, None, POINT, start, 0, int(value(node).shape[1])), source, _cutting(node)
    branch, read, nodes = convolved
    cut = _cut(read)
    if cut is None:
        return None
    source, start = cut
    made = Branch(branch.weight, branch.bias, branch.window, start, 0, branch.channels)
    return made, source, [*_cutting(read), *nodes]


def _cutting(node: Node) -> list[Node]:
    """The operators that cut channels out."""
    found = view(node)
    assert found is not None
    return list(found.nodes)


def _cut(node: Node) -> tuple[Node, int] | None:
    """What a node is some consecutive channels of, and the first of them."""
    match view(node):
        case Piece(input=source, dim=1) as piece if isinstance(piece.start, int):
            return source, piece.start
        case Slice(input=source, dim=1, step=1, start=start) if start is None or (isinstance(start, int)):
            first = start or 0
            return source, first if first >= 0 else max(first + int(value(source).shape[1]), 0)
    return None
