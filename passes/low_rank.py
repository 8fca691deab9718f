r"""Kernels of low numerical rank, factorised by the singular value decomposition.

.. math:: M = U \Sigma V^\top \approx (U_r \Sigma_r^{1/2})\,(\Sigma_r^{1/2} V_r^\top)

A kernel that is of rank r in real arithmetic is that in its dtype only up to the rounding of its elements. So a rank
counts as reached where what is left out is no more than a few roundings of the kernel, for each output channel.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch

from passes import affine
from rewrite.ops import value

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.fx import Node

    from rewrite.fragment import Builder

aten = torch.ops.aten

ROUNDINGS = 4
"""How many unit roundoffs of an output channel's norm may be left out. A rounded kernel leaves out half of one."""


def numerical_rank(matrices: Tensor, dtype: torch.dtype, by_output: Callable[[Tensor], Tensor]) -> int:
    """The smallest rank that reaches each of some matrices, at least 1.

    Args:
        matrices: ``[B, m, n]``, finite.
        dtype: what their elements were rounded to.
        by_output: adds up squares ``[B, r, n]`` that belong to one output channel, to ``[r, outputs]``.
    """
    matrices, full = matrices.double(), min(matrices.shape[1:])
    unit = ROUNDINGS * torch.finfo(dtype).eps / 2 + full**0.5 * torch.finfo(torch.float64).eps
    if _certainly_full(matrices, unit):
        return full
    _, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    energy = by_output((vh * s.unsqueeze(2)).square())
    left_out = energy.flip(0).cumsum(0).flip(0)  # by rank, from none
    reached = (left_out <= unit**2 * left_out[:1]).all(1)
    return max(1, int((~reached).sum()))


def _certainly_full(matrices: Tensor, unit: float) -> bool:
    """Whether the smallest singular value of each matrix is more than may be left out, as of most kernels.

    What is too much of all outputs together is too much of one of them. A Cholesky decomposition tells in a twentieth
    of the time of a singular value decomposition.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.transpose(1, 2)
    gram = wide @ wide.transpose(1, 2)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    # the squares have rounding errors too
    least = max(2 * unit**2, len(gram[0]) * torch.finfo(torch.float64).eps) * diagonal.sum(1, keepdim=True)
    diagonal.sub_(least)
    return bool((torch.linalg.cholesky_ex(gram).info == 0).all()) and bool((least > 0).all())


def factors(g: Builder, matrices: Node, rank: int, dtype: torch.dtype) -> tuple[Node, Node]:
    """Weight algebra: ``[B, m, r]`` and ``[B, r, n]`` whose product is ``matrices``, of equal norms term by term."""
    double = g(aten._to_copy.default, matrices, dtype=torch.float64)
    decomposed = g(aten.linalg_svd.default, double, False)
    u, s, vh = (g(operator.getitem, decomposed, i) for i in range(3))
    if rank < int(value(s).shape[-1]):
        u, s, vh = (g(aten.slice.Tensor, part, dim, 0, rank) for part, dim in ((u, 2), (s, 1), (vh, 1)))
    root = g(aten.sqrt.default, s)
    left = g(aten.mul.Tensor, u, g(aten.unsqueeze.default, root, 1))
    right = g(aten.mul.Tensor, vh, g(aten.unsqueeze.default, root, 2))
    return affine.cast(g, left, dtype), affine.cast(g, right, dtype)
