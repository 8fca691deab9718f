"""Real networks, with weights that hide nothing."""

from __future__ import annotations

import pytest
import torch

from rewrite.trace import capture
from tests.corpus import load
from tests.trace.support import Picture, assert_equal


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050"])
def test_network(name: str) -> None:
    model = load(name).eval()
    x = torch.randn(1, 3, 64, 64)
    picture = Picture(model)
    captured = capture(model, (x,))
    picture.assert_same()
    assert captured.batch is not None
    assert captured.notes == ()
    run = captured.graph.to_module()
    with torch.no_grad():
        for batch in (1, 3):
            x = torch.randn(batch, 3, 64, 64)
            assert_equal(run(x), model(x), rtol=1e-4, atol=1e-5)
    weights = {k: t.double() if t.is_floating_point() else t for k, t in captured.graph.weights.items()}
    with torch.no_grad():
        double = captured.graph.to_module(weights)(x.double())
        assert double.dtype == torch.float64
        assert_equal(double.float(), model(x), rtol=1e-3, atol=1e-4)
