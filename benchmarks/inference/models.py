"""What is measured: ordinary networks, and those of long and large kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.inference import networks
from examples import models
from examples.models.weights import randomize
from tests import corpus

Kind = Literal["ordinary", "long"]


@dataclass(frozen=True)
class Network:
    """One network of the benchmark.

    Attributes:
        name: how it is called in tables.
        kind: the list that it belongs to.
        make: the model in evaluation mode, always with the same random weights.
        draw: an input of some batch, always the same.
        merge: makes the copy whose branches are merged by its own package; None where there are none.
        twin: makes a copy that computes the same in another way, whose float64 result is the truth; None for the model.
    """

    name: str
    kind: Kind
    make: Callable[[], nn.Module]
    draw: Callable[[nn.Module, int], Tensor]
    merge: Callable[[nn.Module], nn.Module] | None = None
    twin: Callable[[nn.Module], nn.Module] | None = None

    def truth(self, model: nn.Module, x: Tensor) -> Tensor:
        """The result in float64, by eager PyTorch."""
        exact = copy.deepcopy(model) if self.twin is None else self.twin(model)
        with torch.no_grad():
            result: Tensor = exact.double()(x.double())
        return result


def _timm(name: str, merges: bool = False) -> Network:
    def make() -> nn.Module:
        return corpus.randomize(corpus.load(name))

    return Network(name, "ordinary", make, corpus.input_for, corpus.merged_by_timm if merges else None)


def _paper(name: str, kind: Kind) -> Network:
    def make() -> nn.Module:
        model = models.load(name, "published", batch=1)[0]
        networks.fix_flags(model)
        return model

    def draw(model: nn.Module, batch: int) -> Tensor:
        return models.MODELS[name].published.draw(batch, torch.Generator().manual_seed(0))

    return Network(name, kind, make, draw)


def written(
    name: str,
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    twin: Callable[[nn.Module], nn.Module] | None = None,
    kind: Kind = "long",
) -> Network:
    """A network of a function, for normal inputs of this shape."""
    draw_normal = models.normal(*shape)

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build().eval()
        return randomize(model, (draw_normal(1, torch.Generator().manual_seed(1)),))

    def draw(model: nn.Module, batch: int) -> Tensor:
        return draw_normal(batch, torch.Generator().manual_seed(0))

    return Network(name, kind, make, draw, twin=twin)


def _gated(length: int, channels: int, depth: int, *, fft: bool = False) -> Network:
    build = partial(networks.gated, channels, depth, length, fft=fft)
    name = f"gated_{'fft' if fft else 'conv1d'}_{length}"
    return written(name, build, (length, channels), None if fft else networks.by_fft)


NETWORKS: tuple[Network, ...] = (
    _timm("resnet50"),
    _timm("mobileone_s1", merges=True),
    _timm("convnext_tiny"),
    _gated(1024, 64, 2),
    _timm("efficientnet_b0"),
    _timm("repvit_m1_1", merges=True),
    written("conformer_conv", networks.ConformerConv, (2048, 256)),
    _timm("repvgg_a1", merges=True),
    _timm("mobilenetv3_large_100"),
    _gated(4096, 64, 2),
    _timm("fastvit_t8", merges=True),
    _timm("inception_next_tiny"),
    _timm("regnety_032"),
    _gated(4096, 64, 2, fft=True),
    _timm("mixnet_s"),
    _timm("convnextv2_tiny"),
    _paper("unireplknet", "long"),
    _gated(16384, 16, 1),
    _paper("replknet", "long"),
    _timm("convmixer_768_32"),
    _paper("sgconv", "long"),
)
"""In the order in which they are measured: where time runs out, some of each kind are there."""

BY_NAME = {network.name: network for network in NETWORKS}
