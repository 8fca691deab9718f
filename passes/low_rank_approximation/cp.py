r"""Canonical polyadic chains: pointwise, depthwise along each axis, pointwise, by alternating least squares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from passes.low_rank_approximation.chain import Fit, Shape, Step, Steps
from passes.low_rank_approximation.forms import fitted
from passes.low_rank_approximation.regression import Metric, Projection, Regression, leading, product
from passes.positive import cholesky, ridged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from passes.low_rank_approximation.chain import Pick

LARGEST = 2**20
"""Elements of a kernel up to which it is fitted: each rank takes tens of passes over them."""

ROUNDS = 40
"""Passes over all factors for each rank, at most."""

SLOW = 1e-3
"""Passes end where one leaves hardly less wrong than the one before, as a part of that."""

GROUPS = 4
"""Groups up to which kernels are fitted, one after the other."""

SOFT = 1e-4
"""The ridge here: what the data hardly shows is fitted a little too, so that terms stay of one size."""

_AXES = ("column", "row", "depth")


def cp(metric: Metric, shape: Shape, pick: Pick) -> Iterator[Fit]:
    r"""A pointwise layer, a depthwise one along each axis, and another pointwise one.

    .. math:: W_{o,c,i,j} = \sum_{r=1}^{R} A_{o,r} B_{r,c} V_{r,i} H_{r,j}

    (Lebedev et al., Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition, 2015). Alternating
    least squares under moments that are taken for a product of those of channels and of each axis, from the rank-one
    parts of the largest terms of what the lower rank before left; then A by least squares under the moments as they
    are. No optimum is certain. Only kernels of up to 2^20 elements in up to four groups are fitted, with ranks up to
    the number of channels.
    """
    axes = [axis for axis, size in enumerate(shape.kernel) if size > 1]
    if not axes or metric.flat.numel() > LARGEST or shape.groups > GROUPS:
        return
    groups, outputs, _ = metric.flat.shape
    # along axes of one tap there may be strides
    moved = [tuple(sorted({axis, *(a for a, size in enumerate(shape.kernel) if size == 1 and axis == axes[0])}))
             for axis in axes]  # fmt: skip

    def chain(rank: int) -> Steps:
        inner = [Step(_AXES[axis], rank, rank, along, True) for axis, along in zip(axes, moved, strict=True)]
        return Step("narrow", shape.inputs, rank), *inner, Step("wide", rank, outputs)

    ranks = pick(max(outputs, shape.inputs), chain)
    if not ranks:
        return
    sizes = metric.sizes
    whitened = [_roots(metric, (0,)), *(_roots(metric, (1 + axis,)) for axis in axes)]
    found: list[list[Tensor]] = [[] for _ in range(groups)]
    for rank in ranks:
        sides = []
        for group in range(groups):
            roots = [root[group] for root in whitened]
            tensor = metric.weight[group].reshape(outputs, *(root.shape[0] for root in roots))
            found[group] = _alternate(_under(tensor, roots), found[group], rank)
            sides.append([torch.linalg.solve_triangular(root.mT, factor, upper=True)
                          for root, factor in zip(roots, found[group][1:], strict=True)])  # fmt: skip
        parts = [torch.stack(each) for each in zip(*sides, strict=True)]
        combined = torch.stack([product(each) for each in sides]).mT
        regression = Regression(metric, Projection(combined, sizes, tuple(range(len(sizes)))))
        wide, wrong = regression.solve(rank)
        weights = [*_kernels(shape, axes, parts), wide.reshape(*wide.shape, *[1] * len(shape.kernel))]
        yield fitted(f"cp {rank}", metric, chain(rank), weights, regression.shift(wide), wrong)


def _kernels(shape: Shape, axes: list[int], parts: list[Tensor]) -> list[Tensor]:
    """The pointwise kernels ``[groups, R, C, 1, ...]``, and the depthwise ones ``[groups, R, 1, *kernel]``."""
    narrow, *rest = (part.mT for part in parts)
    ones = [1] * len(shape.kernel)
    found = [narrow.reshape(*narrow.shape, *ones)]
    for axis, part in zip(axes, rest, strict=True):
        kernel = list(ones)
        kernel[axis] = shape.kernel[axis]
        found.append(part.reshape(*part.shape[:2], 1, *kernel))
    return found


def _roots(metric: Metric, axes: tuple[int, ...]) -> Tensor:
    """``[groups, n, n]``, lower factors of the moments along one axis, of a mean diagonal of one."""
    second = metric.known.within(metric.sizes, axes)
    level = second.diagonal(dim1=1, dim2=2).mean(1)
    second = second / torch.where(level > 0, level, 1.0)[:, None, None]
    return cholesky(ridged(second, SOFT))


def _under(tensor: Tensor, roots: list[Tensor]) -> Tensor:
    """A kernel ``[O, C, *taps]`` in coordinates in which all of what it reads is alike."""
    for d, root in enumerate(roots, start=1):
        tensor = (tensor.movedim(d, -1) @ root).movedim(-1, d)
    return tensor


def _alternate(tensor: Tensor, factors: list[Tensor], rank: int) -> list[Tensor]:
    """Factors ``[n_i, R]`` of a tensor, from those of a lower rank."""
    factors = _started(tensor, factors, rank)
    factors = [factors[0], *(factor / factor.norm(dim=0).clamp_min(1e-150) for factor in factors[1:])]
    whole = before = float(tensor.square().sum())
    for _ in range(ROUNDS):
        wrong = whole - _round(tensor, factors)
        if before - wrong <= SLOW * before:
            break
        before = wrong
    return factors


def _round(tensor: Tensor, factors: list[Tensor]) -> float:
    """Each factor once by least squares, in place, the outputs last; the energy that is explained."""
    outputs, inputs = tensor.shape[:2]
    taps = tuple(tensor.shape[2:])
    grams = [factor.mT @ factor for factor in factors]
    over = (factors[0].mT @ tensor.reshape(outputs, -1)).reshape(-1, inputs, *taps)  # [R, C, *taps]
    behind = product(factors[2:])
    right = torch.einsum("rcp,pr->cr", over.flatten(2), behind)
    _solve(factors, grams, 1, right)
    rest = torch.einsum("rcp,cr->rp", over.flatten(2), factors[1]).reshape(-1, *taps)
    for d in range(2, len(factors)):
        left = rest
        for other in (each for each in range(2, len(factors)) if each != d):
            beside = [1] * len(taps)
            beside[other - 2] = -1
            left = (left * factors[other].mT.reshape(len(rest), *beside)).sum(other - 1, keepdim=True)
        _solve(factors, grams, d, left.flatten(1).mT)
    right = tensor.reshape(outputs, -1) @ product(factors[1:])
    _solve(factors, grams, 0, right)
    return float((factors[0] * right).sum())


def _solve(factors: list[Tensor], grams: list[Tensor], d: int, right: Tensor) -> None:
    gram = torch.ones_like(grams[0])
    for other, each in enumerate(grams):
        if other != d:
            gram = gram * each
    found = torch.cholesky_solve(right.mT, cholesky(ridged(gram[None]))[0]).mT
    if d:  # the sizes of terms are the outputs'
        found = found / found.norm(dim=0).clamp_min(1e-150)
    factors[d], grams[d] = found, found.mT @ found


def _started(tensor: Tensor, factors: list[Tensor], rank: int) -> list[Tensor]:
    """Terms of a lower rank, and the rank-one parts of the largest terms of what these leave."""
    left = tensor
    if factors:
        left = tensor - (factors[0] @ product(factors[1:]).mT).reshape(tensor.shape)
    many = rank - (factors[0].shape[1] if factors else 0)
    more = _terms(left, many)
    return [torch.cat([a, b], 1) for a, b in zip(factors, more, strict=True)] if factors else more


def _terms(tensor: Tensor, many: int) -> list[Tensor]:
    """The rank-one parts of the largest terms of the channels and first axis against the rest; random ones beyond."""
    moved = tensor.movedim(0, 2)  # [C, first, O, others]
    matrix = moved.flatten(2).flatten(0, 1)
    _, basis = leading((matrix @ matrix.mT)[None])
    basis = basis[0, :, : min(many, *matrix.shape)]
    inputs, first = _rank_one(basis.mT.reshape(-1, *moved.shape[:2]))
    outputs, *others = _rank_one((basis.mT @ matrix).reshape(-1, *moved.shape[2:]))
    factors = [outputs, inputs, first, *others]
    lacking = many - basis.shape[1]
    if lacking > 0:
        generator = torch.Generator().manual_seed(many)
        for d, factor in enumerate(factors):
            more = torch.randn(len(factor), lacking, generator=generator, dtype=factor.dtype).to(factor.device)
            size = 0.1 * factor.norm(dim=0).mean() if d == 0 else 1.0
            factors[d] = torch.cat([factor, more / more.norm(dim=0) * size], 1)
    return factors


def _rank_one(terms: Tensor) -> list[Tensor]:
    """For each of ``[R, n_1, n_2, ...]`` vectors, ``[n_i, R]``, of unit length but for the first ones."""
    if terms.dim() == 2:
        return [terms.mT]
    u, s, vh = torch.linalg.svd(terms.flatten(2), full_matrices=False)
    rest = _rank_one(vh[:, 0].reshape(-1, *terms.shape[2:]))
    return [(u[:, :, 0] * s[:, :1]).mT, *rest]
