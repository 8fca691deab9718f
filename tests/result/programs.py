"""Programs for the result to run, made as the compiler makes them, with batch norms folded into kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.graph import Graph, fake_call
from rewrite.ops import BatchNorm, Convolution, view_as
from rewrite.provenance import KEY, Origin
from rewrite.result import OptimizedModule, Program, TransformedModule
from rewrite.result.reading import holder
from rewrite.trace import capture

aten = torch.ops.aten


class Net(nn.Module):
    """Two folded norms, a head that is read as it is, an unused buffer, and attributes as timm has them."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, classes)
        self.register_buffer("unused", torch.ones(2))
        self.num_classes = classes
        self.pretrained_cfg = {"input_size": (3, 8, 8)}

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (x + self.body(x)).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.forward_features(x).mean((2, 3)))


def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw statistics, scales and biases, in place, so that no norm is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                low = 0.5 if name.endswith(("running_var", "weight")) else -1.0
                tensor.copy_(torch.empty(tensor.shape).uniform_(low, 1.5, generator=generator))
    return model


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return spread(Net(), seed).eval()


def image(batch: int = 2, size: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


class Compiler:
    """Captures, folds, and counts how often it was asked."""

    def __init__(self, model: nn.Module, value_rules: tuple[str, ...] = ()) -> None:
        self.model = model
        self.calls = 0
        self.value_rules = value_rules

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], tuned: bool = True) -> Program:
        self.calls += 1
        return Program(program(self.model, args, kwargs), f"report {self.calls}", self.value_rules)


_known: dict[Any, Graph] = {}


def program(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """The captured and folded graph; a model of known structure is not captured again, which takes seconds."""
    state = tuple((name, tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items())
    inputs = tuple((leaf.shape[1:], leaf.shape[:1] == (1,), leaf.dtype) if isinstance(leaf, Tensor) else leaf
                   for leaf in compat.tree_flatten((args, kwargs))[0])  # fmt: skip
    key = type(model), state, inputs, compat.tree_flatten((args, kwargs))[1]
    if key not in _known or any(module.training for module in model.modules()):
        _known[key] = capture(model, args, kwargs).graph
        fold_norms(_known[key])
        _known[key].check()
        _known[key].weights = {name: tensor.detach().clone() for name, tensor in _known[key].weights.items()}
    graph = _known[key].copy()
    for name in graph.weights:
        held = holder(model, name)
        if held is not None:
            graph.weights[name] = held[name.rpartition(".")[2]]
    graph.weights.update(graph.program.evaluate(graph.weights))
    return graph


def optimize(model: nn.Module, *args: Any, lowering: Any = None, **kwargs: Any) -> OptimizedModule:
    """The result for an example call, as ``rewrite.optimize`` makes it."""
    result = OptimizedModule(model, Compiler(model), lowering)
    if args or kwargs:
        result.specialize(args, kwargs)
    return result


def transform(model: nn.Module, *args: Any, lowering: Any = None) -> TransformedModule:
    graph = capture(model, args, {}, training=True).graph
    return TransformedModule(model, Program(graph, "report"), lowering)


def fold_norms(graph: Graph) -> int:
    """Fold each evaluated batch norm into the convolution before it; the number of norms."""
    count = 0
    for node in graph.calls():
        norm = view_as(node, BatchNorm)
        layer = view_as(norm.input, Convolution) if norm is not None and not norm.batch_statistics else None
        if norm is None or layer is None or len(layer.node.users) > 1:
            continue
        count += 1
        _fold(graph, norm, layer, f"folded_{count}")
    graph.eliminate_dead()
    return count


def _fold(graph: Graph, norm: BatchNorm, layer: Convolution, name: str) -> None:
    def algebra(target: Any, *args: Any) -> Any:
        node = graph.fx.call_function(target, args)
        node.meta = {"val": fake_call(graph.fake_mode, target, args, {}), KEY: Origin("fold", 1, (), algebra=True)}
        return node

    def fold(node: Any, part: str) -> Any:
        full = f"{name}.{part}"
        graph.weights[full] = graph.value(node)
        graph.program.absorb(node, full)
        stored = graph.fx.get_attr(full)
        stored.meta["val"] = node.meta["val"]
        return stored

    with graph.fx.inserting_before(layer.node):
        scale = algebra(aten.div.Tensor, norm.weight, algebra(aten.sqrt.default,
                        algebra(aten.add.Tensor, norm.var, norm.eps)))  # fmt: skip
        kernel = algebra(aten.mul.Tensor, layer.weight, algebra(aten.reshape.default, scale, [-1, 1, 1, 1]))
        mean = norm.mean if layer.bias is None else algebra(aten.sub.Tensor, norm.mean, layer.bias)
        bias = algebra(aten.sub.Tensor, norm.bias, algebra(aten.mul.Tensor, mean, scale))
        args = (layer.input, fold(kernel, "weight"), fold(bias, "bias"), *layer.node.args[3:])
        made = graph.fx.call_function(layer.node.target, args)
        made.meta = dict(norm.node.meta)
    norm.node.replace_all_uses_with(made)
    graph.touch()


def close(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    """Whether two outputs agree up to rounding, relative to the largest value."""
    a, b = a.detach(), b.detach()
    return a.shape == b.shape and a.dtype == b.dtype and float((a - b).abs().max()) <= tolerance * float(b.abs().max())
