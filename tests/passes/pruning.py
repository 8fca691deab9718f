"""What the tests of removed channels share: layers with planted channels, and what is left of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rewrite.ops import Convolution
from rewrite.pipeline import Step
from tests.passes.blocks import Block
from tests.passes.rewriting import Result, assert_exact, rewrite, scatter

Forward = Callable[[Block, Tensor], Any]
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def rows(layer: nn.Module) -> Tensor:
    """The weights of a layer with the output channels first."""
    return layer.weight.movedim(1, 0) if isinstance(layer, TRANSPOSED) else layer.weight


def zeroed(layer: Any, *channels: int, bias: float = 0.0) -> Any:
    """A layer some of whose output channels are constant."""
    with torch.no_grad():
        rows(layer)[list(channels)] = 0
        if layer.bias is not None:
            layer.bias[list(channels)] = bias
    return layer


def repeated(layer: Any, source: int, channel: int, factor: float = 1.0) -> Any:
    """A layer one of whose output channels is a multiple of another."""
    with torch.no_grad():
        rows(layer)[channel] = factor * rows(layer)[source]
        if layer.bias is not None:
            layer.bias[channel] = factor * layer.bias[source]
    return layer


def unread(layer: Any, *channels: int) -> Any:
    """A layer that gives some of its input channels no weight."""
    with torch.no_grad():
        (layer.weight if isinstance(layer, TRANSPOSED) else layer.weight.movedim(1, 0))[list(channels)] = 0
    return layer


def norm(channels: int, *zeros: int, shift: float = 0.0) -> nn.Module:
    """A norm whose scale is zero for some channels."""
    made = scatter(nn.BatchNorm2d(channels))
    with torch.no_grad():
        made.weight[list(zeros)] = 0
        made.bias[list(zeros)] = shift
    return made


def sizes(result: Result) -> list[int]:
    """The numbers of output channels of the layers that are left, in order."""
    return [found.out_channels if isinstance(found, Convolution) else found.out_features for found in result.layers]


def pruned(step: Step, forward: Forward, x: Tensor, **parts: Any) -> Result:
    """A block rewritten: it computes the same, with fewer channels, weights and arithmetic."""
    model = Block(forward, **parts).eval()
    result = rewrite(model, step, x)
    assert result.record.commits
    assert_exact(result, model, x)
    return result


def kept(step: Step, forward: Forward, x: Tensor, **parts: Any) -> list[tuple[str, str, str]]:
    """Reason, with lines of the test's file as "(here)", culprit and remedy of each refusal for a block that stays."""
    result = rewrite(Block(forward, **parts).eval(), step, x)
    assert not result.record.commits
    return [(re.sub(r"\(test_\w+\.py:\d+\)", "(here)", refused.reason), refused.culprit.split("'")[1], refused.remedy)
            for refused in result.record.refused]  # fmt: skip
