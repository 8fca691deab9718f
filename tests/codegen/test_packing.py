"""Modules that are timed in the place of compiled code compute the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from codegen.inductor import Inductor
from codegen.packing import PackedConvolution, PackedLinear
from rewrite import compat
from rewrite.select.rehearsal import Rehearsal, rehearsal
from rewrite.select.sites import as_it_is
from rewrite.select.worlds import Layout, Worlds
from rewrite.trace import capture

needs_mkldnn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
needs_mkl = pytest.mark.skipif(not compat.has_mkl(), reason="needs MKL")


def part(layer: nn.Module, x: Tensor) -> Rehearsal:
    """The last operator of a layer, rehearsed for an input."""
    graph = capture(layer.eval(), (x,)).graph
    worlds = Worlds.of(graph, [x])
    return rehearsal(graph, as_it_is(graph.calls()[-1]), worlds.values[Layout.FIRST])


def packed(layer: nn.Module, x: Tensor) -> tuple[list[type[nn.Module]], Tensor, Tensor]:
    """The kinds of packed kernels, the result with them, and the result before in float64."""
    rehearsed = part(layer, x)
    expected = rehearsed.module.double()(*(value.double() for value in rehearsed.inputs))[0]
    call = Inductor().rehearse(rehearsed.module.float())
    found = call(*rehearsed.inputs)[0]
    return [type(child) for child in rehearsed.module.children()], found, expected


@needs_mkldnn
@pytest.mark.parametrize(("layer", "shape"), [
    (nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 9, 11)),
    (nn.Conv2d(8, 8, (1, 5), dilation=2, groups=8, bias=False), (2, 8, 9, 11)),
    (nn.Conv2d(8, 8, 3, groups=4), (1, 8, 9, 11)),
    (nn.Conv3d(2, 4, 3, padding=1), (2, 2, 5, 6, 7)),
])  # fmt: skip
def test_convolutions_are_packed(layer, shape):
    kinds, found, expected = packed(layer, torch.randn(shape))
    assert kinds == [PackedConvolution]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    assert found.is_contiguous(memory_format=layout)


@needs_mkl
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_are_packed(bias):
    kinds, found, expected = packed(nn.Linear(12, 7, bias=bias), torch.randn(2, 3, 5, 12))
    assert kinds == [PackedLinear]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer", "shape"), [
    (nn.Conv1d(3, 4, 3), (2, 3, 9)),
    (nn.ConvTranspose2d(3, 4, 3), (2, 3, 9, 9)),
    (nn.Conv2d(3, 4, 2, padding="same"), (2, 3, 9, 9)),
    (nn.GELU(), (2, 3)),
])  # fmt: skip
def test_what_compiled_code_does_not_pack_stays(layer, shape):
    kinds, found, expected = packed(layer, torch.randn(shape))
    assert kinds == []
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_drawn_inputs_lie_as_they_will():
    x = torch.randn(2, 3, 9, 9).to(memory_format=torch.channels_last)
    (drawn,) = part(nn.Conv2d(3, 4, 3), x).inputs
    assert drawn.shape == x.shape
    assert drawn.stride() == x.stride()
    assert not torch.equal(drawn, x)
