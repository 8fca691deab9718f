"""Values for the boundary of a match: random ones that respect the facts, and stacked ones that show extremes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from rewrite import compat, evaluate
from rewrite.verify.facts import Fact, Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.fx import Node

    from rewrite.verify.sizes import Batch, Shrinkage

Layout = Literal["contiguous", "channels_last", "sliced"]

# A prime length: a tensor that is larger than the pool repeats it, and no two of its rows are then equal.
_POOL = 1048583


@lru_cache(maxsize=2)
def _pool(kind: Literal["normal", "uniform"]) -> Tensor:
    generator = torch.Generator().manual_seed(20)
    draw = torch.randn if kind == "normal" else torch.rand
    return draw(_POOL, dtype=torch.float64, generator=generator)


class Source:
    """Random numbers out of a pool that is drawn once; equal seeds give equal numbers."""

    def __init__(self, seed: int):
        self._start = seed * 7919 % _POOL

    def _take(self, kind: Literal["normal", "uniform"], shape: Sequence[int]) -> Tensor:
        pool, count, done = _pool(kind), math.prod(shape), 0
        taken = torch.empty(count, dtype=torch.float64)
        while done < count:
            part = pool[self._start : self._start + count - done]
            taken[done : done + len(part)] = part
            done += len(part)
            self._start = (self._start + len(part)) % _POOL
        self._start = (self._start + 1009) % _POOL
        return taken.reshape(tuple(shape))

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Float64, zero mean and unit variance."""
        return self._take("normal", shape)

    def uniform(self, shape: Sequence[int], low: float, high: float) -> Tensor:
        """Float64 in ``[low, high)``."""
        return self._take("uniform", shape) * (high - low) + low

    def of(self, fact: Fact, shape: Sequence[int]) -> Tensor:
        """Float64 values that respect a fact."""
        if fact.role == Role.SCALE:
            sign = self.normal(shape).sign_()
            return self.uniform(shape, 0.5, 1.5) * torch.where(sign == 0, 1.0, sign)
        if fact.role == Role.KERNEL:
            return self.normal(shape).div_(math.sqrt(fact.fan_in))
        if fact.role == Role.UNIT:
            return self.uniform(shape, 0.05, 0.95)
        if fact.role == Role.POSITIVE:
            return self.uniform(shape, 0.3, 2.0)
        return self.normal(shape)

    def permuted(self, tensor: Tensor) -> Tensor:
        """The elements of a tensor in another order."""
        order = self.uniform((tensor.numel(),), 0, 1).argsort().to(tensor.device)
        return tensor.flatten()[order].reshape(tensor.shape)


@dataclass(frozen=True)
class Draw:
    """One way to fill the boundary.

    Attributes:
        dtype: of all floating values, or None for the recorded ones.
        batch: the number for symbolic batch sizes.
        layout: of activations, and of four- and five-dimensional weights; ``"sliced"`` is a part of a larger tensor.
        real: constants have their own values.
        stacked: activations show extremes instead of normal values.
        odd: spatial sizes are odd where they shrink, otherwise even.
        seed: chooses the numbers.
    """

    dtype: torch.dtype | None
    batch: int
    layout: Layout = "contiguous"
    real: bool = False
    stacked: bool = False
    odd: bool = True
    seed: int = 1

    def __str__(self) -> str:
        dtype = "the recorded dtypes" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        weights = "real" if self.real else "random"
        inputs = "extreme" if self.stacked else "normal"
        return f"{weights} weights, {inputs} inputs, {dtype}, {self.layout}, batch {self.batch}"


def boundary_values(
    draw: Draw,
    batch: Batch,
    shrinkage: Shrinkage | None,
    known: Mapping[Node, Fact],
    constants: Mapping[Node, Any],
) -> dict[Node, Any]:
    """A value for each boundary node.

    Args:
        draw: what to draw.
        batch: numbers for symbols.
        shrinkage: smaller sizes for activations.
        known: the boundary nodes and what is known of them.
        constants: those of them that are constants, with their values, or None for a value that is not needed.

    Raises:
        UndeterminedSizeError: a size has no number.
    """
    source = Source(draw.seed)
    values: dict[Node, Any] = {}
    for node, fact in known.items():
        if node in constants:
            values[node] = _constant(draw, source, fact, node.meta["val"], constants[node])
        else:
            values[node] = compat.tree_map(
                lambda leaf, fact=fact: _activation(draw, source, fact, leaf, batch, shrinkage), node.meta["val"]
            )
    return values


def _constant(draw: Draw, source: Source, fact: Fact, recorded: Any, real: Any) -> Any:
    if not isinstance(recorded, Tensor):
        return compat.tree_map(
            lambda leaf: leaf.to(_dtype(draw, leaf.dtype)) if isinstance(leaf, Tensor) and _is_floating(leaf) else leaf,
            real,
        )
    if not _is_floating(recorded):
        # an index table, a mask: other values would be no table
        return real if draw.real else source.permuted(real)
    if draw.real:
        return real.to(_dtype(draw, real.dtype))
    drawn = _floating(source, fact, tuple(int(size) for size in recorded.shape), recorded.is_complex())
    return _laid_out(drawn.to(_dtype(draw, recorded.dtype)).to(recorded.device), draw.layout, weight=True)


def _activation(
    draw: Draw, source: Source, fact: Fact, recorded: Any, batch: Batch, shrinkage: Shrinkage | None
) -> Any:
    if not isinstance(recorded, Tensor):
        return batch.concrete(recorded)
    shape = tuple(batch.concrete(size) for size in recorded.shape)
    if shrinkage is not None:
        shape = shrinkage.apply(shape, [isinstance(size, int) for size in recorded.shape])
    if recorded.dtype == torch.bool:
        drawn = source.uniform(shape, 0, 1) < 0.5
    elif not _is_floating(recorded):
        drawn = source.uniform(shape, 0, max(1, fact.bound)).to(recorded.dtype)
    else:
        drawn = _floating(source, fact, shape, recorded.is_complex())
        if draw.stacked and fact.role <= Role.SCALE and not recorded.is_complex():
            drawn = stack_extremes(drawn) if fact.role == Role.PLAIN else drawn
        drawn = drawn.to(_dtype(draw, recorded.dtype))
    return _laid_out(drawn.to(recorded.device), draw.layout, weight=False)


def _is_floating(value: Tensor) -> bool:
    return value.dtype.is_floating_point or value.dtype.is_complex


def _floating(source: Source, fact: Fact, shape: tuple[int, ...], complex_: bool) -> Tensor:
    if complex_:
        return torch.complex(source.of(fact, shape), source.of(fact, shape))
    return source.of(fact, shape)


def _dtype(draw: Draw, recorded: torch.dtype) -> torch.dtype:
    if draw.dtype is None:
        return recorded
    if recorded.is_complex:
        return evaluate.lift_dtype(recorded) if draw.dtype == torch.float64 else recorded
    return draw.dtype


def _laid_out(tensor: Tensor, layout: Layout, weight: bool) -> Tensor:
    if layout == "channels_last" and tensor.dim() in (4, 5):
        return tensor.contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)
    if layout == "sliced" and not weight and tensor.dim() >= 2:
        padded = torch.nn.functional.pad(tensor, (2, 1, 1, 0))
        return padded[..., 1:, 2:-1]
    return tensor


def stack_extremes(normal: Tensor) -> Tensor:
    """One tensor whose channels and rows hold every kind of value, from values of zero mean and unit variance.

    Normal, shifted by three, a single one, zeros, a thousand times as large, negative. Which row of a channel holds
    which kind moves on from channel to channel, so each kind meets each channel and each border.
    """
    if normal.dim() < 2 or normal.numel() == 0:
        return normal
    kinds = torch.stack([normal, normal + 3, _impulses(normal), torch.zeros_like(normal), 1e3 * normal, -normal.abs()])
    which = torch.arange(normal.shape[1]).reshape(-1, *[1] * (normal.dim() - 2))
    if normal.dim() > 2:
        rows = torch.arange(normal.shape[2]) // _block(normal)
        which = which + rows.reshape(-1, *[1] * (normal.dim() - 3))
    return kinds.gather(0, (which % len(kinds)).expand(1, *normal.shape)).squeeze(0)


def _block(tensor: Tensor) -> int:
    """How many neighbouring rows hold the same kind."""
    return -(-tensor.shape[2] // 6)


def _impulses(normal: Tensor) -> Tensor:
    """Zeros with a single one in each row; where a row is one element, one in each block of them."""
    impulse = torch.zeros_like(normal)
    if normal.dim() == 2:
        impulse.fill_(1)
    elif normal.dim() == 3:
        impulse[..., :: _block(normal)] = 1
    else:
        impulse[..., normal.shape[-1] // 2] = 1
    return impulse
