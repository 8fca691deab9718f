"""What every specification of a layer is: a frozen value that prints as the code that makes it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypedDict, Unpack

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from rewrite.testing.values import DTYPES, LAYOUTS, Printed, Values, seeds


@dataclass(frozen=True, repr=False)
class Layer(Printed):
    """One layer and the input that it is called with. Subclasses say which.

    Attributes:
        sizes: the sizes of the input behind batch and channels.
        batch: the first size of the input.
        dtype: of weights and input.
        layout: of the input; see :class:`~rewrite.testing.values.Values`.
        extreme: whether the input holds zeros of both signs, denormals and values of 1e4 among the normal ones.
        seed: chooses the numbers.
    """

    sizes: tuple[int, ...] = ()
    batch: int = 2
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    extreme: bool = False
    seed: int = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the input."""
        raise NotImplementedError

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the output, as torch computes it."""
        with torch.no_grad():
            return tuple(self.module().to("meta")(torch.empty(self.input_shape, dtype=self.dtype, device="meta")).shape)

    def build(self, draw: Draws) -> nn.Module:
        """The layer, its weights drawn."""
        raise NotImplementedError

    def taking(self, shape: Sequence[int]) -> Self:
        """The same kind of layer for an input of this shape."""
        raise NotImplementedError

    def module(self) -> nn.Module:
        """The layer in evaluation mode, new at each call, always with the same weights."""
        return self.build(Draws(self.seed)).to(self.dtype).eval()

    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of a call, new at each time, always with the same values."""
        return (Values(self.input_shape, self.dtype, self.layout, self.extreme, self.seed + 1).tensor(),)

    def after(self, layer: Layer) -> Self:
        """The same kind of layer for the output of another one, in its dtype."""
        return replace(self.taking(layer.output_shape), dtype=layer.dtype)

    def before(self, layer: Layer) -> Self:
        """The same kind of layer for the input of another one, in its dtype; it must keep the shape."""
        return replace(self.taking(layer.input_shape), dtype=layer.dtype)


class Draws:
    """Random weights that hide nothing: none near zero for all, no two channels alike. Float64, by a seed."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Zero mean, unit variance."""
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform in ``[low, high)``."""
        return torch.rand(shape, generator=self._generator, dtype=torch.float64) * (high - low) + low

    def kernel(self, shape: Sequence[int], fan_in: int) -> Tensor:
        """A kernel that keeps the variance of its input."""
        return self.normal(*shape) / math.sqrt(max(1, fan_in))

    def scale(self, *shape: int) -> Tensor:
        """Factors of either sign around one; about one in seven is zero."""
        which = self.uniform(0, 1, *shape)
        return self.uniform(0.5, 1.5, *shape) * torch.where(which < 0.15, 0.0, torch.where(which < 0.45, -1.0, 1.0))


def assign(parameter: Any, value: Tensor) -> None:
    """Give a parameter or buffer its value; None is left alone."""
    if parameter is not None:
        with torch.no_grad():
            parameter.copy_(value)


def some(draw: st.DrawFn, choices: int | Collection[int]) -> int:
    """The number itself, or one of several, the smallest the simplest."""
    return choices if isinstance(choices, int) else draw(st.sampled_from(sorted(choices)))


def either(draw: st.DrawFn, wanted: bool | None) -> bool:
    """What is wanted, either where that is None."""
    return draw(st.booleans()) if wanted is None else wanted


class Call(TypedDict, total=False):
    """What every strategy of layers takes besides its own arguments, to choose from.

    Attributes:
        batches: batch sizes; 2, 1 and 3 unless given. torch captures an empty batch as another program, so a rule sees
            the batch of 0 through :func:`~rewrite.testing.assertions.assert_rule`, which runs the graph with it.
        dtypes: of weights and inputs; float32, float64 and bfloat16 unless given.
        layouts: of inputs; all of :data:`~rewrite.testing.values.LAYOUTS` unless given.
    """

    batches: Collection[int]
    dtypes: Collection[torch.dtype]
    layouts: Collection[str]


def drawn_call(draw: st.DrawFn, **call: Unpack[Call]) -> dict[str, Any]:
    """The fields of a layer that say how it is called: batch, dtype, layout, values."""
    strange = call.keys() - Call.__annotations__.keys()
    if strange:
        raise TypeError(f"no strategy takes '{min(strange)}'; all take {', '.join(Call.__annotations__)}")
    return {
        "batch": draw(st.sampled_from(list(call.get("batches", (2, 1, 3))))),
        "dtype": draw(st.sampled_from(list(call.get("dtypes", DTYPES)))),
        "layout": draw(st.sampled_from(list(call.get("layouts", LAYOUTS)))),
        "extreme": draw(st.booleans()),
        "seed": draw(seeds()),
    }
