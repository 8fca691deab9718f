"""HyperZZW: kernels as large as the image, made by slow networks, multiplied with fast activations.

Zhang: HyperZ·Z·W Operator Connects Slow-Fast Networks for Full Context Interaction, 2024, arXiv:2401.17948.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_POINTWISE: dict[int, Callable[[int, int], nn.Module]] = {
    1: lambda inputs, outputs: nn.Conv1d(inputs, outputs, 1),
    2: lambda inputs, outputs: nn.Conv2d(inputs, outputs, 1),
}


class GaborSine(nn.Module):
    """Sines of coordinates at frequencies drawn from a gamma distribution; [1, n, *size] to [1, hidden, *size]."""

    def __init__(self, dims: int, hidden: int, omega: float, alpha: float) -> None:
        super().__init__()
        self.linear = _POINTWISE[dims](dims, hidden)
        frequency = torch.distributions.Gamma(alpha, 1.0).sample((hidden, dims))
        with torch.no_grad():
            self.linear.weight.mul_(2 * math.pi * omega * frequency.view(hidden, dims, *(1,) * dims))

    def forward(self, coordinates: Tensor) -> Tensor:
        return torch.sin(self.linear(coordinates))


class SlowNet(nn.Module):
    """A multiplicative filter network of coordinates in [-1, 1]: a kernel [1, channels, *size], whatever the input.

    Its first call ever scales its last layer by the size of the kernel.
    """

    def __init__(self, channels: int, size: int, dims: int, *, hidden: int = 16, depth: int = 2, omega: float = 1.0):
        super().__init__()
        self.size, self.dims = size, dims
        self.filters = nn.ModuleList(GaborSine(dims, hidden, omega, 6.0 / (i + 1)) for i in range(depth + 1))
        self.linears = nn.ModuleList(_POINTWISE[dims](hidden, hidden) for _ in range(depth))
        self.bias = nn.Parameter(torch.zeros(1, 1, *(size,) * dims))
        self.output = _POINTWISE[dims](hidden, channels)
        self.register_buffer("initialized", torch.tensor([False]))

    def coordinates(self) -> Tensor:
        """[1, n, *size]."""
        axis = torch.linspace(-1, 1, self.size, device=self.bias.device).to(self.bias.dtype)
        return torch.stack(torch.meshgrid(*(axis,) * self.dims, indexing="ij"))[None]

    def initialize(self) -> None:
        """Scale the last layer, the first time."""
        if not self.initialized[0]:
            with torch.no_grad():
                self.output.weight.mul_(self.size ** (-self.dims / 2))
                self.initialized[0] = True

    def mix(self, layer: int, y: Tensor, x: Tensor) -> Tensor:
        """What a layer does to the hidden kernel ``y`` in view of the input ``x``: nothing."""
        return y

    def forward(self, x: Tensor) -> Tensor:
        self.initialize()
        coordinates = self.coordinates()
        y = self.filters[0](coordinates)
        for i, linear in enumerate(self.linears):
            y = self.filters[i + 1](coordinates) * linear(y) + self.bias
            y = self.mix(i, y, x)
        return self.output(y)


class LocalSlowNet(SlowNet):
    """A small kernel that depends on the input, averaged over the batch: one image changes the kernel of another."""

    def __init__(self, channels: int, size: int, *, hidden: int = 16, depth: int = 2) -> None:
        super().__init__(channels, size, 2, hidden=hidden, depth=depth)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.fast = nn.Conv2d(hidden, hidden, 1)
        self.gates = nn.ModuleList(nn.Conv2d(hidden, hidden, 1) for _ in range(depth))
        self.alpha = nn.Parameter(torch.ones(depth, hidden))
        self.beta = nn.Parameter(torch.full((depth, hidden), 0.1))

    def mix(self, layer: int, y: Tensor, x: Tensor) -> Tensor:
        """Renormalized, and gated by what is seen of the input."""
        context = self.reduce(F.adaptive_avg_pool2d(x, self.size)).mean(0, keepdim=True)
        context = F.gelu(self.fast(context))
        alpha, beta = (factor[layer].view(-1, 1, 1) for factor in (self.alpha, self.beta))
        y = alpha * y.detach() + beta * F.normalize(y.flatten(2), dim=-1).view_as(y)
        return y * self.gates[layer](context)


class LocalBranch(nn.Module):
    """A depthwise convolution with a kernel from the input, standardized over the batch it comes in."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.kernel = LocalSlowNet(channels, size)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels, affine=False, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel(x).transpose(0, 1)
        y = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=kernel.shape[0])
        return F.gelu(self.norm(self.mix(y)))


class ChannelInteraction(nn.Module):
    """A gate for each channel: the square of its average times a number from a slow network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kernel = SlowNet(1, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        average = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        score = (average * self.kernel(average)) * average
        return x * score.transpose(-1, -2).unsqueeze(-1).sigmoid().expand_as(x)


class GlobalBranch(nn.Module):
    """The kernel times the input, as a matrix over rows and columns, times mixed channels; [N, C, H, H] to the same."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.kernel = SlowNet(channels, size, 2)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.norm = nn.InstanceNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        context = x * self.kernel(x)
        return context @ self.norm(self.mix(x))


class Block(nn.Module):
    """The branches side by side, merged by a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, size: int, local: bool) -> None:
        super().__init__()
        self.context = GlobalBranch(inputs, size)
        self.interaction = ChannelInteraction(inputs)
        self.local = LocalBranch(inputs, 3) if local else None
        self.bottleneck = nn.Conv2d((4 if local else 3) * inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.context(x)
        parts = [y, y.sigmoid() * y, self.interaction(x)]
        if self.local is not None:
            parts.append(self.local(x))
        return F.gelu(self.bottleneck(torch.cat(parts, dim=1)))


class Terminator(nn.Module):
    """The classifier: images [N, 3, size, size] to [N, classes], at full size throughout and without residuals.

    It has the paper's operators, and fewer branches than its network: one local branch, and no recursive gates.

    Args:
        widths: the channels behind each block.
        size: of the images.
        local: whether blocks have their local branch, which makes the images of a batch depend on each other.
        classes: how many.
    """

    def __init__(self, widths: tuple[int, ...], size: int, *, local: bool = True, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 1)
        self.blocks = nn.Sequential(*(Block(inputs, outputs, size, local) for inputs, outputs in pairwise(widths)))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def terminator() -> Terminator:
    """Five blocks for images of 32x32; for measurements."""
    return Terminator((24, 48, 48, 96, 96, 192), 32)


def small() -> Terminator:
    """One block for images of 10x10."""
    return Terminator((6, 8), 10)
