"""What motifs draw with: the network so far, its values, and the choices of Hypothesis."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from rewrite.testing.networks.network import module_of, run
from rewrite.testing.networks.steps import Step

T = TypeVar("T")

LARGEST = 4096
"""Values of more elements are not built upon in ways that grow them."""


class Drawing:
    """A network while it is drawn. Values are known by number, 0 the input; each is really computed, for its shape.

    Attributes:
        draw: of the motif that is being drawn.
        steps: so far.
        values: of a call with batch 2.
    """

    draw: st.DrawFn

    def __init__(self, shape: tuple[int, int, int], seed: int):
        self._seed, self._owner = seed, nn.Module()
        self.steps: list[Step] = []
        self.values: list[Tensor] = [torch.zeros(2, *shape)]

    # -- choices ------------------------------------------------------------------------------------------------------

    def one_of(self, choices: Sequence[T]) -> T:
        """One of several; failing examples shrink towards the first."""
        return self.draw(st.sampled_from(list(choices)))

    def number(self, low: int, high: int) -> int:
        """A whole number; failing examples shrink towards the low end."""
        return self.draw(st.integers(low, high))

    def flag(self) -> bool:
        """True or False; failing examples shrink towards False."""
        return self.draw(st.booleans())

    def value(self, rank: int | Collection[int] = 4) -> int | None:
        """A value of so many dimensions, the latest first; None where there is none."""
        ranks = {rank} if isinstance(rank, int) else set(rank)
        fitting = [i for i in reversed(range(len(self.values))) if self.values[i].dim() in ranks]
        return self.one_of(fitting[:4]) if fitting else None

    def like(self, value: int) -> list[int]:
        """The other values of the same shape, the latest first."""
        shape = self.values[value].shape
        return [i for i in reversed(range(len(self.values))) if i != value and self.values[i].shape == shape]

    # -- growing ------------------------------------------------------------------------------------------------------

    def shape(self, value: int) -> list[int]:
        """The shape of a value, for a batch of 2."""
        return list(self.values[value].shape)

    def step(self, kind: str, *of: int, **options: Any) -> int:
        """Add a step; the number of its value."""
        step, number = Step(kind, *of, **options), len(self.values)
        given = [self.values[i] for i in of]
        self._owner.add_module(f"step_{number}", module_of(step, number, self._owner, given, self._seed))
        with torch.no_grad():
            self.values.append(run(self._owner, step, number, self.values))
        self.steps.append(step)
        return number
