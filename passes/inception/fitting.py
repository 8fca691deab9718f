r"""Kernels fitted to the data: least squares over some taps, and separable kernels by alternating least squares.

.. math:: \min_v (w - S v)^\top R (w - S v) \quad\Rightarrow\quad v = (S^\top R S)^{-1} S^\top R w

with R about the mean of the patches, since the bias takes what the mean makes of the rest. Plain truncation would be
right for white inputs only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from passes.positive import cholesky, ridged

if TYPE_CHECKING:
    from passes.inception.patches import Patches
    from passes.inception.supports import Support

_ROUNDS = 8
_CHUNK = 2**22


@dataclass(frozen=True)
class Fit:
    """The best kernels of one kind.

    Attributes:
        support: the kind.
        kernel: ``[C, *kernel]``, zeros outside of the support.
        sides: of separable kernels the factors ``[C, r, K1]`` and ``[C, r, K2]``.
        wrong: ``[C]``, the mean energy of the difference of the outputs, biases fitted.
        shift: ``[C]``, what the bias gains.
    """

    support: Support
    kernel: Tensor
    sides: tuple[Tensor, Tensor] | None
    wrong: Tensor
    shift: Tensor


def fits(weight: Tensor, patches: Patches, supports: Sequence[Support]) -> list[Fit]:
    """The best kernels of each kind.

    Args:
        weight: ``[C, *kernel]``, in float64.
        patches: of the input.
        supports: the kinds.
    """
    mean = patches.mean
    found: list[list[tuple[Tensor, ...]]] = [[] for _ in supports]
    for part, second in _parts(patches, len(weight)):
        centred = second - mean[part][:, :, None] * mean[part][:, None, :]
        for each, support in zip(found, supports, strict=True):
            each.append(_fit(weight[part], centred, support))
    results = []
    for each, support in zip(found, supports, strict=True):
        kernel, wrong, *sides = (torch.cat(parts) for parts in zip(*each, strict=True))
        shift = ((weight - kernel).flatten(1) * mean).sum(1)
        results.append(Fit(support, kernel, (sides[0], sides[1]) if sides else None, wrong, shift))
    return results


def energy(weight: Tensor, bias: Tensor | None, patches: Patches) -> Tensor:
    """``[C]``, the mean square of the outputs."""
    flat = weight.flatten(1)
    found = torch.cat([(flat[part, None] @ second @ flat[part, :, None]).flatten()
                       for part, second in _parts(patches, len(weight))])  # fmt: skip
    if bias is None:
        return found
    return found + 2 * bias * (flat * patches.mean).sum(1) + bias.square()


def _parts(patches: Patches, channels: int) -> Iterator[tuple[slice, Tensor]]:
    """Some channels at a time, with their products."""
    many = max(1, _CHUNK // patches.taps**2)
    for start in range(0, channels, many):
        part = slice(start, min(start + many, channels))
        yield part, patches.second(part)


def _fit(weight: Tensor, centred: Tensor, support: Support) -> tuple[Tensor, ...]:
    flat = weight.flatten(1)
    sides: tuple[Tensor, ...] = ()
    if support.mask is None:
        sides = _separable(weight, centred, support.rank)
        kernel = torch.einsum("cri,crj->cij", *sides)
    elif bool(support.mask.all()):
        return weight, torch.zeros_like(flat[:, 0])
    else:
        taps = support.mask.flatten().nonzero().flatten().to(flat.device)
        right = centred[:, taps] @ flat[:, :, None]
        kernel = torch.zeros_like(flat)
        kernel[:, taps] = solve(centred[:, taps][:, :, taps], right)[:, :, 0]
        kernel = kernel.reshape(weight.shape)
    left = flat - kernel.flatten(1)
    wrong = (left[:, None] @ centred @ left[:, :, None]).flatten().clamp_min(0)
    return kernel, wrong, *sides


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve ``[C, n, n]`` systems with positive matrices, which may be singular: taps that always read the same."""
    return torch.cholesky_solve(right, cholesky(ridged(matrix)))


def _separable(weight: Tensor, centred: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors ``[C, r, K1]``, ``[C, r, K2]`` of equal norms, from the singular vectors on."""
    channels, height, width = weight.shape
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    root = s[:, :rank].sqrt()
    left, right = u[:, :, :rank].transpose(1, 2) * root[:, :, None], vh[:, :rank] * root[:, :, None]
    products = centred.reshape(channels, height, width, height, width)
    wanted = torch.einsum("cijkl,ckl->cij", products, weight)
    for _ in range(_ROUNDS):
        right = _side(torch.einsum("cri,cijkl,csk->crjsl", left, products, left),
                      torch.einsum("cri,cij->crj", left, wanted))  # fmt: skip
        left = _side(torch.einsum("crj,cijkl,csl->crisk", right, products, right),
                     torch.einsum("crj,cij->cri", right, wanted))  # fmt: skip
    a, b = left.norm(dim=2, keepdim=True), right.norm(dim=2, keepdim=True)
    balance = torch.where((a > 0) & (b > 0), (b / a).sqrt(), 1.0)  # so that halves hold both
    return left * balance, right / balance


def _side(matrix: Tensor, right: Tensor) -> Tensor:
    channels, rank, count = right.shape
    return solve(matrix.reshape(channels, rank * count, -1), right.reshape(channels, -1, 1)).reshape(right.shape)
