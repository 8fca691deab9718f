"""The measures of filters once more, by loops, and comparisons of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rewrite.filter_quality import FilterQuality


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def sparsity_by_loops(weight: np.ndarray) -> float:
    outputs, inputs = weight.shape[:2]
    largest = max(abs(w) for w in weight.ravel())
    near = 0
    for o in range(outputs):
        for c in range(inputs):
            near += all(largest == 0 or abs(w) < 0.01 * largest for w in weight[o, c].ravel())
    return near / (outputs * inputs)


def entropy_by_loops(weight: np.ndarray, sparse: bool = True) -> float:
    """By the eigenvalues of the filters' covariance, summed filter by filter."""
    largest = abs(weight).max()
    filters_ = [weight[o, c].ravel() for o in range(weight.shape[0]) for c in range(weight.shape[1])]
    filters_ = [f for f in filters_ if sparse or abs(f).max() >= 0.01 * largest]
    mean = sum(filters_) / len(filters_)
    covariance = np.zeros((mean.size, mean.size))
    for f in filters_:
        covariance += np.outer(f - mean, f - mean)
    values = [max(v, 0.0) for v in np.linalg.eigvalsh(covariance)]
    return -sum(v / sum(values) * math.log10(v / sum(values)) for v in values if v > 0)


def orthogonality_by_loops(weight: np.ndarray) -> float:
    rows = [weight[o].ravel() for o in range(weight.shape[0])]
    total = 0.0
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
            total += abs((sum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0) - (i == j))
    return 1 - total / (len(rows) * (len(rows) - 1))


def assert_alike(found: FilterQuality, expected: FilterQuality, error: float) -> None:
    for name in ("sparsity", "entropy", "dense_entropy", "variety", "randomness", "orthogonality"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=error), name
