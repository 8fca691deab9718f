"""Simplify on networks: the same bits, and fewer operators."""

from __future__ import annotations

import pytest
import torch

from passes.simplify import Simplify
from rewrite.driver import Driver
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.corpus import input_for, load, randomize

LARGE = "swin_tiny_patch4_window7_224"
# operators before and after
NETWORKS = {
    LARGE: (604, 496),
    "convnext_atto": (168, 143),
    "inception_next_atto": (236, 223),
    "mixnet_s": (500, 471),
}


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("mixnet_s", LARGE) else []) for name in NETWORKS],
)
def test_a_network_computes_the_same_bits_with_fewer_operators(name):
    model = load(name)
    x = input_for(model)
    x = x if name == LARGE else x[..., :64, :64].contiguous()
    randomize(model, inputs=x)
    graph = capture(model, (x,)).graph
    before, after = NETWORKS[name]
    assert len(graph.calls()) == before
    [record] = Driver(graph, MatchVerifier()).run([Simplify()])
    assert not record.rejections
    graph.check()
    assert len(graph.calls()) == after
    with torch.no_grad():
        assert torch.equal(graph.to_module()(x), model(x))
