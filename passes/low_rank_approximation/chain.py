"""A layer as a chain of smaller ones: what each of them takes, and how it is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from passes import affine
from passes.convolve import convolve
from rewrite.ops import Convolution, value

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.affine import Layer
    from rewrite.flops import Sizes
    from rewrite.fragment import Builder

aten = torch.ops.aten


@dataclass(frozen=True)
class Step:
    """A layer of a chain.

    Attributes:
        role: what it is called.
        inputs, outputs: channels of a group.
        axes: those of the kernel along which it moves as the whole layer does; along others it has one tap.
        depthwise: each channel has a kernel of its own.
    """

    role: str
    inputs: int
    outputs: int
    axes: tuple[int, ...] = ()
    depthwise: bool = False


Steps = tuple[Step, ...]


@dataclass(frozen=True)
class Shape:
    """What counts of a layer for what a chain takes.

    Attributes:
        groups, inputs, outputs: of channels, those of a group.
        kernel: its taps along each axis; none of a linear layer.
        before, after: sizes along each axis.
    """

    groups: int
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: Layer, sizes: Sizes | None = None) -> Shape:
        """That of a layer; without sizes as if there were one output."""
        groups = layer.groups if isinstance(layer, Convolution) else 1
        inputs, outputs = affine.inputs_of(layer) // groups, affine.outputs_of(layer) // groups
        if not isinstance(layer, Convolution):
            return cls(groups, inputs, outputs)
        if sizes is None:
            return cls(groups, inputs, outputs, layer.kernel, layer.kernel, (1,) * layer.dims)
        before, after = sizes.shape(layer.input)[2:], sizes.shape(layer.node)[2:]
        return cls(groups, inputs, outputs, layer.kernel, before, after)

    @property
    def features(self) -> int:
        """Values that an output of a group is computed from."""
        return self.inputs * math.prod(self.kernel)

    @property
    def axes(self) -> tuple[int, ...]:
        """All axes of the kernel."""
        return tuple(range(len(self.kernel)))

    def products(self, steps: Steps) -> int:
        """Multiply-accumulates of a chain for one sample, for one row of a linear layer."""
        sizes, count = list(self.before), 0
        for step in steps:
            for axis in step.axes:
                sizes[axis] = self.after[axis]
            taps = math.prod(self.kernel[axis] for axis in step.axes)
            inputs = 1 if step.depthwise else step.inputs
            count += math.prod(sizes) * self.groups * inputs * step.outputs * taps
        return count


Pick = Callable[[int, Callable[[int], Steps]], list[int]]
"""Which ranks to fit: told the highest one, and the chain of each."""


@dataclass(frozen=True)
class Grid:
    """Ranks that take fewer multiply-accumulates than the layer, in geometric progression.

    Attributes:
        shape: of the layer.
        count: how many at most.
        least: the lowest, as a part of the highest one.
    """

    shape: Shape
    count: int
    least: float

    def __call__(self, full: int, chain: Callable[[int], Steps]) -> list[int]:
        """See :data:`Pick`; large ranks are multiples of eight, as fast kernels like them."""
        shape = self.shape
        given = shape.products((Step("", shape.inputs, shape.outputs, shape.axes),))
        low, high = 0, full
        while low < high:  # more rank takes more
            middle = (low + high + 1) // 2
            fits = shape.products(chain(middle)) < given
            low, high = (middle, high) if fits else (low, middle - 1)
        if low == 0:
            return []
        first = max(1, round(self.least * low))
        steps = max(1, self.count - 1)
        found = (first * (low / first) ** (i / steps) for i in range(self.count))
        return sorted({_in_eights(math.floor(rank + 1e-9)) for rank in found})


def _in_eights(rank: int) -> int:
    return rank // 8 * 8 if rank >= 32 else rank


@dataclass(frozen=True, eq=False)
class Fit:
    """A chain with its weights.

    Attributes:
        text: what it is: ``"channel 12"``.
        steps: its layers.
        weights: of each step ``[groups, outputs, inputs, *kernel]``, of depthwise ones with one input.
        shift: ``[groups, outputs]``, what the bias gains.
        error: relative to the layer's outputs, on the data that it was fitted to.
    """

    text: str
    steps: Steps
    weights: tuple[Tensor, ...]
    shift: Tensor
    error: float


def balanced(steps: Steps, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The weights of the same chain with equal norms, term by term, on both sides of each link: halves hold both."""
    found = list(weights)
    for _ in range(4 if len(steps) > 2 else 1):
        for i in range(len(steps) - 1):
            a = found[i].flatten(2).norm(dim=2)
            behind = found[i + 1] if steps[i + 1].depthwise else found[i + 1].transpose(1, 2)
            b = behind.flatten(2).norm(dim=2)
            scale = torch.where((a > 0) & (b > 0), (b / a).sqrt(), 1.0)
            found[i] = found[i] * _column(scale, found[i])
            behind = behind / _column(scale, behind)
            found[i + 1] = behind if steps[i + 1].depthwise else behind.transpose(1, 2)
    return tuple(found)


def _column(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.reshape(*scale.shape, *[1] * (weight.dim() - 2))


def build(g: Builder, layer: Layer, fit: Fit) -> Node:
    """A chain in the place of a layer."""
    x, dtype = layer.input, value(layer.weight).dtype
    shift = fit.shift.flatten()
    if layer.bias is not None:
        shift, dtype_of_bias = shift + g.graph.value(layer.bias).to(shift), value(layer.bias).dtype
    else:
        dtype_of_bias = dtype
    bias = g.bring("low_rank.bias", shift.to(dtype_of_bias))
    for step, weight in zip(fit.steps, fit.weights, strict=True):
        last = step is fit.steps[-1]
        brought = g.bring(f"low_rank.{step.role}", weight.flatten(0, 1).to(dtype))
        if isinstance(layer, Convolution):
            groups = len(weight) * (step.outputs if step.depthwise else 1)
            x = _convolution(g, layer, step, x, brought, bias if last else None, groups)
        else:
            x = g(aten.linear.default, x, brought, bias if last else None)
    return x


def _convolution(g: Builder, conv: Convolution, step: Step, x: Node, weight: Node, bias: Node | None, groups: int
                 ) -> Node:  # fmt: skip
    """A convolution with the geometry of the layer along some axes."""
    return convolve(
        g, x, weight, bias, groups=groups,
        stride=[each if d in step.axes else 1 for d, each in enumerate(conv.stride)],
        padding=[each if d in step.axes else (0, 0) for d, each in enumerate(conv.padding)],
        dilation=[each if d in step.axes else 1 for d, each in enumerate(conv.dilation)],
    )  # fmt: skip
