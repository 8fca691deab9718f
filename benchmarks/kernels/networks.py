"""The networks whose regions are planned, at the sizes that were published, without computing anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from examples import models
from rewrite import compat, optimize
from rewrite.lowering import flat_module, record
from tests import corpus


class ShortConv(nn.Module):
    """A causal convolution of four taps that is activated and gates, as in Mamba and Hyena; [N, L, C] on a residual."""

    def __init__(self, channels: int, taps: int = 4):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.enter, self.leave = nn.Linear(channels, 2 * channels), nn.Linear(channels, channels)
        self.conv = nn.Conv1d(channels, channels, taps, padding=taps - 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.enter(self.norm(x)).chunk(2, dim=-1)
        y = F.silu(self.conv(value.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        return x + self.leave(y * gate)


def short_conv(channels: int = 1536, depth: int = 4) -> nn.Module:
    """A stack of them."""
    return nn.Sequential(*(ShortConv(channels) for _ in range(depth))).eval()


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: how it is called in tables.
        make: the model in evaluation mode with an example of batch 2.
    """

    name: str
    make: Callable[[], tuple[nn.Module, Tensor]]


def _timm(name: str) -> Network:
    def make() -> tuple[nn.Module, Tensor]:
        model = corpus.load(name)
        return model, corpus.input_for(model, 2)

    return Network(name, make)


def _paper(name: str) -> Network:
    def make() -> tuple[nn.Module, Tensor]:
        model, (x,) = models.load(name, "published", batch=2)
        return model, x

    return Network(name, make)


NETWORKS = (
    _timm("convnext_tiny"), _timm("inception_next_tiny"), _paper("replknet"), _paper("unireplknet"),
    _paper("dcls_convnext"), _timm("mobilenetv2_100"), _timm("mixnet_m"),
    Network("short_conv", lambda: (short_conv(), torch.randn(2, 2048, 1536))),
)  # fmt: skip
"""Published configurations; of the causal convolutions a stack of Mamba's sizes."""


def flat(network: Network, dtype: torch.dtype, last: bool) -> Callable[[int], GraphModule]:
    """A function of the batch that gives the network's rewritten program as a flat module with recorded values.

    Args:
        network: captured and rewritten once.
        dtype: of weights and inputs.
        last: whether images have their channels last.
    """
    model, x = network.make()
    model, x = model.to(dtype), x.to(dtype)
    if last and x.dim() == 4:
        model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    graph, weights = optimize(model, x, lower="eager", verify="off", tune="off").program()

    def sized(batch: int) -> GraphModule:
        module = flat_module(graph, (), weights)
        with compat.FakeTensorMode(allow_non_fake_inputs=True):
            example = torch.empty((batch, *x.shape[1:]), dtype=dtype)
            if last and x.dim() == 4:
                example = example.contiguous(memory_format=torch.channels_last)
        record(module, [example])
        return module

    return sized
