"""`optimize` and `transform` on a CUDA device, against the model in float64 on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rewrite import optimize, transform
from tests.corpus import input_for, load, randomize

NETWORKS = ("resnet18", "repvgg_a0", "fastvit_t8", "convnext_atto")
# of the largest output; float32 without TF32
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double().cpu() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, dtype: torch.dtype) -> None:
    model = randomize(load(name))
    x = input_for(model)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        model, x = model.to("cuda", dtype), x.to("cuda", dtype)
        fast = optimize(model, x, lower="eager")
        # no worse than the model itself, which may be far off in half precision
        assert error(fast(x), exact) <= max(BOUNDS[dtype], 3 * error(model(x), exact))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_inductor(layout: torch.memory_format) -> None:
    model = randomize(load("repvgg_a0"))
    x = input_for(model)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        model, x = model.to("cuda", memory_format=layout), x.to("cuda", memory_format=layout)
        fast = optimize(model, x)
        found = fast(x)
        assert error(found, exact) <= 1e-4
        assert found.stride() == model(x).stride()


def test_a_result_moves_to_the_device() -> None:
    model = randomize(load("resnet18"))
    x = input_for(model)
    fast = optimize(model, x, lower="eager")
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        assert error(fast.to("cuda")(x.cuda()), exact) <= 1e-4
    assert next(model.parameters()).device.type == "cpu"


def test_weights_are_watched() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval().cuda()
    x = torch.randn(2, 3, 16, 16, device="cuda")
    fast = optimize(model, x, lower="eager")
    with torch.no_grad():
        model[0].weight.mul_(-2)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_training() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).cuda()
    twin = copy.deepcopy(model)
    x = torch.randn(4, 3, 16, 16, device="cuda")
    step = transform(model, x)
    for net, call in ((model, step), (twin, twin)):
        call(x).square().sum().backward()
        for parameter in net.parameters():
            assert parameter.grad is not None
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model[1].running_var, twin[1].running_var)
