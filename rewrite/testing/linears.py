"""Linear layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from hypothesis import strategies as st
from torch import nn

from rewrite.testing.spec import Call, Draws, Layer, assign, drawn_call, either, some


@dataclass(frozen=True, repr=False)
class LinearSpec(Layer):
    """A linear layer over the last dimension and its input ``[N, *sizes, in_features]``."""

    in_features: int = 4
    out_features: int = 4
    bias: bool = True

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``[N, *sizes, in_features]``."""
        return (self.batch, *self.sizes, self.in_features)

    def taking(self, shape: Sequence[int]) -> LinearSpec:
        """For an input ``[N, *, C]``."""
        return replace(self, batch=shape[0], sizes=tuple(shape[1:-1]), in_features=shape[-1])

    def build(self, draw: Draws) -> nn.Module:
        """An ``nn.Linear``."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias)
        assign(layer.weight, draw.kernel(layer.weight.shape, self.in_features))
        assign(layer.bias, draw.normal(self.out_features))
        return layer


@st.composite
def linears(
    draw: st.DrawFn,
    /,
    *,
    dims: int | Collection[int] = (0, 1, 2),
    bias: bool | None = None,
    in_features: int | None = None,
    out_features: int | None = None,
    **call: Unpack[Call],
) -> LinearSpec:
    """Linear layers.

    Args:
        dims: how many dimensions the input has between batch and features, or which numbers of them.
        bias: with a bias or not; None for both.
        in_features, out_features: their numbers, drawn where None.
        call: ``batches``, ``dtypes`` and ``layouts`` of the input.
    """
    sizes = tuple(draw(st.integers(1, 5)) for _ in range(some(draw, dims)))
    inputs, outputs = in_features or draw(st.integers(1, 7)), out_features or draw(st.integers(1, 7))
    return LinearSpec(
        sizes, in_features=inputs, out_features=outputs, bias=either(draw, bias), **drawn_call(draw, **call)
    )
