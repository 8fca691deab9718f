"""Depthwise convolutions as inception mixers, fitted to data: identity, square, bands, separable kernels.

- :mod:`passes.inception.rule`: the rule: its sites, and what it builds
- :mod:`passes.inception.supports`: the parts of a kernel that a channel may keep
- :mod:`passes.inception.patches`: what is learned of the input: products of the taps' values
- :mod:`passes.inception.fitting`: least squares over the taps that are kept, and separable kernels
- :mod:`passes.inception.assignment`: which channel keeps which part
"""

from passes.inception.rule import Inception

__all__ = ["Inception"]
