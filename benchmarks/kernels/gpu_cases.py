"""The layers that kernels are measured on, those that matter most first.

Published networks at their published sizes: stages of ConvNeXt and MobileNets, RepLKNet, SLaK, InceptionNeXt, MixNet,
the short convolutions of Mamba and Hyena, a Conformer; and the tasks of KernelBench's first level that are depthwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.kernels.bound import Setting
from benchmarks.kernels.layers import Layer, image, inception, mixed, mixer, separable, sequence
from codegen.triton.device import REFERENCE, Device

STAGES = ((96, 56), (192, 28), (384, 14), (768, 7))
"""Channels and sides of images, as in ConvNeXt."""

BATCHES = (32, 1, 128)
KERNELS = (7, 3, 5, 9, 13)

REPLKNET = ((128, 56, 31), (256, 28, 29), (512, 14, 27), (1024, 7, 13))
"""Channels, sides and kernels of RepLKNet-31B's stages."""


@dataclass(frozen=True)
class Case:
    """A layer at one batch.

    Attributes:
        name: with sizes; the batch and the layout come behind it.
        group: of cases that are averaged.
        layer: which one.
        batch: how many samples.
        dtype: of all values.
        layouts: whether channels are last: each that kernels are measured in.
        compiled: modes of ``torch.compile`` that are among the contenders.
    """

    name: str
    group: str
    layer: Layer
    batch: int
    dtype: torch.dtype = torch.bfloat16
    layouts: tuple[bool, ...] = (True, False)
    compiled: tuple[str, ...] = ()

    def setting(self, last: bool, device: str = "cuda", rates: Device = REFERENCE) -> Setting:
        """What kernels are planned for."""
        return Setting(self.layer, self.dtype, last, self.batch, device, rates)

    def title(self, last: bool) -> str:
        """The name of a row."""
        images = any("w" in dims for dims in self.layer.inputs)
        layout = f" {'last' if last else 'first'}" if images else ""
        return f"{self.name} b{self.batch}{layout}"


def cases() -> list[Case]:
    """All of them, in the order in which they are measured."""
    return [*_important(), *_bench(), *_sequences(), *_stages(), *_autotuned()]


def _important() -> Iterator[Case]:
    """One batch of everything that networks have."""
    sized = {size: image(*size, 7) for size in STAGES}
    for channels, side in STAGES:
        yield Case(f"dw7 {channels}x{side}", "dw7", sized[channels, side], 32)
    for channels, side in STAGES:
        normed = image(channels, side, 7, behind=("norm",))
        yield Case(f"dw7+norm {channels}x{side}", "fused", normed, 32, layouts=(True,), compiled=("compile",))
    for channels, side, kernel in ((96, 56, 3), (240, 28, 5)):
        excited = image(channels, side, kernel, behind=("silu",), squeeze=True)
        yield Case(f"dw{kernel}+silu+mean {channels}x{side}", "fused", excited, 32, compiled=("compile",))
    yield Case("inception 96x56", "mixer", mixer(inception(96), 56), 32, compiled=("compile",))
    yield Case("mixnet 3/5/7 240x28", "mixer", mixer(mixed(240, 3, 5, 7), 28, "silu"), 32, compiled=("compile",))
    for channels, side, kernel in REPLKNET:
        yield Case(f"dw{kernel} {channels}x{side}", "large", image(channels, side, kernel), 32)
    for rows, columns in ((51, 5), (5, 51)):
        yield Case(f"dw{rows}x{columns} 128x56", "large", image(128, 56, (rows, columns)), 32)
    for rows, columns in ((1, 11), (11, 1)):
        yield Case(f"dw{rows}x{columns} 96x56", "bands", image(96, 56, (rows, columns)), 32)


def _bench() -> Iterator[Case]:
    """KernelBench, level 1: 82 to 86, as they are there: float32, channels first, without biases."""
    shapes = {"82": (16, 64, (512, 512), (3, 3)), "83": (64, 8, (512, 512), (3, 1)),
              "85": (32, 128, (128, 256), (3, 7)), "84": (64, 128, (256, 512), (3, 3))}  # fmt: skip

    def made(task: str) -> Case:
        batch, channels, side, kernel = shapes[task]
        # without zeros around: every task there has padding=0
        layer = image(channels, side, kernel, bias=False, padded=False)
        return Case(f"KernelBench {task}", "KernelBench", layer, batch, torch.float32, (False,))

    yield from (made("82"), made("83"), made("85"))
    yield Case("KernelBench 86", "KernelBench", separable(64, 128, 512, 3), 16, torch.float32, (False,),
               ("compile",))  # fmt: skip
    yield made("84")


def _sequences() -> Iterator[Case]:
    """Short causal convolutions of Mamba's sizes, alone and gated, and a long one of a Conformer."""
    for name, layer, batch in (
        ("causal 4 1536x2048", sequence(1536, 2048, 4), 16),
        ("causal 4+silu+gate 1536x2048", sequence(1536, 2048, 4, behind="silu", gated=True), 16),
        ("causal 4 12288x16384", sequence(12288, 16384, 4), 1),
        ("conv31 512x2048", sequence(512, 2048, 31, causal=False, last=False), 32),
        ("conv31 512x2048 channels last", sequence(512, 2048, 31, causal=False), 32),
    ):
        yield Case(name, "sequences", layer, batch, layouts=(True,), compiled=("compile",) if "gate" in name else ())


def _stages() -> Iterator[Case]:
    """All kernels of all stages at all batches, as far as they did not come before."""
    layers = {(size, kernel): image(*size, kernel) for size in STAGES for kernel in KERNELS}
    for batch in BATCHES:
        for kernel in KERNELS:
            for channels, side in STAGES:
                if (batch, kernel) != (32, 7):
                    layer = layers[(channels, side), kernel]
                    yield Case(f"dw{kernel} {channels}x{side}", f"dw{kernel}", layer, batch)


def _autotuned() -> Iterator[Case]:
    """What Inductor makes of a layer where it takes its time; it has no template for depthwise convolutions."""
    layer = image(*STAGES[0], 7, behind=("norm",))
    modes = ("compile", "max-autotune")
    yield Case("dw7+norm 96x56 max-autotune", "autotuned", layer, 32, layouts=(True,), compiled=modes)
