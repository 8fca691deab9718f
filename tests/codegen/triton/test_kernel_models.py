"""Whole networks with their kernels in the interpreter, against float64."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegen.triton import planning
from codegen.triton.interpreter import Interpreted
from examples import models
from rewrite import load, optimize
from tests import corpus


class ShortConv(nn.Module):
    """A causal convolution of four taps that is activated and gates, written in either of two ways; [N, L, C]."""

    def __init__(self, channels: int, cut: bool):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.enter, self.leave = nn.Linear(channels, 2 * channels), nn.Linear(channels, channels)
        self.conv = nn.Conv1d(channels, channels, 4, padding=3 if cut else 0, groups=channels)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.enter(self.norm(x)).chunk(2, dim=-1)
        value = value.transpose(1, 2)
        y = self.conv(value)[..., : x.shape[1]] if self.cut else self.conv(F.pad(value, (3, 0)))
        return x + self.leave(F.silu(y).transpose(1, 2) * gate)


def short_conv(cut: bool) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(ShortConv(12, cut), ShortConv(12, cut)).eval()
    return corpus.randomize(model, inputs=torch.randn(2, 19, 12)), torch.randn(2, 19, 12)


def timm(name: str, side: int, last: bool) -> tuple[nn.Module, Tensor]:
    model = corpus.load(name)
    x = F.interpolate(corpus.input_for(model, 1), (side, side))
    model = corpus.randomize(model, inputs=x).eval()
    layout = torch.channels_last if last else torch.contiguous_format
    return model.to(memory_format=layout), x.contiguous(memory_format=layout)


def mixnet() -> tuple[nn.Module, Tensor]:
    """The stem and the first stages, of kernels up to 9x9."""
    model, x = timm("mixnet_s", 32, False)
    return nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:2], *model.blocks[2][:2]).eval(), x


def convnext() -> tuple[nn.Module, Tensor]:
    """With one block of each width."""
    model, x = timm("convnext_atto", 64, True)
    for stage in model.stages:
        stage.blocks = stage.blocks[:1].eval()
    return model, x


def mobilenetv2() -> tuple[nn.Module, Tensor]:
    """With the first block of each width, which may have a stride, and one that has none."""
    model, x = timm("mobilenetv2_050", 32, True)
    for stage in model.blocks:
        del stage[2 if stage is model.blocks[1] else 1 :]
    return model, x


def paper(name: str) -> tuple[nn.Module, Tensor]:
    model, (x,) = models.load(name)
    return model, x


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, Tensor]], int, str]] = {
    "convnext": (convnext, 4, "permute -> layer_norm"),
    "inception_next": (lambda: paper("inception_next"), 2, "unchanged"),
    "replknet": (lambda: paper("replknet"), 2, "depthwise"),
    "unireplknet": (lambda: paper("unireplknet"), 2, "depthwise"),
    "dcls": (lambda: paper("dcls_convnext"), 2, "depthwise"),
    "mobilenetv2": (mobilenetv2, 6, "hardtanh -> depthwise"),
    "mixnet": (mixnet, 5, "3x3, "),
    "short_conv": (lambda: short_conv(True), 2, "silu"),
    "padded_short_conv": (lambda: short_conv(False), 2, "silu"),
}  # fmt: skip
"""The model, the least number of kernels, and what the plan says of one."""


@pytest.mark.parametrize("name", CASES)
def test_network_agrees_with_float64(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MARGIN", -1e9)  # at these sizes nothing takes longer than its launch
    make, least, said = CASES[name]
    model, x = make()
    lowering = Interpreted()
    fast = optimize(model, x, lower=lowering)
    with torch.no_grad():
        found, plain = fast(x), model(x)
        exact = copy.deepcopy(model).double()(x.double())
    plan = lowering.plans[-1]
    assert len(plan.regions) >= least, plan
    assert len(lowering.kernels) == len(plan.regions)
    assert said in str(plan)
    allowed = max(3 * float((plain.double() - exact).abs().max()), 1e-6 * float(exact.abs().max()))
    assert float((found.double() - exact).abs().max()) <= allowed
    assert {kernel.name for kernel in fast.kernels} == {kernel.operator for kernel in lowering.kernels}


def test_saved_programs_bind_their_kernels_again(tmp_path: Path) -> None:
    model, x = short_conv(True)
    fast = optimize(model, x, lower=Interpreted())
    with torch.no_grad():
        wanted = fast(x)
    fast.save(tmp_path / "model.pt")
    lowering = Interpreted()
    loaded = load(tmp_path / "model.pt", lower=lowering)
    with torch.no_grad():
        assert torch.equal(loaded(x), wanted)
    assert len(lowering.kernels) == 2


def test_changed_weights_are_followed() -> None:
    model, x = short_conv(True)
    fast = optimize(model, x, lower=Interpreted())
    with torch.no_grad():
        before = fast(x)
        model[0].conv.weight.mul_(-2)
        after, exact = fast(x), copy.deepcopy(model).double()(x.double())
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after.double(), exact, rtol=1e-4, atol=1e-4)


def test_exported_kernels_check_themselves(tmp_path: Path) -> None:
    model, x = short_conv(True)
    fast = optimize(model, x, lower=Interpreted())
    with torch.no_grad():
        fast(x)
    (path,) = fast.export_kernels(tmp_path / "kernels")  # both layers have the same kernel
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "result 0: relative error" in done.stdout
    broken = path.read_text().replace("tap * weight0_0", "tap")
    assert broken != path.read_text()
    path.write_text(broken)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode != 0
    assert "the kernel is wrong" in done.stderr
