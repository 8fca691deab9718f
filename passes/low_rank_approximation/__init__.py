"""Convolutions and linear layers as chains of low rank, fitted to data: channels, spatial, Tucker, canonical polyadic.

- :mod:`passes.low_rank_approximation.rule`: the rule: its sites, and what it offers there
- :mod:`passes.low_rank_approximation.patches`: what is learned of the input: moments of what a layer reads at once
- :mod:`passes.low_rank_approximation.regression`: the metric of these moments, and least squares in it
- :mod:`passes.low_rank_approximation.forms`: chains in closed form
- :mod:`passes.low_rank_approximation.cp`: canonical polyadic chains, by alternating least squares
- :mod:`passes.low_rank_approximation.chain`: what a chain takes, and how it is built
"""

from passes.low_rank_approximation.rule import LowRank

__all__ = ["LowRank"]
