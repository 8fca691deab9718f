"""Small graphs made operator by operator, without a trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from rewrite import compat
from rewrite.graph import Graph, Signature, fake_call

aten = torch.ops.aten


class Program:
    """Builds a :class:`Graph`: inputs, weights and operators in order.

        p = Program()
        x = p.input(torch.randn(2, 3, 8, 8))
        graph = p.graph(p(aten.relu.default, x))

    The first dimension of inputs is symbolic unless ``batch`` is False.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(shape_env=ShapeEnv())
        self.fx = fx.Graph()
        self.weights: dict[str, Tensor] = {}
        self.examples: list[Tensor] = []
        self.batch: Any = None

    def input(self, example: Tensor, batch: bool = True, free: tuple[int, ...] = ()) -> Node:
        """A flat input shaped as the example; dimensions in ``free`` have symbols of their own."""
        node = self.fx.placeholder(f"input{len(self.examples)}")
        self.examples.append(example)
        sizes: list[Any] = list(example.shape)
        if batch:
            self.batch = self._symbol(2, "batch") if self.batch is None else self.batch
            sizes[0] = self.batch
        for dim in free:
            sizes[dim] = self._symbol(sizes[dim], f"{node.name}_{dim}")
        with self.mode:
            node.meta["val"] = torch.empty(sizes, dtype=example.dtype)
        return node

    def _symbol(self, size: int, name: str) -> torch.SymInt:
        env, source = self.mode.shape_env, ConstantSource(name)
        symbol = env.create_symbol(size, source, dynamic_dim=DimDynamic.DYNAMIC)
        return env.create_symintnode(symbol, hint=size, source=source)

    def weight(self, value: Tensor) -> Node:
        name = f"weight{len(self.weights)}"
        self.weights[name] = value
        node = self.fx.create_node("get_attr", name)
        node.meta["val"] = self.mode.from_tensor(value, static_shapes=True)
        return node

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        node = self.fx.call_function(target, args, kwargs)
        node.meta["val"] = fake_call(self.mode, target, args, kwargs)
        return node

    def graph(self, *outputs: Node) -> Graph:
        self.fx.output(outputs)
        in_spec = compat.tree_flatten((tuple(self.examples), {}))[1]
        out_spec = compat.tree_flatten(outputs)[1]
        names = tuple(f"input{i}" for i in range(len(self.examples)))
        graph = Graph(self.fx, self.weights, Signature(in_spec, out_spec, names, len(outputs)), self.mode)
        graph.check()
        return graph
