"""A selected program against the same one as it was before, both as they will run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.lowering import weight_order
from rewrite.timing import HOPELESS, settled

if TYPE_CHECKING:
    from rewrite.graph import Graph
    from rewrite.lowering import Executable, Lowering

_SECONDS = 4.0


@dataclass(frozen=True)
class Trial:
    """What came of the comparison of two programs.

    Attributes:
        before, after: milliseconds of a call, as it was and as it was selected; None where nothing could be measured.
        noise: by how much the faster one differed from itself, relatively.
        run: the faster one, lowered for the call.
        lowering: the seconds that lowering it took.
    """

    before: float | None
    after: float | None
    noise: float
    run: Executable
    lowering: float = 0.0

    @property
    def measured(self) -> bool:
        """Whether there are times."""
        return self.before is not None

    @property
    def pays(self) -> bool:
        """Whether the selected program is faster by more than the noise."""
        if self.before is None or self.after is None:
            return False
        return self.after * (1 + self.noise) < self.before

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return "the machine was too busy to compare the programs"
        return f"{self.before:.3g} ms before, {self.after:.3g} ms after, {self.noise:.1%} noise"


def compare(before: Graph, after: Graph, inputs: Sequence[Any], lowering: Lowering) -> Trial:
    """Lower two programs for a call and time them.

    Raises:
        Exception: whatever the lowering raises.
    """
    runs, seconds = [], []
    for graph in (before, after):
        started = time.perf_counter()
        runs.append(_lowered(graph, inputs, lowering))
        seconds.append(time.perf_counter() - started)
    calls = {name: _bound(*entry, inputs) for name, entry in zip(("before", "after"), runs, strict=True)}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        found = settled(calls, rounds=9, seconds=_SECONDS, hopeless=HOPELESS)
    if found is None:
        return Trial(None, None, 0.0, runs[0][0], seconds[0])
    ms = {name: timing.median for name, timing in found.timings.items()}
    pays = Trial(ms["before"], ms["after"], found.noise, runs[0][0]).pays
    return Trial(ms["before"], ms["after"], found.noise, runs[pays][0], seconds[pays])


def _lowered(graph: Graph, inputs: Sequence[Any], lowering: Lowering) -> tuple[Executable, list[torch.Tensor]]:
    """A program lowered for a call, and the weights that it takes."""
    weights = {name: graph.weights[name].detach() for name in weight_order(graph)}
    if not lowering.freezes:
        weights = dict(lowering.arrange(graph, weights))
    return lowering.compile(graph, weights, inputs, lowering.freezes), list(weights.values())


def _bound(run: Executable, weights: list[torch.Tensor], inputs: Sequence[Any]) -> Callable[[], Any]:
    return lambda: run(inputs, weights)
