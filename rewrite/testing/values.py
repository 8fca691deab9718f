"""Tensors as specifications: shape, dtype, memory layout and what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

LAYOUTS = ("contiguous", "channels_last", "sliced")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Printed:
    """Prints as a constructor call that names the fields which differ from their defaults."""

    def __repr__(self) -> str:
        shown = []
        for spec in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, spec.name)
            if spec.default is dataclasses.MISSING or value != spec.default:
                shown.append(f"{spec.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The same in reports of Hypothesis, which would show every field."""
        printer.text(repr(self))


@dataclass(frozen=True, repr=False)
class Values(Printed):
    """A tensor of normal numbers.

    Attributes:
        shape: its shape.
        dtype: a floating dtype.
        layout: ``"contiguous"``; ``"channels_last"`` where the tensor has four or five dimensions, contiguous
            otherwise; ``"sliced"``, a part of a larger tensor, so that it is not contiguous.
        extreme: a quarter of the numbers are zeros of both signs, denormals, and 1e4 of both signs.
        seed: chooses the numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    extreme: bool = False
    seed: int = 0

    def tensor(self) -> Tensor:
        """The tensor, new at each call, always with the same values."""
        generator = torch.Generator().manual_seed(self.seed)
        numbers = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        if self.extreme:
            tiny = torch.finfo(self.dtype).tiny / 4
            kinds = torch.tensor([0.0, -0.0, tiny, -tiny, 1e4, -1e4], dtype=torch.float64)
            chosen = kinds[torch.randint(len(kinds), self.shape, generator=generator)]
            numbers = torch.where(torch.rand(self.shape, generator=generator) < 0.25, chosen, numbers)
        return laid_out(numbers.to(self.dtype), self.layout)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in a memory layout, one of :data:`LAYOUTS`."""
    if layout == "channels_last" and tensor.dim() in (4, 5):
        return tensor.contiguous(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)
    if layout == "sliced" and tensor.dim() > 0:
        return F.pad(tensor, (2, 1))[..., 2:-1]
    return tensor


@st.composite
def tensors(
    draw: st.DrawFn,
    /,
    shape: Sequence[int],
    *,
    dtypes: Collection[torch.dtype] = DTYPES,
    layouts: Collection[str] = LAYOUTS,
) -> Values:
    """Tensors of one shape: dtypes, layouts, normal and extreme numbers."""
    return Values(tuple(shape), draw(st.sampled_from(list(dtypes))), draw(st.sampled_from(list(layouts))),
                  draw(st.booleans()), draw(seeds()))  # fmt: skip


def seeds() -> st.SearchStrategy[int]:
    """Seeds of random numbers."""
    return st.integers(0, 2**16)
