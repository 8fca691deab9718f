"""Norms whose statistics and parameters hide nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

from hypothesis import strategies as st
from torch import nn

from rewrite.testing.spec import Call, Draws, Layer, assign, drawn_call, either, some

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_EPS = (1e-5, 1e-3)


@dataclass(frozen=True, repr=False)
class _ChannelNorm(Layer):
    """A norm with one scale and one shift for each channel: dimension 1 of ``[N, channels, *sizes]``.

    Scales are of either sign, and some are zero.

    Attributes:
        channels: their number.
        affine: with ``weight`` and ``bias``.
        eps: as ``torch.nn`` takes it.
    """

    channels: int = 4
    affine: bool = True
    eps: float = 1e-5

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``[N, channels, *sizes]``."""
        return (self.batch, self.channels, *self.sizes)

    def taking(self, shape: Sequence[int]) -> Any:
        """For an input ``[N, C, *]``."""
        return replace(self, batch=shape[0], channels=shape[1], sizes=tuple(shape[2:]))


@dataclass(frozen=True, repr=False)
class BatchNormSpec(_ChannelNorm):
    """A batch norm with running statistics; variances are spread over the decades from ``1e-7`` to ``1e3``."""

    def build(self, draw: Draws) -> nn.Module:
        """An ``nn.BatchNorm1d``, ``2d`` or ``3d``."""
        norm = _BATCH_NORMS[len(self.sizes)](self.channels, eps=self.eps, affine=self.affine)
        assign(norm.running_mean, draw.normal(self.channels))
        assign(norm.running_var, 10 ** draw.uniform(-7, 3, self.channels))
        assign(norm.weight, draw.scale(self.channels))
        assign(norm.bias, draw.normal(self.channels))
        return norm


@dataclass(frozen=True, repr=False)
class GroupNormSpec(_ChannelNorm):
    """A group norm.

    Attributes:
        groups: their number, which divides that of the channels.
    """

    groups: int = 1

    def taking(self, shape: Sequence[int]) -> GroupNormSpec:
        """For an input ``[N, C, *]``; one group where their number does not divide C."""
        fitted: GroupNormSpec = super().taking(shape)
        return fitted if shape[1] % self.groups == 0 else replace(fitted, groups=1)

    def build(self, draw: Draws) -> nn.Module:
        """An ``nn.GroupNorm``."""
        norm = nn.GroupNorm(self.groups, self.channels, self.eps, self.affine)
        assign(norm.weight, draw.scale(self.channels))
        assign(norm.bias, draw.normal(self.channels))
        return norm


@dataclass(frozen=True, repr=False)
class LayerNormSpec(Layer):
    """A layer norm over the last dimensions of ``[N, *sizes, *shape]``.

    Attributes:
        shape: the dimensions that are normalised.
        affine: with ``weight``.
        bias: with ``bias``, where affine.
        eps: as ``nn.LayerNorm`` takes it.
    """

    shape: tuple[int, ...] = (4,)
    affine: bool = True
    bias: bool = True
    eps: float = 1e-5

    @property
    def input_shape(self) -> tuple[int, ...]:
        """``[N, *sizes, *shape]``."""
        return (self.batch, *self.sizes, *self.shape)

    def taking(self, shape: Sequence[int]) -> LayerNormSpec:
        """For an input of this shape, over as many dimensions as before, but not over the batch."""
        count = min(len(self.shape), len(shape) - 1)
        return replace(self, batch=shape[0], sizes=tuple(shape[1:-count]), shape=tuple(shape[-count:]))

    def build(self, draw: Draws) -> nn.Module:
        """An ``nn.LayerNorm``."""
        norm = nn.LayerNorm(self.shape, self.eps, self.affine, self.bias)
        assign(norm.weight, draw.scale(*self.shape))
        assign(norm.bias, draw.normal(*self.shape))
        return norm


@st.composite
def batch_norms(
    draw: st.DrawFn,
    /,
    *,
    dims: int | Collection[int] = (0, 1, 2, 3),
    channels: int | None = None,
    affine: bool | None = None,
    **call: Unpack[Call],
) -> BatchNormSpec:
    """Evaluated batch norms; ``norm.after(layer)`` and ``norm.before(layer)`` fit one to a drawn layer.

    Args:
        dims: how many dimensions the input has behind the channels, or which numbers of them.
        channels: their number, drawn where None.
        affine: with parameters or not; None for both.
        call: ``batches``, ``dtypes`` and ``layouts`` of the input.
    """
    sizes = tuple(draw(st.integers(1, 5)) for _ in range(some(draw, dims)))
    return BatchNormSpec(sizes, channels=channels or draw(st.integers(1, 6)), affine=either(draw, affine),
                         eps=draw(st.sampled_from(_EPS)), **drawn_call(draw, **call))  # fmt: skip


@st.composite
def group_norms(
    draw: st.DrawFn,
    /,
    *,
    dims: int | Collection[int] = (0, 1, 2, 3),
    groups: int | None = None,
    affine: bool | None = None,
    **call: Unpack[Call],
) -> GroupNormSpec:
    """Group norms, one group and one channel for each group among them; arguments as of :func:`batch_norms`."""
    sizes = tuple(draw(st.integers(1, 5)) for _ in range(some(draw, dims)))
    count = groups or draw(st.integers(1, 3))
    members = draw(st.integers(1 if math.prod(sizes) > 1 else 2, 3))  # torch refuses groups of a single value
    return GroupNormSpec(sizes, channels=count * members, groups=count, affine=either(draw, affine),
                         eps=draw(st.sampled_from(_EPS)), **drawn_call(draw, **call))  # fmt: skip


@st.composite
def layer_norms(
    draw: st.DrawFn,
    /,
    *,
    dims: int | Collection[int] = (0, 1, 2),
    normalized: int | Collection[int] = (1, 2),
    affine: bool | None = None,
    **call: Unpack[Call],
) -> LayerNormSpec:
    """Layer norms.

    Args:
        dims: how many dimensions stand between the batch and those that are normalised, or which numbers of them.
        normalized: over how many dimensions, likewise.
        affine: with parameters or not; None for both.
        call: ``batches``, ``dtypes`` and ``layouts`` of the input.
    """
    sizes = tuple(draw(st.integers(1, 5)) for _ in range(some(draw, dims)))
    shape = tuple(draw(st.integers(2, 6)) for _ in range(some(draw, normalized)))
    return LayerNormSpec(sizes, shape=shape, affine=either(draw, affine), bias=draw(st.booleans()),
                         eps=draw(st.sampled_from(_EPS)), **drawn_call(draw, **call))  # fmt: skip
