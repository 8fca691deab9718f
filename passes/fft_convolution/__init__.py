"""Convolutions computed in the frequency domain.

- :mod:`passes.fft_convolution.rule`: the rule
- :mod:`passes.fft_convolution.circle`: the smallest circular convolution that holds a padded one, along one dimension
- :mod:`passes.fft_convolution.blocks`: overlap-save, for kernels much shorter than the sequence
- :mod:`passes.fft_convolution.transforms`: forward, product for each frequency, and back
- :mod:`passes.fft_convolution.costs`: arithmetic of both sides
"""

from __future__ import annotations

from passes.fft_convolution.rule import FftConvolution

__all__ = ["FftConvolution"]
