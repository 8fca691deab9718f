"""The weights of a convolution as a kernel wants them, and the geometry that it is called with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from codegen.native import operators
from rewrite.winograd import POINTS, SPACING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_CHANNELS = 16
"""Vectors of weights are filled up to a multiple of so many."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of our own with its weights.

    Attributes:
        kind: one of :data:`codegen.native.operators.KINDS`.
        packed: the weights in the kernel's order.
        bias: ``[O]`` or None.
        geometry: as operators take it.
    """

    kind: str
    packed: Tensor
    bias: Tensor | None
    geometry: tuple[int, ...]

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The result for an image with channels last, or for rows."""
        return self.operator(x, self.packed, self.bias, residual, list(self.geometry))

    def leaving(self) -> Kernel:
        """The kernel for a result that leaves the program."""
        return replace(self, geometry=(*self.geometry[:-1], 1))

    @property
    def operator(self) -> Callable[..., Tensor]:
        """What is called."""
        return operators.operator(self.kind)


def geometry(
    result: Sequence[int], kernel: Sequence[int], stride: Sequence[int], low: Sequence[int], dilation: Sequence[int],
    activation: str, groups: int = 1, leaves: bool = False,
) -> tuple[int, ...]:  # fmt: skip
    """The numbers that an operator takes.

    Args:
        result: ``[N, O, H, W]``.
        kernel, stride, dilation: of rows and columns.
        low: the zeros above and to the left.
        activation: one of :data:`codegen.native.operators.ACTIVATIONS`.
        groups: of the channels.
        leaves: whether callers get the result, and may do to its memory what they can do to torch's.
    """
    number = operators.ACTIVATIONS.index(activation)
    return (*result[1:], *kernel, *stride, *low, *dilation, groups, number, int(leaves))


def packed_dense(weight: Tensor, groups: int = 1) -> Tensor:
    """``[O, C / groups, kh, kw]`` as a matrix ``[C / groups, O / groups]`` for each tap, packed, for each group."""
    taps = weight.shape[2] * weight.shape[3]
    matrices = [part.permute(2, 3, 1, 0).reshape(taps, part.shape[1], part.shape[0]) for part in weight.chunk(groups)]
    return torch.cat([operators.pack(one) for one in matrices])


def packed_matrix(weight: Tensor) -> Tensor:
    """``[C, O]``, packed."""
    return operators.pack(weight[None])


def packed_depthwise(weight: Tensor) -> Tensor:
    """``[C, 1, kh, kw]`` as ``[taps, C]``, filled up with zeros."""
    return filled(weight.reshape(weight.shape[0], -1).t())


def filled(rows: Tensor) -> Tensor:
    """``[N, C]`` with zeros behind each row, up to a multiple of 16."""
    return F.pad(rows, (0, -rows.shape[1] % _CHANNELS)).contiguous()


def packed_spectrum(spectrum: Tensor) -> Tensor:
    """``[6, 6, C, O]`` of :class:`~rewrite.winograd.WinogradConvolution` as packed matrices, one behind the other.

    The kernel evaluates polynomials with whole coefficients, which are too large by a factor for each point.
    """
    points = SPACING * torch.arange(-2, 3, dtype=torch.float64)
    apart = points[:, None] - points[None, :] + torch.eye(len(points), dtype=torch.float64)
    factor = torch.cat([apart.prod(1), torch.ones(1, dtype=torch.float64)])
    scaled = (spectrum.double() / (factor[:, None] * factor)[..., None, None]).to(spectrum.dtype)
    return torch.cat([operators.pack(matrix[None]) for matrix in scaled.reshape(POINTS * POINTS, *spectrum.shape[2:])])
