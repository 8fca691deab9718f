"""What counts as a branch, and what becomes of a tree that is not all branches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import Reparameterize
from rewrite.ops import Sum
from tests.passes.blocks import Block, Branches, conv, conv_norm, merged
from tests.passes.rewriting import assert_exact, folded, rewrite, scatter


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(3, 1, 1),
        nn.AvgPool2d((1, 3), 1, (0, 1)),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False, divisor_override=5),
        nn.AvgPool2d(3, 1, 1, ceil_mode=True),
    ],
    ids=str,
)
def test_average_pools_are_branches(pool: nn.Module):
    result = merged(Branches([conv(4, 4, 3, padding=1), pool, nn.Identity()]), torch.randn(2, 4, 6, 7))
    assert result.operators == ["conv2d"]


def test_an_unpadded_pool_without_counting_is_a_branch():
    pool = nn.AvgPool2d(2, 2, count_include_pad=False)
    result = merged(Branches([conv(4, 4, 2, stride=2), pool]), torch.randn(2, 4, 6, 8))
    assert result.operators == ["conv2d"]


SCALES: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "number": lambda self, x: self.a(x) * 0.5 + 3 * self.b(x),
    "alpha": lambda self, x: torch.add(self.a(x), self.b(x), alpha=2.5),
    "difference": lambda self, x: self.a(x) - self.b(x),
    "reversed difference": lambda self, x: torch.rsub(self.a(x), self.b(x), alpha=2),
    "negation": lambda self, x: -(self.a(x) + self.b(x)) + x,
    "quotient": lambda self, x: self.a(x) / self.scale + self.b(x) / 3 / self.number,
    "scalar parameter": lambda self, x: self.number * self.a(x) + self.b(x),
    "scale of channels": lambda self, x: self.scale * self.a(x) + x * self.scale,
    "scale with a batch dimension": lambda self, x: self.scale[None] * self.a(x) + self.b(x),
    "constant number": lambda self, x: self.a(x) + self.b(x) + 1.5,
    "constant of channels": lambda self, x: (self.a(x) + self.scale) * self.scale - self.b(x),
    "constant before an only number": lambda self, x: 1 - (self.bare(x) + x),
    "scalar constant": lambda self, x: self.bare(x) + self.number - x,
    "nested": lambda self, x: self.scale * (self.a(x) - 2 * (self.b(x) + self.scale * x)) / 3 + x,
    "twice the same": lambda self, x: (lambda y: y + y)(self.a(x)) + self.b(x),
    "one scaled convolution": lambda self, x: self.scale * self.a(x),
    "one shifted convolution": lambda self, x: self.bare(x) + 1,
}


@pytest.mark.parametrize("name", SCALES)
def test_scales_and_constants(name: str):
    model = Block(
        SCALES[name],
        a=conv_norm(4, 3),
        b=conv(4, 4, 3, padding=1),
        bare=conv(4, 4, 3, padding=1, bias=False),
        scale=torch.randn(4, 1, 1),
        number=torch.tensor(1.7),
    )
    assert merged(model, torch.randn(2, 4, 6, 5)).operators == ["conv2d"]


def test_a_norm_with_zero_scale_contributes_its_bias_only():
    model = scatter(Branches([conv_norm(4, 3), conv_norm(4, 5)]))
    nn.init.zeros_(model.parts[1][1].weight)
    result = rewrite(model, Reparameterize(), torch.randn(2, 4, 6, 5))
    (layer,) = result.layers
    kernel = result.graph.value(layer.weight)
    assert layer.kernel == (5, 5)
    assert (F.pad(kernel[:, :, 1:-1, 1:-1], (1, 1, 1, 1)) == kernel).all()
    assert_exact(result, model, torch.randn(2, 4, 6, 5))


def test_order_of_branches_does_not_matter():
    x = torch.randn(2, 4, 6, 5)
    model = scatter(Branches([conv_norm(4, 3), conv(4, 4, (2, 5), padding="same"), nn.BatchNorm2d(4)])).double()
    found = []
    for order in permutations(model.parts):
        result = rewrite(Branches(order).eval(), Reparameterize(), x.double())
        (layer,) = result.layers
        found.append((result.graph.value(layer.weight), result.graph.value(layer.bias), layer.padding))
    for kernel, bias, padding in found[1:]:
        torch.testing.assert_close(kernel, found[0][0], rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(bias, found[0][1], rtol=1e-13, atol=1e-14)
        assert padding == found[0][2]


def test_terms_over_other_inputs_are_added_again():
    def forward(self: Block, x: Tensor) -> Tensor:
        h = torch.tanh(x)
        return self.a(x) - h + self.b(h) + self.c(x) + self.d(h).sigmoid()

    model = Block(forward, **{name: conv(4, 4, 3, padding=1) for name in "abcd"})
    result = merged(model, torch.randn(2, 4, 6, 5), layers=3)
    assert len(result.views(Sum)) == 2


def test_a_constant_map_is_added_again():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.a(x) + self.position + self.b(x)

    model = Block(forward, a=conv(4, 4, 3, padding=1), b=conv(4, 4, 1), position=torch.randn(4, 6, 5))
    assert merged(model, torch.randn(2, 4, 6, 5)).operators == ["conv2d", "add"]


def test_a_term_that_is_broadcast_is_added_again():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x) + x

    model = Block(forward, a=conv(1, 4, 3, padding=1), b=conv(1, 4, 1))
    assert merged(model, torch.randn(2, 1, 6, 5)).operators == ["conv2d", "add"]


def test_an_ordinary_residual_block_keeps_its_sum():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) + x

    result = merged(Block(forward, a=conv_norm(4, 3), b=conv_norm(4, 3)), torch.randn(2, 4, 6, 5), layers=2)
    assert result.operators == ["conv2d", "relu", "conv2d", "add"]
    assert {commit.rule for commit in result.record.commits} == {"fold-batch-norm-after"}
    assert not result.record.refused


def test_depthwise_and_dense_branches_merge_among_themselves():
    parts = [
        conv(16, 16, 7, padding=3, groups=16),
        conv(16, 16, 1),
        conv(16, 16, 3, padding=1, groups=16),
        conv(16, 16, 1),
    ]
    result = merged(Branches(parts), torch.randn(2, 16, 8, 8), layers=2)
    assert {(layer.kernel, layer.groups) for layer in result.layers} == {((7, 7), 16), ((1, 1), 1)}
    assert any("times the multiply-accumulates" in reason for reason in result.reasons)


def test_a_result_inside_the_tree_that_is_read_elsewhere_stays():
    def forward(self: Block, x: Tensor) -> Tensor:
        y = self.a(x) + self.b(x)
        return (y + self.c(x)).relu() + y

    model = Block(forward, **{name: conv(4, 4, 3, padding=1) for name in "abc"})
    result = merged(model, torch.randn(2, 4, 6, 5), layers=2)
    assert len(result.views(Sum)) == 2


def test_linear_layers_merge_over_their_last_dimension():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.scale * (self.a(x) - self.b(x)) + x + 2

    model = Block(forward, a=nn.Linear(6, 6), b=nn.Linear(6, 6, bias=False), scale=torch.randn(6))
    assert merged(model, torch.randn(2, 5, 6)).operators == ["linear"]


def test_half_precision():
    model = scatter(Branches([conv_norm(4, 3), conv_norm(4, 1), nn.Identity()])).bfloat16()
    x = torch.randn(2, 4, 6, 5).bfloat16()
    result = rewrite(model, Reparameterize(), x)
    (layer,) = result.layers
    assert layer.weight.meta["val"].dtype == layer.bias.meta["val"].dtype == torch.bfloat16
    with torch.no_grad():
        found, eager, exact = folded(result)(x), model(x), copy.deepcopy(model).double()(x.double())
    assert found.dtype == torch.bfloat16
    assert (found - exact).abs().max() <= 2 * (eager - exact).abs().max()
