"""Gradients through the rewritten graph, before anything is folded, against those of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rewrite import evaluate
from rewrite.graph import Graph
from rewrite.testing.program import Program
from rewrite.testing.reference import call, double

TOLERANCE = 1e-9
"""Of the largest gradient of each tensor."""

FLOOR = 1e-12
"""Of the largest gradient of all: some are zero in exact arithmetic, as a bias before a norm, and differ by noise."""


def gradient_difference(model: nn.Module, old: Graph, new: Graph, inputs: Sequence[Any]) -> str:
    """How the gradients of inputs and parameters differ in float64; '' where they agree.

    The gradient of each output is random.
    """
    flat = [evaluate.lift(value).detach().clone() if isinstance(value, Tensor) else value for value in inputs]
    with double(model) as twin, torch.enable_grad():
        known: dict[str, Tensor] = dict(twin.named_parameters(remove_duplicate=False))
        mine = [_leaf(value) for value in flat]
        theirs = [_leaf(value) for value in flat]
        expected = _through(call(twin, old, mine)[: old.signature.outputs], mine, known)
        program = Program.of(new)
        shared = {id(tensor): tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in known.values()}
        leaves = {name: shared[id(tensor)] for name, tensor in known.items()}
        values = program.values(theirs, double=True)
        weights = [node for node in program.fragment.inputs if node.op == "get_attr"]
        values |= {node: leaves[str(node.target)] for node in weights if str(node.target) in leaves}
        outputs = program.outputs(program.environment(values))[: new.signature.outputs]
        found = _through(outputs, theirs, leaves)
    largest = max((float(g.abs().max()) for g in expected.values() if g.numel()), default=0.0)
    for name, gradient in expected.items():
        result = found.get(name, torch.zeros_like(gradient))
        if gradient.numel() == 0:
            continue
        allowed = TOLERANCE * float(gradient.abs().max()) + FLOOR * largest
        error = float((result - gradient).abs().max())
        if not error <= allowed:
            return f"the gradient of {name} differs by {error:.2e}, allowed {allowed:.2e}"
    return ""


def _leaf(value: Any) -> Any:
    floating = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
    return value.detach().clone().requires_grad_() if floating else value


def _through(outputs: Sequence[Any], inputs: Sequence[Any], parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of inputs and parameters by name, zero where nothing depends on them."""
    leaves = {
        f"input {i}": value for i, value in enumerate(inputs) if isinstance(value, Tensor) and value.requires_grad
    }
    leaves |= {f"'{name}'": tensor for name, tensor in parameters.items() if tensor.requires_grad}
    pulled: list[Tensor] = []
    seeds: list[Tensor] = []
    for i, output in enumerate(outputs):
        if output.requires_grad:
            generator = torch.Generator().manual_seed(i)
            pulled.append(output)
            seeds.append(torch.randn(output.shape, generator=generator, dtype=output.dtype))
    if not pulled or not leaves:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found: tuple[Any, ...] = torch.autograd.grad(pulled, list(leaves.values()), seeds, allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return {name: torch.zeros_like(leaf) if gradient is None else gradient for (name, leaf), gradient in pairs}
