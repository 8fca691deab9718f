"""Small models for the tests of merging and folding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from passes import Reparameterize
from rewrite.ops import Linear
from tests.passes.rewriting import Result, assert_bounded, assert_exact, rewrite, scatter

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Block(nn.Module):
    """Modules by name and what is computed from them."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(self, *args)


class Branches(nn.Module):
    """The sum of modules over one input, in order."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        total = self.parts[0](x)
        for part in self.parts[1:]:
            total = total + part(x)
        return total


def conv(inputs: int, outputs: int, kernel: Any, **options: Any) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, **options)


def conv_norm(channels: int, kernel: int, dilation: int = 1, out: int = 0, **options: Any) -> nn.Module:
    """A convolution without bias that keeps the size, unless it has a stride, and its norm."""
    padding, out = dilation * (kernel - 1) // 2, out or channels
    layer = nn.Conv2d(channels, out, kernel, padding=padding, dilation=dilation, bias=False, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(out))


def merged(model: nn.Module, *inputs: Tensor, layers: int = 1, **options: int) -> Result:
    """Everything merges into so many layers; outputs agree in float64, and in float32 for one plain layer."""
    scatter(model)
    result = rewrite(model, Reparameterize(**options), *inputs)
    assert len(result.layers) == layers
    assert not result.norms
    assert_exact(result, model, *inputs)
    if result.operators in (["conv1d"], ["conv2d"], ["conv3d"], ["linear"]) and layers == 1:
        (layer,) = result.layers
        if isinstance(layer, Linear) or all(low == high for low, high in layer.padding):
            assert_bounded(result, model, *inputs)
    return result
