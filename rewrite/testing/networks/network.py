"""A network as a value: an input and steps over it, printed as the code that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rewrite.testing.networks.steps import KINDS, Step
from rewrite.testing.spec import Draws
from rewrite.testing.values import Values


@dataclass(frozen=True)
class Network:
    """A small network.

    Attributes:
        shape: of the input without its batch: channels, height, width.
        steps: in order; see :class:`~rewrite.testing.networks.steps.Step`.
        results: the values that the network returns.
        batch, dtype, layout, seed: as of every specification in :mod:`rewrite.testing`.
    """

    shape: tuple[int, int, int]
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    batch: int = 2
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    seed: int = 0

    def __repr__(self) -> str:
        lines = [f"    {step!r},  # {i}\n" for i, step in enumerate(self.steps, 1)]
        rest = f"{self.results!r}, {self.batch!r}, {self.dtype!r}, {self.layout!r}, {self.seed!r}"
        return f"Network({self.shape!r}, (\n{''.join(lines)}), {rest})"

    def module(self) -> nn.Module:
        """The network in evaluation mode, new at each call, always with the same weights."""
        return NetworkModule(self).to(self.dtype).eval()

    def inputs(self) -> tuple[Tensor, ...]:
        """The arguments of a call, new at each time, always with the same values."""
        return (Values((self.batch, *self.shape), self.dtype, self.layout, seed=self.seed).tensor(),)


class NetworkModule(nn.Module):
    """Runs the steps of a network; ``step_3`` is the module of step 3."""

    def __init__(self, network: Network):
        super().__init__()
        self.steps, self.results = network.steps, network.results
        values: list[Tensor] = [torch.zeros(2, *network.shape)]
        for number, step in enumerate(network.steps, 1):
            given = [values[i] for i in step.of]
            self.add_module(f"step_{number}", module_of(step, number, self, given, network.seed))
            values.append(run(self, step, number, values))

    def forward(self, x: Tensor) -> Any:
        """The results of the network, one tensor or a tuple."""
        values = [x]
        for number, step in enumerate(self.steps, 1):
            values.append(run(self, step, number, values))
        results = tuple(values[i] for i in self.results)
        return results if len(results) > 1 else results[0]


def module_of(step: Step, number: int, owner: nn.Module, given: Sequence[Tensor], seed: int) -> nn.Module:
    """The module of a step: its own, or that of an earlier one."""
    options = dict(step.options)
    earlier = options.pop("module_of", None)
    if earlier is not None:
        shared = getattr(owner, f"step_{earlier}")
        assert isinstance(shared, nn.Module)
        return shared
    return KINDS[step.kind](Draws(1000 * seed + number), given, options).float().eval()


def run(owner: nn.Module, step: Step, number: int, values: Sequence[Tensor]) -> Tensor:
    """One step."""
    result = getattr(owner, f"step_{number}")(*(values[i] for i in step.of))
    assert isinstance(result, Tensor)
    return result
