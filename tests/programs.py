"""Graphs written operator by operator, for tests that need a certain program and no model around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from rewrite import compat, evaluate
from rewrite.graph import Graph, Mutation, Signature, fake_call

aten = torch.ops.aten


class Program:
    """Collects nodes; calling it with an operator adds one.

    With ``dynamic`` dimension 0 of every input is a symbolic size of its own.
    """

    def __init__(self, dynamic: bool = False):
        self.fx = fx.Graph()
        self.mode = compat.FakeTensorMode(shape_env=ShapeEnv())
        self.dynamic = dynamic
        self.weights: dict[str, Tensor] = {}
        self.inputs: list[Tensor] = []

    def input(self, tensor: Tensor, free: tuple[int, ...] = ()) -> Node:
        """An input, of which the ``free`` dimensions are symbolic sizes too."""
        node = self.fx.placeholder(f"x{len(self.inputs)}")
        self.inputs.append(tensor)
        sizes = [DimDynamic.STATIC] * tensor.dim()
        if self.dynamic:
            sizes[0] = DimDynamic.DYNAMIC
        for dim in free:
            sizes[dim] = DimDynamic.DYNAMIC
        node.meta["val"] = self.mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(sizes))
        return node

    def weight(self, name: str, tensor: Tensor) -> Node:
        node = self.fx.create_node("get_attr", name)
        self.weights[name] = tensor
        node.meta["val"] = self.mode.from_tensor(tensor, static_shapes=True)
        return node

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        node = self.fx.call_function(target, args, kwargs)
        node.meta["val"] = fake_call(self.mode, target, args, kwargs)
        return node

    def graph(self, *outputs: Any, mutations: tuple[Mutation, ...] = ()) -> Graph:
        """The graph with these outputs; the last ones are the new values of ``mutations``."""
        self.fx.output(outputs)
        user = outputs[: len(outputs) - len(mutations)]
        names = tuple(f"x{i}" for i in range(len(self.inputs)))
        in_spec = compat.tree_flatten((tuple(self.inputs), {}))[1]
        signature = Signature(in_spec, compat.tree_flatten(tuple(user))[1], names, len(user), mutations)
        graph = Graph(self.fx, self.weights, signature, self.mode)
        graph.check()
        return graph

    def values(self, graph: Graph) -> dict[Node, Any]:
        """The real value of every node of a graph of this program."""
        env: dict[Node, Any] = dict(zip(graph.inputs, self.inputs, strict=True))
        env |= {node: graph.weights[str(node.target)] for node in graph.nodes if node.op == "get_attr"}
        with torch.no_grad():
            evaluate.run(graph.nodes, env)
        return env

    def run(self, graph: Graph, *inputs: Tensor) -> tuple[Any, ...]:
        """What a graph of this program returns, for the inputs that it was written with unless others are given."""
        with torch.no_grad():
            return graph.to_module()(*(inputs or self.inputs))


def names(graph: Graph) -> list[str]:
    """The operators of a graph, in order, without overloads."""
    return [getattr(node.target, "_opname", None) or node.target.__name__ for node in graph.calls()]


def same_bits(a: Any, b: Any) -> bool:
    """Whether two results agree to the bit: NaN is NaN, ``-0.0`` is not ``0.0``."""
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same_bits, a, b))
    if not isinstance(a, Tensor):
        return bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = a.resolve_conj().contiguous(), b.resolve_conj().contiguous()
    return torch.equal(a.view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))


def special(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers among which are both zeros, both infinities, NaN, a denormal and the largest number."""
    numbers = torch.randn(shape, dtype=dtype)
    info = torch.finfo(dtype)
    found = torch.tensor(
        [0.0, -0.0, float("inf"), float("-inf"), float("nan"), info.tiny / 2, info.max, 1.0], dtype=dtype
    )
    flat = numbers.view(-1)
    flat[: found.numel()] = found[: flat.numel()]
    return flat[torch.randperm(flat.numel())].view(shape)
