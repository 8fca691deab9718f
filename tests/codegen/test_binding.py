"""Convolutions that keep their layout in compiled code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from codegen.binding import bound
from passes import DepthwiseChannelsFirst, FoldConstants, Simplify
from rewrite import compat, optimize
from rewrite.graph import Graph
from rewrite.ops import Convolution, view_as

needs_compiler = pytest.mark.skipif(compat.cpp_compiler() is None, reason="needs a C++ compiler")

OPERATOR = "planar_convolution2d"


class Wide(nn.Module):
    """A wide depthwise convolution between others."""

    def __init__(self, kernel: int = 13) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, kernel, padding=kernel // 2, groups=8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.stem(x).relu()) + 1)


X = torch.randn(2, 3, 20, 20)
STEPS = [DepthwiseChannelsFirst(), Simplify(), FoldConstants()]


def graph_of(model: nn.Module) -> Graph:
    return optimize(model, X, pipeline=STEPS, lower="eager")._engine.newest()[0].graph


def test_the_copy_stays_and_binds_its_convolution():
    graph = graph_of(Wide().eval())
    targets = [node.target for node in bound(graph).calls()]
    assert targets.count(getattr(torch.ops.torch_rewrite, OPERATOR).default) == 1
    assert sum(view_as(node, Convolution) is not None for node in graph.calls()) == 3  # the graph is as it was


def test_narrow_kernels_are_not_bound():
    graph = graph_of(Wide(9).eval())
    assert bound(graph) is graph


@needs_compiler
def test_compiled_code_gives_it_contiguous_operands(monkeypatch: pytest.MonkeyPatch):
    model = Wide().eval()
    sources: list[str] = []
    from torch._inductor.graph import GraphLowering

    codegen = GraphLowering.codegen

    def recording(self, *args, **kwargs):
        result = codegen(self, *args, **kwargs)
        sources.append(result[0].value if hasattr(result[0], "value") else str(result[0]))
        return result

    monkeypatch.setattr(GraphLowering, "codegen", recording)
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        fast = optimize(model, X, pipeline=STEPS, lower="inductor")
        found = fast(X)
    expected = model.double()(X.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    (source,) = sources
    call = next(line for line in source.splitlines() if f"torch_rewrite.{OPERATOR}.default(" in line)
    operand = call.split(f"{OPERATOR}.default(")[1].split(",")[0]
    made = next(line for line in source.splitlines() if line.strip().startswith(f"{operand} = empty_strided_cpu"))
    assert "(3200, 400, 20, 1)" in made  # channels first, among convolutions that have them last
