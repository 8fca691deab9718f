"""What every lowering needs: the flat module, and batch norms that update their statistics in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rewrite.graph import Graph
from rewrite.lowering import differentiable, flat_module, run_eagerly, weight_order, written_weights
from rewrite.trace import capture

aten = torch.ops.aten


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, power: int = 2) -> tuple[Tensor, None, int]:
        self.calls.add_(1)
        return self.norm(self.linear(x)) ** power, None, power


def graph_of(module: nn.Module, *args: object) -> Graph:
    return capture(module, args, {}, training=True).graph


def test_the_flat_module_takes_inputs_then_weights_and_returns_new_state_last() -> None:
    model, x = Counted(), torch.randn(3, 4)
    graph = graph_of(model, x)
    order = weight_order(graph)
    assert set(order[: len(written_weights(graph))]) == {
        "calls", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip
    weights = [graph.weights[name].detach().clone() for name in order]
    outputs = flat_module(graph, order)(x, *weights)
    written = dict(zip((m.target for m in graph.signature.mutations), outputs[graph.signature.outputs :], strict=True))
    assert float(weights[order.index("calls")]) == 0
    result, nothing, power = model(x)
    assert torch.allclose(outputs[0], result)
    assert (outputs[1], outputs[2]) == (nothing, power)
    for name, value in written.items():
        assert torch.allclose(value, model.get_buffer(name)), name


def test_baked_weights_and_literal_inputs_are_no_arguments() -> None:
    model, x = Counted().eval(), torch.randn(3, 4)
    graph = capture(model, (x, 3), {}).graph
    order = weight_order(graph)
    written = written_weights(graph)
    module = flat_module(graph, written, graph.weights, {1: 3})
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    assert len(placeholders) == 1 + len(written)
    state = [graph.weights[name] for name in written]
    assert torch.equal(module(x, *state)[0], run_eagerly(graph, order)([x, 3], [graph.weights[n] for n in order])[0])


def norms(graph: Graph) -> dict[str, int]:
    names = [str(node.target) for node in graph.calls()]
    return {name: names.count(f"aten.{name}.default") for name in ("batch_norm", "_native_batch_norm_legit_functional")}


def test_differentiable_norms_write_their_statistics() -> None:
    model, x = Counted(), torch.randn(6, 4)
    graph = graph_of(model, x)
    before = [str(node) for node in graph.nodes]
    twin = differentiable(graph)
    assert norms(twin) == {"batch_norm": 1, "_native_batch_norm_legit_functional": 0}
    assert {mutation.target for mutation in twin.signature.mutations} == {"calls", "norm.num_batches_tracked"}
    assert [str(node) for node in graph.nodes] == before
    order = weight_order(graph)
    weights = [graph.weights[name].detach().clone().requires_grad_(graph.weights[name].requires_grad) for name in order]
    out = run_eagerly(twin, order)([x], weights)[0]
    out.sum().backward()
    model(x)[0].sum().backward()
    for name, tensor in zip(order, weights, strict=True):
        if tensor.requires_grad:
            assert torch.allclose(tensor.grad, model.get_parameter(name).grad, atol=1e-5), name
        elif "running" in name:
            assert torch.allclose(tensor, model.get_buffer(name)), name


class ReturnsStatistic(Counted):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        old = self.norm.running_mean * 2
        result = self.norm(self.linear(x))
        return result, old, self.norm.running_mean * 2, self.norm.running_mean.clone()


def test_other_readers_of_a_statistic_get_the_value_of_their_place() -> None:
    model, x = ReturnsStatistic(), torch.randn(6, 4)
    model.norm.running_mean.fill_(3)
    graph = graph_of(model, x)
    order = weight_order(graph)
    weights = [graph.weights[name].detach().clone() for name in order]
    twin = differentiable(graph)
    assert norms(twin) == {"batch_norm": 1, "_native_batch_norm_legit_functional": 0}
    found = run_eagerly(twin, order)([x], weights)
    for mine, theirs in zip(found, model(x), strict=False):
        assert torch.allclose(mine, theirs)
