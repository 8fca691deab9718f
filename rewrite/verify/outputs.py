"""Judging the outputs of a whole model, channel by channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import evaluate
from rewrite.distance import farthest
from rewrite.verify.rounding import Arithmetic

if TYPE_CHECKING:
    from collections.abc import Sequence

ALLOWED = 8.0
"""How much farther than the model the program may be from the truth, in a channel."""

LAST_DIGIT = 2.0
"""Unit roundoffs, relative to a channel's largest value, that count as the model's error where it is less by chance."""

TRUST = 8.0
"""How far the model may be from the float64 reference, in roots of the unit roundoff, before that is no reference."""

NOTHING_FINITE = "every output of the model is infinite or NaN on the example; pass one with finite results"
"""The failure where there is nothing to compare, of which no rewrite is to blame."""


@dataclass(frozen=True)
class Judgement:
    """What the comparison of a model's outputs found.

    Attributes:
        failure: where and by how much they differ; '' where they agree.
        error: the largest error as a fraction of what is allowed.
        calls: how many calls of the model it rests on.
        note: what it does not cover.
        distances: how far the program and the model are from float64, as :attr:`rewrite.verdict.Verdict.distances`.
    """

    failure: str
    error: float
    calls: int
    note: str
    distances: tuple[float, float] | None = None


@dataclass(frozen=True)
class Sample:
    """One call of the model.

    Attributes:
        outputs: flat, as the model computed them.
        truths: the same in float64, or None where there is no such reference.
    """

    outputs: Sequence[Any]
    truths: Sequence[Any] | None

    def output(self, i: int) -> tuple[Any, Any]:
        """One output and its truth."""
        return self.outputs[i], None if self.truths is None else self.truths[i]


def judge(model: Sample, news: Sequence[Any], nudged: Sequence[Sample], notes: Sequence[str]) -> Judgement:
    """Compare flat outputs.

    Args:
        model: the model on the example.
        news: the program's outputs, of the same shapes and dtypes.
        nudged: the model on inputs that differ in the last digit. As far as it is from the truth there, or moves, the
            program may be from the truth.
        notes: what the verdict does not cover, as far as it is known.
    """
    notes, calls = list(notes), 1 + len(nudged)
    error, finite = 0.0, False
    for i, new in enumerate(news):
        old, truth = model.output(i)
        others = [sample.output(i) for sample in nudged]
        if not isinstance(old, Tensor) or old.numel() == 0:
            continue
        if _has_fractions(old):
            if not _trusted(old, truth):
                if truth is not None:
                    notes.append(f"output {i} is another in float64, so the model itself is the reference")
                truth, others = None, [(other, None) for other, _ in others]
            finding = _channels(i, old, new, truth, others)
        else:
            failure, ties = _discrete(i, old, new, [truth, *(value for pair in others for value in pair)])
            if ties:
                notes.append(f"output {i} differs in {ties} near ties")
            finding = _Finding(failure, finite=False)
        if not finding.finite and not finding.failure and _has_fractions(old):
            notes.append(f"output {i} is infinite or NaN on the example, which shows nothing")
        error, finite = max(error, finding.error), finite or finding.finite
        if finding.failure:
            return Judgement(finding.failure, error, calls, "")
    if not finite and any(_has_fractions(old) and old.numel() for old in model.outputs):
        return Judgement(NOTHING_FINITE, 0.0, calls, "")
    return Judgement("", error, calls, "; ".join(dict.fromkeys(notes)), _distances(model, news))


def _distances(model: Sample, news: Sequence[Any]) -> tuple[float, float] | None:
    """The largest over all outputs that float64 is a reference of; None where it is of none."""
    if model.truths is None:
        return None
    trusted = [i for i, old in enumerate(model.outputs) if _has_fractions(old) and _trusted(*model.output(i))]
    truths = [model.truths[i] for i in trusted]
    new, old = (farthest([values[i] for i in trusted], truths) for values in (news, model.outputs))
    return None if new is None or old is None else (new, old)


def _has_fractions(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


@dataclass(frozen=True)
class _Finding:
    failure: str = ""
    error: float = 0.0
    finite: bool = True


def _trusted(old: Tensor, truth: Any) -> bool:
    """Whether the graph in float64 means what the model does: one may ask for the smallest float32, or round."""
    if not isinstance(truth, Tensor) or truth.shape != old.shape:
        return False
    known = torch.isfinite(truth) & torch.isfinite(old)
    if not bool(known.any()):
        return True
    error, scale = float((evaluate.lift(old) - truth)[known].abs().max()), float(truth[known].abs().max())
    return error <= TRUST * math.sqrt(Arithmetic.of(old.dtype).rounding) * scale


def _channels(
    i: int, old: Tensor, new: Tensor, truth: Tensor | None, others: Sequence[tuple[Tensor, Tensor | None]]
) -> _Finding:
    unit = Arithmetic.of(old.dtype).rounding
    old, new = evaluate.lift(old), evaluate.lift(new)
    truth = old if truth is None else truth
    known = torch.isfinite(truth) & torch.isfinite(old)
    lost = known & ~torch.isfinite(new)
    if bool(lost.any()):
        count = int(lost.sum())
        return _Finding(f"output {i} is infinite or NaN in {count} places where the model's is finite", math.inf)
    if not bool(known.any()):
        return _Finding(finite=False)
    scale, mine, theirs, noise = (
        _channel_max(values, known) for values in (truth, new - truth, old - truth, _noise(old, others))
    )
    # a channel of few elements may be exact by chance; the others show what is usual
    usual = torch.maximum(theirs.median(), (theirs / scale).nan_to_num(0.0).median() * scale)
    floors = [theirs, usual, noise, noise.median().expand_as(noise), LAST_DIGIT * unit * scale]
    allowed = ALLOWED * torch.stack(floors).amax(0)
    ratio = torch.where(mine > 0, mine / allowed, 0.0)
    worst = int(ratio.argmax())
    if float(ratio[worst]) <= 1:
        return _Finding(error=float(ratio[worst]))
    return _Finding(
        f"output {i} is wrong in {int((ratio > 1).sum())} of {len(ratio)} channels, most in channel {worst}: error "
        f"{float(mine[worst]):.2e}, allowed {float(allowed[worst]):.2e}, largest value {float(scale[worst]):.2e}; the "
        f"model's own error is {float(theirs[worst]):.2e}",
        float(ratio[worst]),
    )


def _noise(old: Tensor, others: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    """How far the output moves when the inputs move in the last digit, and how far it is from the truth then."""
    noise = torch.zeros_like(old.real)
    for other, truth in others:
        value = evaluate.lift(other)
        for reference in (old, truth):
            if reference is not None:
                noise = torch.maximum(noise, (value - reference).abs().nan_to_num(0.0, 0.0))
    return noise


def _channel_max(values: Tensor, known: Tensor) -> Tensor:
    values = torch.where(known, values.abs(), 0.0)
    return values.transpose(0, 1).flatten(1).amax(1) if values.dim() > 1 else values.amax().reshape(1)


def _discrete(i: int, old: Tensor, new: Tensor, others: Sequence[Any]) -> tuple[str, int]:
    """Why whole numbers differ; else in how many near ties they do, places where ``others`` do not agree either."""
    wrong = old != new
    ties = torch.zeros_like(wrong)
    for other in others:
        if isinstance(other, Tensor) and other.shape == old.shape and other.dtype == old.dtype:
            ties |= other != old
    left = int((wrong & ~ties).sum())
    if left:
        return f"output {i}, of {old.dtype}, differs in {left} of {old.numel()} values that are no near ties", 0
    return "", int(wrong.sum())
