"""Channels that a network can do without, removed exactly: fewer weights, less arithmetic, the same results.

- :mod:`~passes.prune_exact.unread`: channels that nothing reads
- :mod:`~passes.prune_exact.unused`: channels that every reader multiplies by zero
- :mod:`~passes.prune_exact.dead`: channels that are constant
- :mod:`~passes.prune_exact.duplicates`: channels that are multiples of each other

What they share:

- :mod:`~passes.prune_exact.flow`: which channels belong together, from the layers that make to those that read them
- :mod:`~passes.prune_exact.reading`: which operators treat every channel by itself, and why others do not
- :mod:`~passes.prune_exact.steps`, :mod:`~passes.prune_exact.maps`: these operators, what they make of constants and
  multiples, and how they are built over fewer channels
- :mod:`~passes.prune_exact.ends`: layers with fewer inputs and outputs
- :mod:`~passes.prune_exact.knowledge`, :mod:`~passes.prune_exact.alike`: what the weights say of channels
- :mod:`~passes.prune_exact.removal`: channels removed from everything that has them
- :mod:`~passes.prune_exact.select`: weight algebra that picks channels
- :mod:`~passes.prune_exact.rule`: what the rules have in common
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.prune_exact.dead import RemoveDeadChannels
from passes.prune_exact.duplicates import MergeDuplicateChannels
from passes.prune_exact.unread import RemoveUnreadChannels
from passes.prune_exact.unused import RemoveUnusedChannels
from rewrite.pipeline import Pass

if TYPE_CHECKING:
    from rewrite.rule import Rule

__all__ = [
    "MergeDuplicateChannels", "PruneExact", "RemoveDeadChannels", "RemoveUnreadChannels", "RemoveUnusedChannels",
]  # fmt: skip


@dataclass(frozen=True)
class PruneExact(Pass):
    """Remove every channel that can be seen in the weights to make no difference, until none is left.

    The result holds for the present weights only, except where nothing reads a channel: ``remove-unread-channels`` is a
    step by itself too.
    """

    def rules(self) -> tuple[Rule, ...]:
        """What nothing reads first, for it needs no reason in the weights."""
        return RemoveUnreadChannels(), RemoveUnusedChannels(), RemoveDeadChannels(), MergeDuplicateChannels()
