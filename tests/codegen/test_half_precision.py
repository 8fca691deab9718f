"""Programs under autocast: no kernels that compute in float32, no algorithms that are wrong in half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import codegen.inductor
from codegen.native.undoing import kernel, undo
from passes import FoldConstants, WinogradConvolution
from rewrite import compat, optimize
from rewrite.distance import distance, farthest
from rewrite.errors import RewriteError
from rewrite.lowering import flat_module, weight_order
from rewrite.winograd import evaluation
from tests.drawn import COSTLY
from tests.passes.rewriting import apply, rewrite


def module_of(model: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    """The flat module of a model whose 3x3 convolutions are Winograd's."""
    graph = rewrite(model.eval(), WinogradConvolution(channels=1), x).graph
    graph = apply(graph, FoldConstants()).graph
    return flat_module(graph, (), {name: graph.weights[name].detach() for name in weight_order(graph)})


@given(data=st.data())
@COSTLY
def test_convolutions_come_back(data: st.DataObject) -> None:
    channels, outputs = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    padding = data.draw(st.one_of(st.just("same"), st.tuples(st.integers(0, 2), st.integers(0, 2))))
    size = [data.draw(st.integers(3, 15)) for _ in range(2)]
    layer = nn.Conv2d(channels, outputs, 3, padding=padding, bias=data.draw(st.booleans()))
    x = torch.randn(data.draw(st.integers(1, 3)), channels, *size)
    module = module_of(layer, x)
    assert undo(module, (x,)) == 1
    assert not module.graph.find_nodes(op="call_function", target=torch.ops.aten.einsum.default)
    with torch.no_grad():
        (found,), expected = module(x), layer(x)
    assert found.squeeze().stride() == expected.squeeze().stride()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_asymmetric_padding_comes_back() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(nn.functional.pad(x, (0, 2, 1, 0)))
            return y

    model, x = Padded(), torch.randn(2, 3, 9, 11)
    module = module_of(model, x)
    assert undo(module, (x,)) == 1
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], model(x), rtol=1e-5, atol=1e-5)


def test_a_kernel_is_what_its_spectrum_was_made_of() -> None:
    weight, v = torch.randn(4, 3, 3, 3, dtype=torch.float64), evaluation(3)
    spectrum = torch.einsum("pi,ocij,qj->pqco", v, weight, v)
    torch.testing.assert_close(kernel(spectrum), weight, rtol=1e-12, atol=1e-12)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.last = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))
        return y


@pytest.mark.skipif(not codegen.inductor.available(), reason="needs a C++ compiler")
def test_compiled_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []
    compiled = compat.inductor_compile
    monkeypatch.setattr(
        compat, "inductor_compile", lambda module, *rest: (graphs.append(module), compiled(module, *rest))[1]
    )
    model, x = Net().eval(), torch.randn(2, 3, 16, 16)
    fast = optimize(model, x, lower="inductor", pipeline="winograd-convolution{channels=1}, simplify, fold-constants")
    with torch.no_grad():
        plain = model(x)
        graphs.clear()
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = fast(x), model(x)
    targets = [str(node.target) for module in graphs for node in module.graph.nodes]
    assert graphs
    assert not [target for target in targets if "torch_rewrite" in target or "einsum" in target]
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=3e-2)
    (lowered,) = fast.lowerings
    assert lowered.distance == pytest.approx(distance(found, plain), rel=1e-3)
    assert "under autocast" in str(lowered)
    assert 0 < lowered.distance < 0.05
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain, rtol=1e-3, atol=1e-3)
    assert fast.lowerings[-1].distance is None


def test_nothing_is_undone_without_winograd() -> None:
    module = module_of(nn.Conv2d(3, 4, 1), x := torch.randn(1, 3, 8, 8))
    before = str(module.graph)
    assert undo(module, (x,)) == 0
    assert str(module.graph) == before


@pytest.mark.parametrize("options", [
    {"lower": "eager"}, {"lower": "inductor", "on_new_shape": "eager"}, {"lower": "inductor", "live": True},
    {"lower": "inductor", "gradient": True},
])  # fmt: skip
def test_what_is_not_compiled_for_it_runs_in_full_precision(options: dict[str, Any]) -> None:
    """Its results are rounded once: closer to the model in float32 than the model under autocast is."""
    live, gradient = options.pop("live", False), options.pop("gradient", False)
    model, x = Net().eval(), torch.randn(2, 3, 16, 16)
    pipeline = "winograd-convolution{channels=1}, simplify, fold-constants"
    fast = optimize(model, x, pipeline=pipeline, **options)
    with torch.no_grad():
        fast(x)
        if live:  # written without notice: weights are arguments from then on
            model.last.weight.mul_(2)
            fast(x)
        plain = model(x)
    given = x.clone().requires_grad_(gradient)
    with torch.set_grad_enabled(gradient), torch.autocast("cpu", torch.bfloat16):
        found, expected = fast(given), model(given)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert (found.float() - plain).abs().max() <= 2**-8 * plain.abs().max()
    if gradient:
        found.sum().backward()
        assert given.grad is not None


def test_winograd_is_not_taken_over_to_half_precision() -> None:
    model, x = Net().eval(), torch.randn(2, 3, 16, 16)
    fast = optimize(model, x, lower="eager", pipeline="winograd-convolution{channels=1}, simplify, fold-constants")
    fast.bfloat16()
    with torch.no_grad(), pytest.raises(RewriteError, match=r"it transforms in float32.*change the model instead"):
        fast(x.bfloat16())


@pytest.mark.skipif(not codegen.inductor.available(), reason="needs a C++ compiler")
def test_weights_of_another_dtype_are_compiled_under_autocast() -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval(), torch.randn(2, 3, 9, 9)
    fast = optimize(model, x, lower="inductor")
    fast.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = fast(x.bfloat16())
    with torch.no_grad():
        expected = model(x)
    assert (found.float() - expected).norm() <= 2e-2 * expected.norm()
    assert fast.lowerings[-1].distance is not None


def test_distance_is_relative_and_of_what_is_finite() -> None:
    truth = torch.tensor([3.0, 4.0, float("inf"), 1.0])
    found = torch.tensor([3.0, 4.5, 0.0, 1.0])
    assert distance(found, truth) == pytest.approx(0.5 / 26**0.5)
    assert distance(torch.tensor([3.0, float("nan"), 0.0, 1.0]), truth) == float("inf")
    assert distance(found, torch.zeros(4)) is None
    assert farthest([found, 1, found], [truth, 1, truth]) == pytest.approx(0.5 / 26**0.5)
    assert farthest([1], [1]) is None
