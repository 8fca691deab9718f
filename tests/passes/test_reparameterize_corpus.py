"""Networks that timm merges by hand: the pass leaves no more layers than timm's own code and folded norms."""

from __future__ import annotations

import copy

import pytest
import torch

from passes import FoldBatchNorm, Reparameterize
from tests.corpus import input_for, load, randomize, timm
from tests.passes.rewriting import rewrite

NETWORKS = [
    pytest.param("resnet18", marks=pytest.mark.slow),
    "repvgg_a0",
    pytest.param("mobileone_s0", marks=pytest.mark.slow),
    pytest.param("fastvit_t8", marks=pytest.mark.slow),
    pytest.param("repvit_m0_9", marks=pytest.mark.slow),
    pytest.param("repghostnet_050", marks=pytest.mark.slow),
]


@pytest.mark.corpus
@pytest.mark.parametrize("name", NETWORKS)
def test_no_more_layers_than_by_hand(name: str):
    model = load(name)
    x = input_for(model)[..., :64, :64].contiguous()
    randomize(model, inputs=x)
    mine = rewrite(model, Reparameterize(), x)
    by_hand = rewrite(timm.utils.reparameterize_model(copy.deepcopy(model)).eval(), FoldBatchNorm(), x)
    assert len(mine.layers) + len(mine.norms) <= len(by_hand.layers) + len(by_hand.norms)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        eager, found = model(x), mine.graph.to_module()(x)
    assert (found - exact).abs().max() <= 4 * (eager - exact).abs().max()
