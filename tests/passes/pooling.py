"""What the tests of pooling and reductions share: programs of a few operators, rewritten with every match verified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewrite.driver import StepRecord
from rewrite.graph import Graph
from rewrite.pipeline import Step
from tests.passes.rewriting import apply
from tests.programs import Program, aten, names

CONV = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
CONV_TRANSPOSE = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)


@dataclass
class Outcome:
    """A small program before and after a step.

    Attributes:
        graph: after it.
        record: what was done.
        before, after: results for the program's inputs.
    """

    program: Program
    graph: Graph
    record: StepRecord
    before: Any
    after: Any

    @property
    def operators(self) -> list[str]:
        """What is left that depends on inputs, without sizes and items of tuples."""
        live = {node for node in self.graph.calls() if not self.graph.is_constant(node)}
        found = zip(names(self.graph), self.graph.calls(), strict=True)
        return [name for name, node in found if node in live and name not in ("getitem", "sym_size")]

    @property
    def reasons(self) -> list[str]:
        return [refused.reason for refused in self.record.refused]

    @property
    def remedies(self) -> list[str]:
        return [refused.remedy for refused in self.record.refused]

    def run(self, *inputs: Tensor) -> Any:
        """The rewritten program on other inputs."""
        [result] = self.program.run(self.graph, *inputs)
        return result


def rewritten(
    build: Callable[..., Any],
    step: Step,
    *inputs: Tensor,
    weights: dict[str, Tensor] | None = None,
    dynamic: bool = True,
) -> Outcome:
    """Rewrite ``build(program, *inputs, **weights)``; the first size of each input is symbolic if ``dynamic``."""
    program = Program(dynamic)
    given = [program.input(tensor) for tensor in inputs]
    named = {name: program.weight(name, tensor) for name, tensor in (weights or {}).items()}
    result = build(program, *given, **named)
    graph = program.graph(*(result if isinstance(result, tuple) else (result,)))
    before = program.run(graph.copy())
    record = apply(graph, step).record
    after = program.run(graph)
    if not isinstance(result, tuple):
        before, after = before[0], after[0]
    return Outcome(program, graph, record, before, after)


def agree(found: Tensor, expected: Tensor, scale: Tensor | float = 1.0) -> None:
    """Float64 results agree to rounding, relative to ``scale``; they have the same values that are not finite."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == torch.float64
    finite = torch.isfinite(expected)
    assert torch.equal(finite, torch.isfinite(found))
    error = torch.where(finite, (found - expected).abs(), 0.0)
    assert (error <= 1e-12 * torch.as_tensor(scale).clamp_min(1.0)).all(), float(error.max())
