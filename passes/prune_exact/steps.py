"""Operators that treat every channel by itself, or move channels whole.

A :class:`Step` knows for one such operator where each of its channels comes from, what it makes of channels that are
constant or multiples of each other, and how it is built over fewer channels. What is not a step needs all channels as
they are: :mod:`passes.prune_exact.flow` stops there.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from passes.prune_exact.alike import Alike, grouped
from rewrite.ops import (
    Activation,
    Concatenation,
    Expand,
    Reshape,
    View,
    value,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.fx import Node

    from passes.prune_exact.select import Picker
    from passes.prune_exact.weights import Weights

aten = torch.ops.aten

UNKNOWN = float("nan")
"""Stands for channels that are not known to be constant, in vectors of the constants of a value."""


class Passes(enum.Enum):
    """The factors that an operator passes on: ``f(a x) = a f(x)``."""

    ANY = enum.auto()
    POSITIVE = enum.auto()
    ONE = enum.auto()


@dataclass(frozen=True, eq=False)
class Step:
    """One operator over values with channels.

    Attributes:
        view: the operator.
        axis: the dimension of its channels.
        operands: the values whose channels become its own.
        axes: the dimension of the channels of each.
    """

    view: View
    axis: int
    operands: tuple[Node, ...]
    axes: tuple[int, ...]

    @property
    def node(self) -> Node:
        """The result."""
        return self.view.node

    @property
    def channels(self) -> int:
        """How many channels the result has."""
        return int(value(self.node).shape[self.axis])

    @property
    def weights(self) -> tuple[Node, ...]:
        """The parameters that have one entry for each channel."""
        return ()

    def origins(self) -> tuple[Tensor, ...]:
        """For each operand which of its channels becomes channel i of the result, -1 where none does."""
        return tuple(torch.arange(self.channels) for _ in self.operands)

    def constants(self, weights: Weights, given: Sequence[Tensor]) -> Tensor:
        """The constants of the result, from those of the operands."""
        raise NotImplementedError

    def alike(self, weights: Weights, given: Sequence[Alike]) -> Alike:
        """Which channels of the result are multiples of each other."""
        raise NotImplementedError

    def constant(self, g: Picker, given: Sequence[Node], channels: Sequence[int]) -> Node | None:
        """The constants of some channels as a vector, from those of the operands; None where they show nothing."""
        return given[0]

    def ratio(self, g: Picker, given: Sequence[Node], channels: Sequence[int], roots: Sequence[int]) -> Node:
        """The factors between some channels and others as a vector, from those of the operands."""
        return given[0]

    def narrow(self, g: Picker, new: Mapping[Node, Node], kept: Mapping[Node, Sequence[int]]) -> Node:
        """The operator over ``new`` operands of fewer channels; ``kept`` are the channels that each value keeps."""
        return replay(g, self.view.nodes, new)


def replay(g: Picker, nodes: Sequence[Node], new: Mapping[Node, Node]) -> Node:
    """The operators in order over other operands, with their own source lines; returns the last."""
    known = dict(new)
    for node in nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: known.get(arg, arg))
        known[node] = placed(g(node.target, *args, **kwargs), node)
    return known[nodes[-1]]


def placed(new: Node, old: Node) -> Node:
    """A new node with the module and the source line of the one whose place it takes."""
    new.meta.update({key: old.meta[key] for key in ("stack_trace", "nn_module_stack", "torch_fn") if key in old.meta})
    return new


@dataclass(frozen=True, eq=False)
class Pointwise(Step):
    """A function of each element: an activation, or a negation."""

    passes: Passes = Passes.ONE

    def constants(self, weights: Weights, given: Sequence[Tensor]) -> Tensor:
        """The function of the constants."""
        result = self._of(_call, given[0])
        return torch.where(torch.isfinite(given[0]), result, UNKNOWN)

    def constant(self, g: Picker, given: Sequence[Node], channels: Sequence[int]) -> Node | None:
        """The function of the constants."""
        return self._of(g, given[0])  # type: ignore[no-any-return]

    def _of(self, g: Any, x: Any) -> Any:
        return self.view.on(g, x) if isinstance(self.view, Activation) else g(aten.neg.default, x)

    def alike(self, weights: Weights, given: Sequence[Alike]) -> Alike:
        """Multiples by such factors as the function passes on."""
        return passed(given[0], self.passes)


def _call(target: Any, *args: Any, **kwargs: Any) -> Any:
    return target(*args, **kwargs)


def passed(given: Alike, passes: Passes) -> Alike:
    """The multiples that are left behind an operator that passes on such factors only."""
    roots, factors = given.root.tolist(), given.factor.tolist()
    if passes is Passes.ANY:
        return given
    if passes is Passes.POSITIVE:
        keys = [(root, factor > 0) for root, factor in zip(roots, factors, strict=True)]
    else:
        keys = list(zip(roots, factors, strict=True))
    return grouped(keys, given.factor)


@dataclass(frozen=True, eq=False)
class Plane(Step):
    """An operator over the other dimensions of each channel: pooling, padding, permutations, copies.

    Attributes:
        passes: the factors that it passes on.
        stays: the one constant that is the same behind it; None where every constant is.
    """

    passes: Passes = Passes.ANY
    stays: float | None = None

    def constants(self, weights: Weights, given: Sequence[Tensor]) -> Tensor:
        """The same."""
        return given[0] if self.stays is None else torch.where(given[0] == self.stays, given[0], UNKNOWN)

    def alike(self, weights: Weights, given: Sequence[Alike]) -> Alike:
        """Multiples by such factors as the operator passes on."""
        return passed(given[0], self.passes)


@dataclass(frozen=True, eq=False)
class Resized(Plane):
    """A reshape that keeps the channels a dimension, or flattens them with others; or an expansion.

    Attributes:
        outer, inner: how often all channels, and how often each, are repeated along the result's axis.
    """

    outer: int = 1
    inner: int = 1

    def origins(self) -> tuple[Tensor, ...]:
        """Blocks of the channels."""
        count = self.channels // (self.outer * self.inner)
        return (torch.arange(self.channels) // self.inner % count,)

    def constants(self, weights: Weights, given: Sequence[Tensor]) -> Tensor:
        """The same, repeated."""
        return given[0][self.origins()[0]]

    def alike(self, weights: Weights, given: Sequence[Alike]) -> Alike:
        """The elements of a channel are multiples of those of another at the same place."""
        (origin,) = self.origins()
        count = self.channels // (self.outer * self.inner)
        roots = given[0].root[origin].tolist()
        keys = [(root, i // (self.inner * count), i % self.inner) for i, root in enumerate(roots)]
        return grouped(keys, given[0].factor[origin])

    def constant(self, g: Picker, given: Sequence[Node], channels: Sequence[int]) -> Node | None:
        """The same, repeated: all elements of a channel are constant where one is."""
        return self._repeated(g, given[0], len(channels))

    def ratio(self, g: Picker, given: Sequence[Node], channels: Sequence[int], roots: Sequence[int]) -> Node:
        """The same, repeated: all elements of a channel are multiples where one is."""
        return self._repeated(g, given[0], len(channels))

    def _repeated(self, g: Picker, vector: Node, length: int) -> Node:
        if self.outer * self.inner == 1:
            return vector
        count = length // (self.outer * self.inner)
        column = g(aten.reshape.default, vector, [1, count, 1])
        return g(aten.reshape.default, g(aten.expand.default, column, [self.outer, count, self.inner]), [-1])

    def narrow(self, g: Picker, new: Mapping[Node, Node], kept: Mapping[Node, Sequence[int]]) -> Node:
        """With the new number of channels in its shape."""
        x = new.get(self.operands[0], self.operands[0])
        if isinstance(self.view, Expand):
            before, after = value(self.operands[0]).shape, value(self.node).shape
            sizes = [-1 if str(m) == str(n) else n for m, n in zip(before, after, strict=True)]
            return placed(g(aten.expand.default, x, sizes), self.node)
        assert isinstance(self.view, Reshape)
        shape = list(self.view.shape)
        shape[self.axis] = len(kept[self.node])
        return placed(g(aten.reshape.default, x, shape), self.node)


@dataclass(frozen=True, eq=False)
class Part(Step):
    """Consecutive channels: a slice, or a piece of a split.

    Attributes:
        start: the first of them.
    """

    start: int = 0

    def origins(self) -> tuple[Tensor, ...]:
        """The channels from the first one on."""
        return (torch.arange(self.start, self.start + self.channels),)

    def constants(self, weights: Weights, given: Sequence[Tensor]) -> Tensor:
        """The same."""
        return given[0][self.origins()[0]]

    def alike(self, weights: Weights, given: Sequence[Alike]) -> Alike:
        """The same among the channels that are here."""
        (origin,) = self.origins()
        return grouped(given[0].root[origin].tolist(), given[0].factor[origin])

    def narrow(self, g: Picker, new: Mapping[Node, Node], kept: Mapping[Node, Sequence[int]]) -> Node:
        """A slice of the channels that are kept."""
        source = self.operands[0]
        start = sum(channel < self.start for channel in kept[source])
        x = new.get(source, source)
        return placed(g(aten.slice.Tensor, x, self.axis, start, start + len(kept[self.node])), self.node)


@dataclass(frozen=True, eq=False)
class Joined(Step):
    """A concatenation of channels."""

    view: Concatenation
    sizes: tuple[int, ...] = field(default=())

    @property
    def _starts(self) -> list[int]:
        return [sum(self.sizes[:i]) for i in range(len(self.sizes))]

    def origins(self) -> tuple[Tensor, ...]:
        """One operand behind the other."""
        found = []
        for start, size in zip(self._starts, self.sizes, strict=True):
            origin = torch.full((self.channels,), -1)
            origin[start : start + size] = torch.arange(size)
            found.append(origin)
        return tuple(found)

    def constants(self, weights: Weights, given: Sequence[Tensor]) -> Tensor:
        """One operand's behind the other's."""
        return torch.cat(list(given))

    def alike(self, weights: Weights, given: Sequence[Alike]) -> Alike:
        """The same within each operand."""
        pairs = list(zip(given, self._starts, strict=True))
        return Alike(torch.cat([alike.root + start for alike, start in pairs]), torch.cat([a.factor for a in given]))

    def constant(self, g: Picker, given: Sequence[Node], channels: Sequence[int]) -> Node | None:
        """One operand's behind the other's."""
        return g.joined(given)

    def ratio(self, g: Picker, given: Sequence[Node], channels: Sequence[int], roots: Sequence[int]) -> Node:
        """One operand's behind the other's."""
        return g.joined(given)

    def narrow(self, g: Picker, new: Mapping[Node, Node], kept: Mapping[Node, Sequence[int]]) -> Node:
        """A concatenation of the channels that are kept."""
        parts = [new.get(part, part) for part in self.view.inputs]
        return placed(g(aten.cat.default, parts, self.view.dim), self.node)
