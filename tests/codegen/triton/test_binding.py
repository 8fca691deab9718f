"""Kernels in a module: several of them, one behind the other, and values that others read."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import torch
from torch import Tensor, nn

from codegen.triton.binding import bind
from codegen.triton.device import REFERENCE
from codegen.triton.launching import interpreted
from codegen.triton.planning import planned
from rewrite import kernel_plan
from tests.codegen.triton.kernels import last, module_of


class Chain(nn.Module):
    """Two depthwise convolutions, the second of which reads what the first gives and adds it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(6, 6, 3, padding=1, groups=6) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = torch.relu(self.a(x))
        second = torch.nn.functional.silu(self.b(first)) + first
        return second, first.mean((2, 3)), second.permute(0, 2, 3, 1)


def test_a_kernel_reads_what_another_one_gives() -> None:
    model, x = Chain().eval(), torch.randn(2, 6, 9, 7)
    module = module_of(model, x)
    plan = planned(module.graph, replace(REFERENCE, copy=1e9))  # where such small ones are worth it
    kernels = [each.candidates[0].emit() for each in plan.regions]
    assert len(kernels) == 2
    bind(module, kernels, interpreted, "CPU")
    calls = [node for node in module.graph.nodes if "torch_rewrite" in str(node.target)]
    assert len(calls) == 2
    assert not any("conv" in str(node.target) for node in module.graph.nodes)
    with torch.no_grad():
        for found, wanted in zip(module(x), model.double()(x.double()), strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


class Noisy(nn.Module):
    """A convolution whose result draws random numbers, and its input behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.conv(x))
        return y + torch.rand_like(y), torch.rand_like(x)


def test_random_numbers_are_drawn_in_order() -> None:
    model, x = Noisy().eval(), torch.randn(2, 6, 5, 5)
    module = module_of(model, x)
    kernels = [each.candidates[0].emit() for each in planned(module.graph, REFERENCE).regions]
    bind(module, kernels, interpreted, "CPU")
    assert len(kernels) == 1
    with torch.no_grad():
        torch.manual_seed(0)
        wanted = model(x)
        torch.manual_seed(0)
        found = module(x)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_samples_too_large_for_indices_stay_as_they_are() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x)).permute(1, 0, 2, 3).contiguous()

    small, large = (kernel_plan(Turned().eval(), torch.randn(2, 6, 64, 64), batch=batch) for batch in (2, 1 << 19))
    assert "clone" in str(small)
    assert "clone" not in str(large)


def test_operators_hold_no_weights() -> None:
    model, x = Chain().eval(), torch.randn(1, 6, 5, 5)
    module = module_of(model, x)
    plan = planned(module.graph, REFERENCE)
    bind(module, [each.candidates[0].emit() for each in plan.regions], interpreted, "CPU")
    held = [weakref.ref(tensor) for tensor in (*module.buffers(), *module.parameters())]
    assert held
    del module, plan, model
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)


class Shared(nn.Module):
    """A kernel of a convolution that is also read as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.conv(x)), self.conv.weight * x.mean()


def test_weights_lie_as_kernels_read_them_for_kernels_alone() -> None:
    model, x = Shared().eval(), last(torch.randn(2, 6, 9, 7))
    module = module_of(model, x)
    before = module.code
    plan = planned(module.graph, REFERENCE)
    assert module.code == before
    (kernel,) = (each.candidates[0].emit() for each in plan.regions)
    assert [each.stride for each in kernel.reads[1:]] == [(1, 54, 18, 6), (1,)]
    bind(module, [kernel], interpreted, "CPU")
    (call,) = (node for node in module.graph.nodes if "torch_rewrite" in str(node.target))
    read = [getattr(module, str(node.target)) for node in call.args[1:2]]
    assert read[0].stride() == (1, 54, 18, 6)
    with torch.no_grad():
        for found, wanted in zip(module(x), model(x), strict=True):
            torch.testing.assert_close(found, wanted)
            assert found.stride() == wanted.stride()
