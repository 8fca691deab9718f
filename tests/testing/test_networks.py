"""Drawn networks: they run, print as code, shrink to few steps, and hold every kind of step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import find, given, settings
from torch import Tensor

from rewrite.testing.networks import KINDS, MOTIFS, Network, Step, networks


@given(networks())
@settings(max_examples=50)
def test_a_network_runs_and_is_always_the_same(network: Network) -> None:
    with torch.no_grad():
        first, second = (_flat(network.module()(*network.inputs())) for _ in range(2))
    assert len(first) == len(network.results)
    for a, b in zip(first, second, strict=True):
        assert a.shape[0] in (network.batch, 1)  # one where a mean takes the batch too
        assert a.dtype == network.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@given(networks())
@settings(max_examples=50)
def test_a_network_prints_as_the_code_that_makes_it(network: Network) -> None:
    made = eval(repr(network), {"Network": Network, "Step": Step, "torch": torch})
    assert made == network
    assert hash(made) == hash(network)


def _flat(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("kind", ["select", "weigh"])
def test_a_failing_network_shrinks_to_few_steps(kind: str) -> None:
    limit = settings(max_examples=2000, database=None, derandomize=True)
    network = find(networks(), lambda network: any(step.kind == kind for step in network.steps), settings=limit)
    assert len(network.steps) <= 20  # two motifs at most
    assert (network.batch, network.shape) == (2, (4, 1, 1))
    assert network.results == (len(network.steps),)


def test_every_kind_is_drawn() -> None:
    seen: set[str] = set()
    for motif in MOTIFS:
        # beside layers, because some motifs join what others made
        @given(networks(motifs=[motif, MOTIFS[0]], longest=3))
        @settings(max_examples=40, database=None, derandomize=True)
        def draw(network: Network) -> None:
            seen.update(step.kind for step in network.steps)

        draw()
    assert seen == set(KINDS)


def test_modules_and_values_are_used_again() -> None:
    seen: Counter[str] = Counter()

    @given(networks())
    @settings(max_examples=400, database=None, derandomize=True)
    def draw(network: Network) -> None:
        seen["module"] += any("module_of" in step.options for step in network.steps)
        reads = Counter(value for step in network.steps for value in set(step.of))
        seen["value"] += any(count > 1 for count in reads.values())
        seen["results"] += len(network.results) > 1

    draw()
    assert all(seen[what] >= 3 for what in ("module", "value", "results")), seen
