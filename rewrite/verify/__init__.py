"""Verification: every match before it is spliced, and the rewritten program as a whole.

:class:`MatchVerifier` evaluates both sides of a match on drawn values of its boundary. Once for equal fragments, with
random weights: float64, batch 3, odd unequal sizes; float64, ``channels_last``, batch 2, even sizes; float64, batch 1,
parts of larger tensors; the recorded dtypes; bfloat16 where those are float32. For each match, with its own weights:
the recorded dtypes and float64, batch 1, inputs that stack normal, shifted, one-hot, zero, large and negative values.
Sizes are the smallest with an interior, both borders and a remainder. A rule that reads weight values, or brings
constants, has the weights of the match in every draw.

The reference is the old side in float64, and new may be off by ``MARGIN * max(|old - reference|, floor)``, where the
floor is what no order of summation can promise to stay below: see :mod:`rewrite.verify.rounding`.

:func:`verify_model` runs the rewritten program against the user's module, at the sizes of the example,
and :func:`verify_recorded` a program against outputs that it gave before.
"""

from rewrite.verify.match import MatchVerifier
from rewrite.verify.model import narrowed, sample_of, verify_model, verify_recorded
from rewrite.verify.whole import compare_whole, verify_whole

__all__ = ["MatchVerifier", "compare_whole", "narrowed", "sample_of", "verify_model", "verify_recorded", "verify_whole"]
