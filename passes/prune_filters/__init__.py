"""Hidden channels that make little difference, removed; those that stay make up for them.

- :mod:`passes.prune_filters.rule`: the rule: its sites, and what it builds
- :mod:`passes.prune_filters.hidden`: two layers with channels between them that nobody else reads
- :mod:`passes.prune_filters.elimination`: which channels go first, and what becomes of the others
"""

from passes.prune_filters.rule import PruneFilters

__all__ = ["PruneFilters"]
