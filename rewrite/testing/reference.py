"""The user's model as the oracle: called on copies of itself, in its own dtypes and in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from rewrite import compat, evaluate
from rewrite.graph import Graph
from rewrite.trace import replica
from rewrite.trace.twin import clones, leaves


@contextlib.contextmanager
def double(model: nn.Module) -> Iterator[nn.Module]:
    """A copy of a model in float64: parameters, buffers, and tensors that are plain attributes."""
    with replica(model) as twin:
        for module in twin.double().modules():
            for name, value in list(vars(module).items()):
                if isinstance(value, Tensor):
                    setattr(module, name, evaluate.lift(value))
        yield twin


def call(model: nn.Module, graph: Graph, flat: Sequence[Any]) -> list[Any]:
    """All tensors that a call of a model gives, in the order of the graph's outputs: returned first, then written.

    The model and the flat inputs are used themselves: pass copies where calls write to them.
    """
    args, kwargs = compat.tree_unflatten(list(flat), graph.signature.in_spec)
    outputs = compat.tree_flatten(model(*args, **kwargs))[0]
    places = {str(node.target): i for i, node in enumerate(graph.inputs)}
    outputs += [
        flat[places[mutation.target]] if mutation.kind == "input" else attrgetter(mutation.target)(model)
        for mutation in graph.signature.mutations
    ]
    return [value for value in outputs if isinstance(value, Tensor)]


@dataclass(frozen=True)
class Snapshot:
    """All that a rewrite may not change in the user's model."""

    tensors: dict[str, tuple[Tensor, Tensor]]
    flags: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """The present state."""
        found = {name: leaf for name, leaf in leaves(model).items() if isinstance(leaf, Tensor)}
        return cls({name: (tensor, tensor.detach().clone()) for name, tensor in found.items()}, _flags(model))

    def changes(self, model: nn.Module) -> list[str]:
        """What is different now, one text for each."""
        now, changes = leaves(model), []
        present = {name for name, leaf in now.items() if isinstance(leaf, Tensor)}
        changes += [f"'{name}' is new" for name in sorted(present - self.tensors.keys())]
        for name, (tensor, before) in self.tensors.items():
            if now.get(name) is not tensor:
                changes.append(f"'{name}' is another object")
            elif not same_bits(tensor.detach(), before):
                changes.append(f"'{name}' has other values")
        after = _flags(model)
        for name in sorted(self.flags.keys() | after.keys()):
            if self.flags.get(name) != after.get(name):
                changes.append(f"{name} was {self.flags.get(name)} and is {after.get(name)}")
        return changes


def _flags(model: nn.Module) -> dict[str, Any]:
    flags: dict[str, Any] = {f"the mode of '{name}'": module.training for name, module in model.named_modules()}
    for name, leaf in leaves(model).items():
        if isinstance(leaf, Tensor):
            flags[f"requires_grad of '{name}'"] = leaf.requires_grad
            flags[f"the gradient of '{name}'"] = leaf.grad is not None if leaf.is_leaf else None
        else:
            flags[f"'{name}'"] = leaf if isinstance(leaf, (int, float, str, bool, type(None))) else type(leaf)
    return flags


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN equal to NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def own_dtype(model: nn.Module, graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """What a model gives in its own dtypes, called on a copy."""
    with replica(model) as twin, torch.no_grad():
        return call(twin, graph, clones(list(inputs)))


def in_double(model: nn.Module, graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """What a model gives in float64."""
    with double(model) as twin, torch.no_grad():
        return call(twin, graph, [evaluate.lift(value) for value in clones(list(inputs))])
