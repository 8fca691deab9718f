"""Rewrites that change the function within a budget: calibrated on data, measured, chosen, and undone at will.

- :mod:`rewrite.approximation.contract`: the contract of a rule that approximates, and what it offers at a site
- :mod:`rewrite.approximation.statistics`: what is learned from the data, one batch after the other
- :mod:`rewrite.approximation.calibration`: the data: what is fitted to, and what is held out
- :mod:`rewrite.approximation.trial`: a program on data, with replacements in place of sites
- :mod:`rewrite.approximation.sites`: where rules apply, with what they offer and what that costs
- :mod:`rewrite.approximation.budget`: which offers to take, a knapsack over errors and times
- :mod:`rewrite.approximation.ledger`: what was predicted, measured, and taken
- :mod:`rewrite.approximation.search`: all of that, from a program and data to a ledger
- :mod:`rewrite.approximation.student`: the module that comes out, to be trained, optimized and undone
"""

from rewrite.approximation.contract import Approximation, Option, Watch
from rewrite.approximation.ledger import Entry, Ledger
from rewrite.approximation.student import ApproximatedModule

__all__ = ["ApproximatedModule", "Approximation", "Entry", "Ledger", "Option", "Watch"]
