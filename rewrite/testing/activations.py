"""Activations, elementwise functions with their parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

from hypothesis import strategies as st
from torch import nn

from rewrite.testing.spec import Call, Draws, Layer, assign, drawn_call, some

_MADE: dict[str, Callable[[float], nn.Module]] = {
    "relu": lambda p: nn.ReLU(),
    "relu6": lambda p: nn.ReLU6(),
    "hardtanh": lambda p: nn.Hardtanh(-p, 2 * p),
    "leaky_relu": lambda p: nn.LeakyReLU(p / 4),
    "elu": lambda p: nn.ELU(p),
    "selu": lambda p: nn.SELU(),
    "celu": lambda p: nn.CELU(p),
    "sigmoid": lambda p: nn.Sigmoid(),
    "tanh": lambda p: nn.Tanh(),
    "softplus": lambda p: nn.Softplus(p),
    "hardsigmoid": lambda p: nn.Hardsigmoid(),
    "gelu": lambda p: nn.GELU(),
    "gelu_tanh": lambda p: nn.GELU("tanh"),
    "silu": lambda p: nn.SiLU(),
    "mish": lambda p: nn.Mish(),
    "hardswish": lambda p: nn.Hardswish(),
    "prelu": lambda p: nn.PReLU(),
    "identity": lambda p: nn.Identity(),
}

ACTIVATIONS = tuple(_MADE)
"""The kinds, by the names of torch; ``gelu_tanh`` is the approximation of ``gelu``."""

MONOTONE = ("relu", "relu6", "hardtanh", "leaky_relu", "elu", "selu", "celu", "sigmoid", "tanh", "softplus",
            "hardsigmoid", "identity")  # fmt: skip
"""Those that never fall."""


@dataclass(frozen=True, repr=False)
class ActivationSpec(Layer):
    """An activation over ``[N, channels, *sizes]``.

    Attributes:
        kind: one of :data:`ACTIVATIONS`.
        parameter: positive; the bound of ``hardtanh``, ``alpha`` of ``elu`` and ``celu``, ``beta`` of ``softplus``,
            four times the slope of ``leaky_relu``. Others have none.
        channels: their number; ``prelu`` has one slope for each, some of them negative.
    """

    kind: str = "relu"
    parameter: float = 1.0
    channels: int = 4

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``[N, channels, *sizes]``."""
        return (self.batch, self.channels, *self.sizes)

    def taking(self, shape: Sequence[int]) -> ActivationSpec:
        """For an input ``[N, C, *]``."""
        return replace(self, batch=shape[0], channels=shape[1], sizes=tuple(shape[2:]))

    def build(self, draw: Draws) -> nn.Module:
        """The module of ``torch.nn``."""
        if self.kind == "prelu":
            layer = nn.PReLU(self.channels)
            assign(layer.weight, draw.scale(self.channels))
            return layer
        return _MADE[self.kind](self.parameter)


@st.composite
def activations(
    draw: st.DrawFn,
    /,
    kinds: Collection[str] = ACTIVATIONS,
    *,
    dims: int | Collection[int] = (0, 1, 2),
    **call: Unpack[Call],
) -> ActivationSpec:
    """Activations.

    Args:
        kinds: of :data:`ACTIVATIONS`; see also :data:`MONOTONE`.
        dims: how many dimensions the input has behind the channels, or which numbers of them.
        call: ``batches``, ``dtypes`` and ``layouts`` of the input.
    """
    sizes = tuple(draw(st.integers(1, 5)) for _ in range(some(draw, dims)))
    kind, parameter = draw(st.sampled_from(list(kinds))), draw(st.sampled_from([1.0, 0.5, 2.0]))
    return ActivationSpec(sizes, kind=kind, parameter=parameter, channels=draw(st.integers(1, 6)),
                          **drawn_call(draw, **call))  # fmt: skip
