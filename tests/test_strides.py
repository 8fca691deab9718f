"""Results have the strides of the model, whatever the rewrites did to layouts on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import ConvolutionAsLinear, LinearAsConvolution
from rewrite import optimize
from rewrite.driver import Driver
from rewrite.graph import Graph, Mutation
from rewrite.strides import copies, same_strides
from tests.programs import Program, aten, names

LAST = torch.channels_last


class Net(nn.Module):
    """Layers by name, and a function over them."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **layers: nn.Module):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def separable() -> nn.Module:
    conv = nn.Conv2d(6, 8, 5, padding=2)
    with torch.no_grad():
        conv.weight.copy_(torch.einsum("oh,iw->oihw", torch.randn(8, 5), torch.randn(6, 5)))
    return conv


def activated(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.b(self.a(x)))


def difference(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return y - y


CASES: dict[str, tuple[nn.Module, Tensor, str | None]] = {
    "patches": (
        Net(lambda self, x: F.gelu(self.b(self.a(x).flatten(2).transpose(1, 2))), a=nn.Conv2d(3, 64, 4, stride=4),
            b=nn.Linear(64, 16)), torch.randn(2, 3, 16, 16), None,
    ),
    "a piece of what is split": (
        Net(lambda self, x: self.a(x.flatten(2).transpose(1, 2)).split(4, 2)[0], a=nn.Linear(3, 12)),
        torch.randn(2, 3, 4, 4), "linear-as-convolution",
    ),
    "layers in a row": (
        Net(activated, a=nn.Conv2d(16, 64, 1), b=nn.Conv2d(64, 8, 1)).to(memory_format=LAST),
        torch.randn(2, 16, 6, 6), None,
    ),
    "reduction": (Net(lambda self, x: x.permute(0, 2, 3, 1).mean(1)), torch.randn(3, 6, 8, 8), None),
    "separable": (Net(lambda self, x: self.a(x), a=separable()), torch.randn(2, 6, 9, 9), "separate-kernel"),
    "zeros": (
        Net(difference, a=nn.Conv2d(3, 6, 3)).to(memory_format=LAST), torch.randn(2, 3, 8, 8).to(memory_format=LAST),
        "reduction-algebra{finite=True}",
    ),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_models(case: str):
    model, x, pipeline = CASES[case]
    fast = optimize(model.eval(), x, cache=False, lower="eager", pipeline=pipeline)
    for call in (x, torch.cat([x, x])):
        assert fast(call).stride() == model(call).stride()
    assert any("restore-strides" in note for note in fast.report.notes)
    assert any(commit for record in fast.report.records for commit in record.commits)
    again = optimize(model, x, cache=False, lower="eager", plan=fast.plan)
    assert again(x).stride() == model(x).stride()
    assert again.plan == fast.plan


def program(*readers: Any, dynamic: bool = True) -> tuple[Program, Any]:
    """A 1x1 convolution, whose layout a rewrite changes, and what reads it."""
    torch.manual_seed(0)
    p = Program(dynamic=dynamic)
    node: Any = p(aten.conv2d.default, p.input(torch.randn(2, 3, 4, 5)), p.weight("w", torch.randn(4, 3, 1, 1)))
    for target, *args in readers:
        node = p(target, node, *args)
    return p, node


def rewritten(p: Program, graph: Graph) -> int:
    """Rewrite a graph; how many copies it has then. Results, strides and recorded strides are as before."""
    expected = p.run(graph)
    Driver(graph).run([ConvolutionAsLinear()])
    assert "linear" in names(graph)
    graph.check()
    values = p.values(graph)
    for node in graph.calls():
        assert same_strides(values[node], node.meta["val"]), node
    for found, then in zip(p.run(graph), expected, strict=True):
        torch.testing.assert_close(found, then)
        assert same_strides(found, then)
    return copies(graph)


RELU = (aten.relu.default,)


@pytest.mark.parametrize(
    ("readers", "number"),
    [
        ((RELU,), 1),
        ((RELU, RELU, (aten.permute.default, [0, 2, 1, 3])), 1),
        ((RELU, (aten.slice.Tensor, 1, 0, 2)), 1),
        ((RELU, (aten.transpose.int, 0, 3), (aten.exp.default,)), 1),
        ((RELU, (aten.view.default, [-1, 80]), (aten.exp.default,)), 1),
        ((RELU, (aten.view.default, [-1, 4, 4, 5])), 1),
        ((RELU, (aten.reshape.default, [-1, 80])), 0),
        ((RELU, (aten.sum.dim_IntList, [2, 3])), 0),
    ],
    ids=["pointwise", "view", "part", "other order", "inner view", "same view", "copying reshape", "sum"],
)  # fmt: skip
def test_strides_are_handed_on(readers: Any, number: int):
    p, node = program(*readers)
    assert rewritten(p, p.graph(node)) == number


def test_what_an_operator_reads_by_strides():
    p, node = program(RELU, (aten.as_strided.default, [2, 3], [1, 7]), RELU, dynamic=False)
    assert rewritten(p, p.graph(node)) == 1


def test_views_stay_views_of_one_another():
    p, node = program(RELU)
    graph = p.graph(node, p(aten.slice.Tensor, node, 1, 1, 3), p(aten.permute.default, node, [0, 2, 3, 1]))
    assert rewritten(p, graph) == 1
    whole, part, _ = p.run(graph)
    part.zero_()
    assert not whole[:, 1:3].any()


def test_a_written_state_has_strides_of_its_own():
    p, node = program(RELU)
    p.weight("state", torch.zeros(2, 4, 4, 5))
    graph = p.graph(p(aten.sum.default, node), node, mutations=(Mutation("weight", "state"),))
    assert rewritten(p, graph) == 0
    assert p.weights["state"].is_contiguous()


def test_copies_go_when_a_later_run_needs_them_no_more():
    p, node = program(RELU)
    graph = p.graph(node)
    before = names(graph)
    assert rewritten(p, graph) == 1
    Driver(graph).run([])
    assert copies(graph) == 1
    Driver(graph).run([LinearAsConvolution()])
    assert copies(graph) == 0
    assert set(before) < set(names(graph))
