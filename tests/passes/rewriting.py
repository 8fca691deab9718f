"""What the tests of passes share: run a pass on a small model with every match verified, and compare with the model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewrite import compat
from rewrite.driver import Driver, StepRecord
from rewrite.graph import Graph
from rewrite.ops import BatchNorm, Convolution, Linear, View, value, view
from rewrite.pipeline import Step
from rewrite.trace import capture
from rewrite.verify import MatchVerifier


def scatter(model: nn.Module) -> nn.Module:
    """Give every norm statistics and parameters that hide nothing, some scales negative; the model in eval mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.3, 2.0)
            if module.affine:
                with torch.no_grad():
                    module.weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand_like(module.weight) < 0.3, -1, 1))
                    module.bias.normal_()
    return model.eval()


@dataclass
class Result:
    """A rewritten model."""

    graph: Graph
    record: StepRecord

    def views(self, *kinds: type[View]) -> list[Any]:
        """The operators of these kinds that depend on the input, in order."""
        live = [view(node) for node in self.graph.calls() if not self.graph.is_constant(node)]
        return [found for found in live if isinstance(found, kinds)]

    @property
    def layers(self) -> list[Any]:
        return self.views(Convolution, Linear)

    @property
    def norms(self) -> list[Any]:
        return self.views(BatchNorm)

    @property
    def operators(self) -> list[str]:
        """The operators that depend on the input, by name."""
        return [str(node.target).split(".")[1] for node in self.graph.calls() if not self.graph.is_constant(node)]

    @property
    def reasons(self) -> list[str]:
        return [refused.reason for refused in self.record.refused]


def apply(graph: Graph, step: Step) -> Result:
    """Run a step with verification; nothing may be rejected, and a second run finds nothing more."""
    record = Driver(graph, MatchVerifier()).run([step])[0]
    assert not record.rejections, record.rejections
    graph.check()
    again = Driver(graph, MatchVerifier()).run([step])[0]
    assert not again.commits
    return Result(graph, record)


def rewrite(model: nn.Module, step: Step, *inputs: Tensor, training: bool = False) -> Result:
    """Capture a model and run a step over it."""
    return apply(capture(model, inputs, training=training).graph, step)


def assert_exact(result: Result, model: nn.Module, *inputs: Tensor) -> None:
    """In float64 both agree to 1e-12 of the largest output."""
    double = [x.double() for x in inputs]
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(*double)
        weights = {name: tensor.double() for name, tensor in result.graph.weights.items() if tensor.is_floating_point()}
        found = result.graph.to_module(weights)(*double)
    _assert_close(found, expected)


def _assert_close(found: Any, expected: Any) -> None:
    for a, b in zip(compat.tree_flatten(found)[0], compat.tree_flatten(expected)[0], strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-12 * max(1.0, b.abs().max())


def assert_bounded(result: Result, model: nn.Module, x: Tensor) -> None:
    """In float32 the one layer that is left errs, element by element, by no more than its own terms allow.

    The bound is ``4 (n + 8) u (|W| |x| + |b|)`` for sums of n products, the reference the model in float64.
    """
    (layer,) = result.layers
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double())
        found = folded(result)(x)
    size = value(layer.weight).numel() // layer.out_channels if isinstance(layer, Convolution) else layer.in_features
    assert found.dtype == torch.float32
    allowed = 4 * (size + 8) * 2.0**-24 * magnitude(result, x.double())
    assert ((found.double() - expected).abs() <= allowed).all()


def folded(result: Result) -> nn.Module:
    """The program with its weight algebra evaluated in float64 and rounded once."""
    graph = result.graph.copy()
    for node in list(graph.nodes):
        if node.op == "call_function" and graph.is_constant(node):
            name = f"folded_{node.name}"
            graph.weights[name] = graph.value(node)
            with graph.fx.inserting_before(node):
                new = graph.fx.create_node("get_attr", name)
            new.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(new)
            graph.touch()
    graph.eliminate_dead()
    return graph.to_module()


def magnitude(result: Result, x: Tensor) -> Tensor:
    """The only layer of a program over absolute values."""
    (layer,) = result.layers
    weights = [None if w is None else result.graph.value(w).double().abs() for w in (layer.weight, layer.bias)]
    if isinstance(layer, Linear):
        return F.linear(x.abs(), *weights)
    dims, padding = layer.dims, [low for low, _ in layer.padding]
    assert all(low == high for low, high in layer.padding)
    if layer.transposed:
        operator = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
        return operator(
            x.abs(), *weights, layer.stride, padding, layer.output_padding, layer.groups, layer.dilation
        )  # fmt: skip
    operator = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    return operator(x.abs(), *weights, layer.stride, padding, layer.dilation, layer.groups)
