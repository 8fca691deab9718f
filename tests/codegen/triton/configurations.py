"""The layers of published networks whose kernels are compiled for GPUs that are not there, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegen.triton.depthwise import Depthwise
from codegen.triton.device import DEVICES, Device
from codegen.triton.region import Region
from codegen.triton.source import Source
from codegen.triton.tuning import CANDIDATES
from rewrite import compat
from rewrite.lowering import flat_module, record, weight_order
from rewrite.trace import capture

BATCH = 32
GATED = ("A100", "H200", "B200", "MI300X")
"""One device of each architecture."""


class Layer(nn.Module):
    """A depthwise convolution with what stands around it in its network."""

    def __init__(self, channels: int, kernel: tuple[int, ...], stride: int, before: str, behind: str):
        super().__init__()
        kind = nn.Conv1d if len(kernel) == 1 else nn.Conv2d
        causal = behind == "gate"
        padding = tuple(k - 1 if causal else k // 2 for k in kernel)
        self.conv = kind(channels, channels, kernel, stride=stride, padding=padding, groups=channels)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(channels) if behind == "norm" else None
        self.before, self.behind = before, behind

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        y = self.conv(getattr(F, self.before)(x) if self.before else x)
        if self.norm is not None:
            return self.norm(y.movedim(1, -1))
        if self.behind == "gate":
            return F.silu(y[..., : x.shape[-1]]) * gate
        if self.behind == "squeeze":
            y = F.silu(y)
            return y, y.mean((2, 3), keepdim=True)
        return getattr(F, self.behind)(y) if self.behind else y


class Mixer(nn.Module):
    """Kernels of several sizes over parts of the channels; without a size they pass."""

    def __init__(self, parts: tuple[tuple[int, tuple[int, int] | None], ...], behind: str = ""):
        super().__init__()
        self.sizes = [channels for channels, _ in parts]
        self.convs = nn.ModuleList(
            nn.Identity() if k is None else nn.Conv2d(c, c, k, padding=(k[0] // 2, k[1] // 2), groups=c)
            for c, k in parts
        )
        self.behind = behind

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.split(self.sizes, dim=1)
        y = torch.cat([conv(piece) for conv, piece in zip(self.convs, pieces, strict=True)], dim=1)
        return getattr(F, self.behind)(y) if self.behind else y


@dataclass(frozen=True)
class Configuration:
    """A layer at the sizes that it has in a network.

    Attributes:
        name: stable, for gate files.
        make: the layer.
        shapes: of its inputs, of one sample.
        dtype: of all values.
        last: whether inputs have their channels last.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.bfloat16
    last: bool = True

    @cached_property
    def region(self) -> Region:
        """The largest region around its convolution, with recorded values for a batch."""
        model = self.make().to(self.dtype).eval()
        graph = capture(model, tuple(self._inputs(2))).graph
        weights = {name: graph.weights[name].detach() for name in weight_order(graph)}
        module = flat_module(graph, (), weights)
        with compat.FakeTensorMode(allow_non_fake_inputs=True):
            examples = self._inputs(BATCH)
        record(module, examples)
        family = Depthwise()
        found = list(family.regions(next(family.mains(module.graph))))
        return max((region for region in found if family.candidates(region, DEVICES["H200"])),
                   key=lambda region: len(region.nodes))  # fmt: skip

    def _inputs(self, batch: int) -> list[Tensor]:
        found = []
        for shape in self.shapes:
            x = torch.empty((batch, *shape), dtype=self.dtype)
            x = x.normal_() if type(x) is Tensor else x
            found.append(x.movedim(1, -1).contiguous().movedim(-1, 1) if self.last else x)
        return found


def _layer(
    name: str, channels: int, size: tuple[int, ...], kernel: tuple[int, ...], *, stride: int = 1, before: str = "",
    behind: str = "", **more: object,
) -> Configuration:  # fmt: skip
    shapes = ((channels, *size), (channels, *size)) if behind == "gate" else ((channels, *size),)
    return Configuration(name, lambda: Layer(channels, kernel, stride, before, behind), shapes, **more)  # type: ignore[arg-type]


def _square(side: int) -> tuple[int, int]:
    return side, side


def _listed() -> Iterator[Configuration]:
    for channels, side in ((96, 56), (192, 28), (384, 14), (768, 7)):
        yield _layer(f"convnext {channels}x{side}", channels, _square(side), (7, 7), behind="norm")
        yield _layer(f"convnext {channels}x{side} first", channels, _square(side), (7, 7), last=False)
    for channels, side, k in ((128, 56, 31), (256, 28, 29), (512, 14, 27), (1024, 7, 13)):
        yield _layer(f"replknet {channels}x{side} k{k}", channels, _square(side), (k, k), behind="relu", last=False)
    yield _layer("replknet 512x14 k27 last", 512, _square(14), (27, 27), behind="relu")
    yield _layer("slak 128x56 51x5", 128, _square(56), (51, 5), last=False)
    yield _layer("slak 128x56 5x51", 128, _square(56), (5, 51), last=False)
    yield _layer("unireplknet 160x28 k13", 160, _square(28), (13, 13))
    yield _layer("unireplknet 160x28 k13 first", 160, _square(28), (13, 13), last=False)
    yield _layer("dcls 96x56 k17", 96, _square(56), (17, 17), behind="norm")
    for channels, side, stride in ((32, 112, 1), (96, 112, 2), (144, 56, 1), (960, 7, 1)):
        yield _layer(f"mobilenetv2 {channels}x{side} s{stride}", channels, _square(side), (3, 3), stride=stride,
                     before="relu6", behind="relu6")  # fmt: skip
    yield _layer("efficientnet 96x112 k3 s2", 96, _square(112), (3, 3), stride=2, behind="squeeze")
    yield _layer("efficientnet 480x14 k5", 480, _square(14), (5, 5), behind="squeeze")
    eighths = (60, None), (12, (3, 3)), (12, (1, 11)), (12, (11, 1))
    for last in (True, False):
        ending = "" if last else " first"
        yield Configuration(f"inception 96x56{ending}", lambda: Mixer(eighths), ((96, 56, 56),), last=last)
        mixed = (60, (3, 3)), (60, (5, 5)), (60, (7, 7)), (60, (9, 9))
        yield Configuration(f"mixnet 240x28{ending}", lambda mixed=mixed: Mixer(mixed, "silu"), ((240, 28, 28),),
                            last=last)  # type: ignore[misc]  # fmt: skip
    yield _layer("mamba 1536x2048 k4", 1536, (2048,), (4,), behind="gate")
    yield _layer("conformer 256x2048 k31 first", 256, (2048,), (31,), last=False, behind="silu")
    for name, shape, kernel in (("82", (64, 512, 512), (3, 3)), ("83", (8, 512, 512), (3, 1)),
                                ("85", (128, 128, 256), (3, 7))):  # fmt: skip
        yield _layer(f"kernelbench {name}", shape[0], shape[1:], kernel, dtype=torch.float32, last=False)
    yield _layer("convnext 96x56 float16", 96, _square(56), (7, 7), behind="norm", dtype=torch.float16)
    yield _layer("replknet 256x28 k29 float32", 256, _square(28), (29, 29), dtype=torch.float32, last=False)


CONFIGURATIONS = tuple(_listed())


def sources(device: Device) -> dict[str, Source]:
    """The kernels of all layers that a device may run, by name: those that are measured there."""
    found: dict[str, Source] = {}
    family = Depthwise()
    for configuration in CONFIGURATIONS:
        candidates = family.candidates(configuration.region, device)
        for number, candidate in enumerate(candidates[:CANDIDATES]):
            schedule = "; ".join(candidate.schedules)
            found[f"{device.name} {configuration.name} #{number}: {schedule}"] = candidate.emit().source
    return found
