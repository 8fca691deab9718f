"""Single layers around depthwise convolutions, as modules, and as flat programs of any size, layout and dtype.

A layer is captured once, at a small size on the CPU: nothing in its program depends on rows and columns. At other sizes
it is recorded on tensors without memory, so that the kernels of a gigabyte are planned as fast as those of a pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from rewrite import compat
from rewrite.graph import Graph
from rewrite.lowering import flat_module, record, weight_order
from rewrite.trace import capture

_SMALL = 8
"""Rows and columns at which layers are captured."""

_SPATIAL = "hwl"


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer at the sizes that it has in a network.

    Attributes:
        make: the module; its weights are drawn from a seed.
        inputs: the dimensions of each input behind the batch, a letter each: ``"chw"`` for images, ``"lc"`` and
            ``"cl"`` for sequences. Other letters than ``h``, ``w`` and ``l`` keep their sizes as the layer is captured;
            ``H`` and ``W`` are rows and columns of strided results; digits are sizes.
        sizes: by letter.
        stride: of results.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    sizes: Mapping[str, int]
    stride: int = 1

    def module(self) -> nn.Module:
        """The layer in evaluation mode; the same weights each time, none of which is zero or one."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = self.make().eval()
            for weight in made.parameters():
                if weight.dim() == 1:
                    nn.init.uniform_(weight, 0.5, 1.5)
        return made.requires_grad_(False)

    def shapes(self, batch: int, small: bool = False) -> list[tuple[int, ...]]:
        """The shapes of the inputs."""
        sizes = dict(self.sizes)
        if small:
            sizes.update(dict.fromkeys(_SPATIAL, _SMALL), H=_SMALL // self.stride, W=_SMALL // self.stride)
        return [(batch, *(int(each) if each.isdigit() else sizes[each] for each in dims)) for dims in self.inputs]

    @functools.cached_property
    def captured(self) -> Graph:
        """Its program, at a small size."""
        examples = tuple(torch.randn(shape) for shape in self.shapes(2, small=True))
        return capture(self.module(), examples).graph

    def flat(self, dtype: torch.dtype, last: bool, batch: int, device: str = "cpu") -> GraphModule:
        """The program as a flat module with recorded values, and with weights on a device.

        Args:
            dtype: of inputs and weights.
            last: whether images have their channels last.
            batch: how many samples.
            device: of weights and of recorded values.
        """
        graph = self.captured
        weights = {name: graph.weights[name].detach().to(dtype) for name in weight_order(graph)}
        module = flat_module(graph, (), weights)
        with compat.FakeTensorMode(allow_non_fake_inputs=True):
            examples = [laid_out(torch.empty(shape, dtype=dtype), last) for shape in self.shapes(batch)]
        record(module, examples)
        return module.to(device)

    def draw(self, dtype: torch.dtype, last: bool, batch: int, device: str, seed: int = 0) -> list[Tensor]:
        """Normal inputs."""
        generator = torch.Generator(device).manual_seed(seed)
        return [
            laid_out(torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype), last)
            for shape in self.shapes(batch)
        ]


def laid_out(x: Tensor, last: bool) -> Tensor:
    """An image with its channels last or first; sequences as they are."""
    if x.dim() != 4:
        return x
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _padding(kernel: Sequence[int], dilation: int) -> tuple[int, ...]:
    return tuple(size // 2 * dilation for size in kernel)


class Image(nn.Module):
    """A depthwise convolution of images with what stands around it in its network.

    Args:
        channels: of the image.
        kernel: rows and columns.
        stride, dilation: of both.
        before: an activation in front.
        behind: what follows, in order: activations by name, ``"norm"``, which leaves channels last, ``"scale"`` by a
            gate in the second input and ``"residual"`` of the last input.
        squeeze: whether the means of all pixels are a result too.
        bias: whether there is one.
        padded: whether there are zeros around, so that the result has the image's size.
    """

    def __init__(
        self, channels: int, kernel: tuple[int, int], stride: int = 1, dilation: int = 1, before: str = "",
        behind: tuple[str, ...] = (), squeeze: bool = False, bias: bool = True, padded: bool = True,
    ):  # fmt: skip
        super().__init__()
        padding = _padding(kernel, dilation) if padded else (0, 0)
        self.conv = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, channels, bias)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(channels, eps=1e-6) if "norm" in behind else None
        self.before, self.behind, self.squeeze = before, behind, squeeze

    def forward(self, x: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.conv(getattr(F, self.before)(x) if self.before else x)
        for each in self.behind:
            if self.norm is not None and each == "norm":
                y = self.norm(y.permute(0, 2, 3, 1))
            elif each == "scale":
                y = y * others[0]
            elif each == "residual":
                y = y + others[-1]
            else:
                y = getattr(F, each)(y)
        return (y, y.mean((2, 3), keepdim=True)) if self.squeeze else y


class Sequence1d(nn.Module):
    """A depthwise convolution of sequences.

    Args:
        channels: of the sequence.
        taps: of the kernel.
        causal: whether results depend on what was before alone, as in Mamba and Hyena.
        last: whether sequences are ``[N, L, C]``.
        behind: an activation.
        gated: whether the second input is multiplied with the result.
    """

    def __init__(
        self, channels: int, taps: int, causal: bool = True, last: bool = True, behind: str = "", gated: bool = False
    ):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, taps, padding=taps - 1 if causal else taps // 2, groups=channels)
        self.extra = taps - 1 if causal else 0
        self.last, self.behind, self.gated = last, behind, gated

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        y = self.conv(x.transpose(1, 2) if self.last else x)
        y = y[..., : -self.extra] if self.extra else y
        y = getattr(F, self.behind)(y) if self.behind else y
        y = y.transpose(1, 2) if self.last else y
        return y * others[0] if self.gated else y


class Mixer(nn.Module):
    """Kernels of several sizes over parts of the channels; parts without a size pass.

    Args:
        parts: channels and kernels.
        behind: an activation.
    """

    def __init__(self, parts: Sequence[tuple[int, tuple[int, int] | None]], behind: str = ""):
        super().__init__()
        self.channels = [channels for channels, _ in parts]
        self.convs = nn.ModuleList(
            nn.Identity() if k is None else nn.Conv2d(c, c, k, padding=_padding(k, 1), groups=c) for c, k in parts
        )
        self.behind = behind

    def forward(self, x: Tensor) -> Tensor:
        pieces = x.split(self.channels, dim=1)
        y = torch.cat([conv(piece) for conv, piece in zip(self.convs, pieces, strict=True)], dim=1)
        return getattr(F, self.behind)(y) if self.behind else y


class Separable(nn.Module):
    """A depthwise convolution and a pointwise one, without biases."""

    def __init__(self, channels: int, results: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False)
        self.point = nn.Conv2d(channels, results, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(self.conv(x))


def inception(channels: int) -> tuple[tuple[int, tuple[int, int] | None], ...]:
    """The parts of InceptionNeXt: an eighth each for a square and two bands, the others pass."""
    part = channels // 8
    return (channels - 3 * part, None), (part, (3, 3)), (part, (1, 11)), (part, (11, 1))


def mixed(channels: int, *sizes: int) -> tuple[tuple[int, tuple[int, int] | None], ...]:
    """The parts of MixNet: as many channels for each size of kernel, the first takes what is left."""
    part = channels // len(sizes)
    return tuple((channels - part * (len(sizes) - 1) if not i else part, (k, k)) for i, k in enumerate(sizes))


def image(
    channels: int, side: int | tuple[int, int], kernel: int | tuple[int, int], stride: int = 1, **more: object
) -> Layer:
    """A layer of :class:`Image`, whose further inputs follow from what stands behind the convolution."""
    height, width = (side, side) if isinstance(side, int) else side
    window = (kernel, kernel) if isinstance(kernel, int) else kernel
    behind = more.get("behind", ())
    inputs = ["chw"]
    if "scale" in behind:  # type: ignore[operator]
        inputs.append("c11")
    if "residual" in behind:  # type: ignore[operator]
        inputs.append("cHW")
    sizes = {"c": channels, "h": height, "w": width, "H": -(-height // stride), "W": -(-width // stride)}
    return Layer(lambda: Image(channels, window, stride, **more), tuple(inputs), sizes, stride)  # type: ignore[arg-type]


def sequence(channels: int, length: int, taps: int, **more: bool | str) -> Layer:
    """A layer of :class:`Sequence1d`."""
    dims = "lc" if more.get("last", True) else "cl"
    inputs = (dims, dims) if more.get("gated") else (dims,)
    return Layer(lambda: Sequence1d(channels, taps, **more), inputs, {"c": channels, "l": length})  # type: ignore[arg-type]


def mixer(parts: Sequence[tuple[int, tuple[int, int] | None]], side: int | tuple[int, int], behind: str = "") -> Layer:
    """A layer of :class:`Mixer`."""
    height, width = (side, side) if isinstance(side, int) else side
    sizes = {"c": sum(channels for channels, _ in parts), "h": height, "w": width}
    return Layer(lambda: Mixer(parts, behind), ("chw",), sizes)


def separable(channels: int, results: int, side: int, kernel: int) -> Layer:
    """A layer of :class:`Separable`."""
    return Layer(lambda: Separable(channels, results, kernel), ("chw",), {"c": channels, "h": side, "w": side})
