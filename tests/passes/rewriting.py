"""What the tests of passes share beside :mod:`rewrite.testing`: random norms, the bound of the one layer left."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewrite import compat
from rewrite.graph import Graph
from rewrite.ops import Convolution, Linear, value
from rewrite.pipeline import Step
from rewrite.testing import Result
from rewrite.testing.assertions import apply
from rewrite.trace import capture


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
    return folded_graph(result).to_module()


def folded_graph(result: Result) -> Graph:
    """That program as a graph."""
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
    return graph


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
