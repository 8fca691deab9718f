"""Convolutions that a model computes by Fourier transforms itself, over fewer points or as what they are.

- :mod:`passes.shrink_transform.rule`: the rule
- :mod:`passes.shrink_transform.program`: what it begins at, ``irfft(rfft(x) * rfft(k))`` and slices behind it
- :mod:`passes.shrink_transform.kernel`: the kernel that a spectrum is computed from
- :mod:`passes.shrink_transform.line`: what of input, kernel and circle the outputs need that are kept
- :mod:`passes.shrink_transform.direct`: the sum over taps
"""

from __future__ import annotations

from passes.shrink_transform.rule import ShrinkTransform

__all__ = ["ShrinkTransform"]
