"""Matrices of second moments, which are positive but for rounding, or for features that tell nothing: made so."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-9
"""What is added to the diagonal at least, relative to its mean."""


def ridged(second: Tensor, ridge: float = RIDGE) -> Tensor:
    """A covariance ``[groups, n, n]`` with a ridge, relative to the mean of its diagonal."""
    level = second.diagonal(dim1=1, dim2=2).mean(1)
    eye = torch.eye(second.shape[1], dtype=second.dtype, device=second.device)
    return second + torch.where(level > 0, level * ridge, 1.0)[:, None, None] * eye


def cholesky(matrix: Tensor) -> Tensor:
    """The lower factor of ``[groups, n, n]``, positive but for rounding; more is added to the diagonal where it has to.

    Products that are kept in float32 are off by its roundoff.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    level = matrix.diagonal(dim1=1, dim2=2).abs().mean(1).clamp_min(1e-250)
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    for power in range(-12, 1, 2):
        if not bool(info.any()):
            break
        added = torch.where(info > 0, level * 10.0**power, 0.0)
        factor, info = torch.linalg.cholesky_ex(matrix + added[:, None, None] * eye)
    return factor
