"""Blocks of which algebra leaves little, as benchmarks of fused operators have them (Ouyang et al., KernelBench)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import registry
from rewrite.driver import Driver
from rewrite.graph import Graph
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.programs import names

MEANS = "simplify, hoist-pooling, reduction-algebra, hoist-pooling, fold-constants"
FINITE = (
    "simplify, clamp-by-constant, mean-of-uniform-group-norm{finite=True}, hoist-pooling, "
    "reduction-algebra{finite=True}, simplify, reduction-algebra{finite=True}, fold-constants"
)


def reduced(model: nn.Module, x: Tensor, pipeline: str) -> tuple[Graph, list[str]]:
    """The graph of a model after a pipeline, and the operators left; it agrees with the model in float64."""
    graph = capture(model.eval(), (x,)).graph
    records = Driver(graph, MatchVerifier()).run(registry().parse(pipeline))
    assert not [rejected for record in records for rejected in record.rejections]
    graph.check()
    graph.prune()
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        found = graph.to_module({n: w.double() for n, w in graph.weights.items() if w.is_floating_point()})(x.double())
    # folded weights were rounded to float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    return graph, [name for name in names(graph) if name not in ("getitem", "sym_size")]


class Function(nn.Module):
    """Layers and what is computed with them."""

    def __init__(self, forward: Any, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv_norm_mean(scattered: bool) -> nn.Module:
    model = Function(
        lambda self, x: self.norm(self.conv(x)).mean(dim=[1, 2, 3, 4]), conv=nn.Conv3d(3, 8, 3), norm=nn.GroupNorm(4, 8)
    )
    nn.init.normal_(model.norm.bias)
    if scattered:
        nn.init.normal_(model.norm.weight)
    return model


def test_the_mean_of_a_group_norm_is_the_mean_of_its_shift():
    _, left = reduced(conv_norm_mean(False), torch.randn(2, 3, 5, 6, 7), FINITE)
    assert left == ["new_full", "add"]


def test_unequal_scales_need_the_layer_but_not_the_normed_image():
    graph, left = reduced(conv_norm_mean(True), torch.randn(2, 3, 5, 6, 7), MEANS)
    assert "group_norm" not in left
    assert left.count("conv3d") == 1
    assert max(node.meta["val"].dim() for node in graph.calls() if node.op == "call_function"
               and isinstance(node.meta["val"], Tensor)) == 6  # the image by groups  # fmt: skip


def test_a_sum_over_features_and_what_follows_is_a_product_with_a_vector():
    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.sum(self.linear(x), dim=1, keepdim=True)
        x = torch.max(x, dim=1, keepdim=True)[0]
        x = torch.mean(x, dim=1, keepdim=True)
        x = torch.logsumexp(x, dim=1, keepdim=True)
        return torch.logsumexp(x, dim=1, keepdim=True)

    graph, left = reduced(Function(forward, linear=nn.Linear(10, 6)), torch.randn(3, 10), MEANS)
    assert left == ["linear"]
    assert [tuple(node.meta["val"].shape) for node in graph.nodes if node.op == "get_attr"] == [(1, 10), (1,)]


def test_a_product_divided_summed_and_scaled_is_a_product_with_a_vector():
    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.matmul(x, self.weight.T) / 2
        return torch.sum(x, dim=1, keepdim=True) * 1.5

    _, left = reduced(Function(forward, weight=nn.Parameter(torch.randn(6, 10))), torch.randn(3, 10), MEANS)
    assert left == ["mm", "div", "mul"]


def test_a_difference_with_its_own_mean_over_one_element_is_zero():
    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.max(self.linear(x), dim=1, keepdim=True).values
        return F.gelu(x - x.mean(dim=1, keepdim=True))

    model, x = Function(forward, linear=nn.Linear(10, 6)), torch.randn(3, 10)
    graph, left = reduced(model, x, FINITE)
    assert left == ["new_full"]
    assert not graph.weights
    graph, left = reduced(model, x, MEANS)
    assert left == ["linear", "max", "sub", "gelu"]
    x[0, 0] = float("inf")
    assert (
        graph.to_module()(x).isnan().flatten().tolist() == model(x).isnan().flatten().tolist() == [True, False, False]
    )


def test_a_transposed_convolution_pooled_twice_is_a_small_convolution():
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.conv(x) * 0.5
        x = torch.mean(x, dim=[2, 3], keepdim=True)
        return torch.mean(x, dim=[2, 3], keepdim=True)

    layer = nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1)
    graph, left = reduced(Function(forward, conv=layer), torch.randn(2, 6, 9, 11), MEANS)
    assert "conv_transpose2d" not in left
    assert left.count("conv2d") == 1
    assert left.count("mul") == 1
    sizes = [tuple(node.meta["val"].shape[1:]) for node in graph.calls() if "conv2d" in node.name]
    assert sizes == [(8, 1, 1)]


def test_a_linear_layer_shifted_and_averaged_over_features_is_a_product_with_a_vector():
    def forward(self: Any, x: Tensor) -> Tensor:
        y = torch.mean(self.linear(x) - self.shift, dim=1, keepdim=True)
        return F.gelu(torch.logsumexp(y, dim=1, keepdim=True)) + x

    model = Function(forward, linear=nn.Linear(10, 6), shift=nn.Parameter(torch.randn(6)))
    _, left = reduced(model, torch.randn(3, 10), MEANS)
    assert left == ["linear", "add", "gelu", "add"]


class MinimumThenClamp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.min(self.norm(self.conv(x)), torch.tensor(0.0, device=x.device))
        return self.dropout(torch.clamp(x, min=0.0, max=1.0))


def test_a_minimum_with_zero_clamped_from_zero_on_is_zero():
    _, left = reduced(MinimumThenClamp(), torch.randn(2, 3, 6, 7), FINITE)
    assert left == ["new_full"]


def test_it_is_one_clamp_where_nan_has_to_pass():
    model, x = MinimumThenClamp(), torch.randn(2, 3, 6, 7)
    graph, left = reduced(model, x, "simplify, clamp-by-constant, simplify")
    assert left == ["conv2d", "group_norm", "clamp"]
    x[0, 0, 0, 0] = float("nan")
    assert torch.equal(graph.to_module()(x).isnan(), model(x).isnan())


@pytest.mark.parametrize("batch", [1, 5])
def test_nothing_of_the_batch_is_burned_in(batch: int):
    graph, _ = reduced(MinimumThenClamp(), torch.randn(2, 3, 6, 7), FINITE)
    assert graph.to_module()(torch.randn(batch, 3, 6, 7)).shape == (batch, 8, 4, 5)
