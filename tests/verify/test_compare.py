"""Judging outputs: what is allowed, and what the message says."""

from __future__ import annotations

import pytest
import torch

from rewrite.rule import Fidelity
from rewrite.verify.compare import MARGIN, close, equal, same_kind
from rewrite.verify.rounding import SLACK, Arithmetic, Counts


def judged(new, old, reference, floor, fidelity=Fidelity.ELEMENTWISE, reach=(1, 1)):
    return close("y", fidelity, new, old, reference, torch.full_like(reference, floor), reach)


def images(value=1.0):
    return torch.full((2, 4, 6, 7), value, dtype=torch.float64)


def test_an_error_up_to_that_of_old_or_the_floor_is_allowed():
    reference, old = images(), images() + 1e-6
    assert not judged(images() + 1.9e-6, old, reference, 1e-9).failure
    assert judged(images() + 2.1e-6, old, reference, 1e-9).failure
    assert not judged(images() + 2.1e-6, old, reference, 1.1e-6).failure
    assert judged(images() + 1e-6, old, reference, 1e-9).error == pytest.approx(1 / MARGIN, rel=1e-6)


def test_an_error_of_old_elsewhere_excuses_nothing():
    reference, old, new = images(), images(), images()
    old[0, 0, 2, 2] += 1
    new[0, 0, 2, 3] += 1
    assert judged(new, old, reference, 1e-9).failure
    # over a plane it does, where the rule promises no more than that
    assert not judged(new, old, reference, 1e-9, Fidelity.NORMWISE).failure
    new[1, 0, 2, 3] += 1
    assert judged(new, old, reference, 1e-9, Fidelity.NORMWISE).failure


def test_the_message_tells_where():
    reference, new = images(), images()
    new[1, 2, 0, 3] += 1
    new[1, 2, 0, 4] += 0.5
    failure = judged(new, reference, reference, 1e-9).failure
    assert "2 of 336 elements and 1 of 4 channels" in failure
    assert "row 1 of the batch, channel 2, position (0, 3), at the border only" in failure
    new[1, 2, 2, 3] += 1
    assert "in the interior too" in judged(new, reference, reference, 1e-9).failure
    assert "border" not in judged(new, reference, reference, 1e-9, reach=(3, 1)).failure


def test_values_that_are_not_finite():
    reference, new = images(), images()
    new[0, 1, 2, 3] = torch.nan
    assert "nan where the model's is finite" in judged(new, reference, reference, 1e-9).failure
    finding = judged(new, new, new, 1e-9)
    assert not finding.failure
    assert finding.evidence
    finding = judged(images(torch.inf), images(torch.inf), images(torch.inf), 1e-9)
    assert not finding.failure
    assert not finding.evidence
    # where the model itself overflows, new may do better
    assert not judged(images(), new, reference, 1e-9).failure


def test_kinds_of_outputs():
    x = torch.zeros(2, 3)
    assert same_kind("y", x, x.clone()) == ""
    assert same_kind("y", x, x.double()) == "output 'y' is float64[2, 3], not float32[2, 3]"
    assert same_kind("y", x, x[:1]) == "output 'y' is float32[1, 3], not float32[2, 3]"
    assert same_kind("y", x, 3) == "output 'y' is 3, not float32[2, 3]"
    assert same_kind("y", (x, 2), (x, 3)) == "output 'y[1]' is 3, not 2"
    assert same_kind("y", (x, 2), (x,)).startswith("output 'y' is (")


def test_bits():
    old = torch.tensor([[1.0, torch.nan, -0.0]])
    assert not equal("y", old, torch.tensor([[1.0, torch.nan, 0.0]]), ()).failure
    assert "not equal" in equal("y", old, torch.tensor([[1.0, 2.0, 0.0]]), ()).failure


def test_the_floor_counts_roundings_and_terms():
    units = torch.ones(1)
    wide, narrow = Arithmetic.of(torch.float32), Arithmetic.of(torch.bfloat16)
    assert wide.floor(units, Counts(100, 2)).item() == pytest.approx((100 + 2 + SLACK) * 2**-24)
    # sixteen bits are accumulated in thirty-two
    assert narrow.floor(units, Counts(100, 2)).item() == pytest.approx((2 + SLACK) * 2**-8 + 100 * 2**-24)
    folded = Arithmetic.of(torch.float64).coarser(torch.float32)
    assert folded.floor(units, Counts(100, 2)).item() == pytest.approx((2 + SLACK) * 2**-24 + 100 * 2**-53)
    assert narrow.floor(0 * units, Counts(0, 0)).item() > 0
