"""Networks of the papers whose rewrites this project implements, written from their definitions.

Each has a small configuration, in which it runs in milliseconds, and a large one for measurements: the published one
wherever a paper names one. Weights are random, and nothing is near zero that would hide an error.

    from examples.models import MODELS, load

    model, inputs = load("replknet", "small")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from examples.models import (
    cct,
    conv_first,
    dcls_convnext,
    deep_rft,
    eca_resnet,
    hyena,
    hyper_zzw,
    inception_next,
    lsnet,
    replknet,
    sgconv,
    unireplknet,
    yolo_ms,
)
from examples.models.weights import randomize

Draw = Callable[[int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Config:
    """A network and what goes into it.

    Attributes:
        build: makes the network, with weights from torch's generator.
        draw: makes an input of some batch.
    """

    build: Callable[[], nn.Module]
    draw: Draw


@dataclass(frozen=True)
class Entry:
    """A network of the corpus.

    Attributes:
        small: for tests.
        published: for measurements.
        parameters: millions of parameters of the published configuration as its paper has them, None where unknown.
    """

    small: Config
    published: Config
    parameters: float | None = None


def normal(*shape: int) -> Draw:
    """Inputs of this shape from a normal distribution."""
    return lambda batch, generator: torch.randn(batch, *shape, generator=generator)


def tokens(length: int, vocabulary: int) -> Draw:
    """Sequences of whole numbers below ``vocabulary``."""
    return lambda batch, generator: torch.randint(vocabulary, (batch, length), generator=generator)


IMAGE = normal(3, 224, 224)

MODELS: dict[str, Entry] = {
    "replknet": Entry(Config(replknet.small, normal(3, 24, 24)), Config(replknet.replknet_31b, IMAGE), 79),
    "unireplknet": Entry(Config(unireplknet.small, normal(3, 24, 24)), Config(unireplknet.unireplknet_t, IMAGE), 31),
    "inception_next": Entry(
        Config(inception_next.small, normal(3, 32, 32)), Config(inception_next.inception_next_tiny, IMAGE), 28
    ),
    "lsnet": Entry(Config(lsnet.small, normal(3, 48, 48)), Config(lsnet.lsnet_t, IMAGE), 11.4),
    "eca_resnet": Entry(Config(eca_resnet.small, normal(3, 32, 32)), Config(eca_resnet.eca_resnet50, IMAGE), 25.56),
    "conv_first": Entry(Config(conv_first.small, normal(3, 32, 32)), Config(conv_first.conv_first_tiny, IMAGE)),
    "dcls_convnext": Entry(
        Config(dcls_convnext.small, normal(3, 32, 32)), Config(dcls_convnext.dcls_convnext_tiny, IMAGE), 28.6
    ),
    "yolo_ms": Entry(Config(yolo_ms.small, normal(3, 32, 32)), Config(yolo_ms.yolo_ms_xs, normal(3, 640, 640))),
    "cct": Entry(Config(cct.small, normal(3, 16, 16)), Config(cct.cct_14_7x2, IMAGE), 22.36),
    "deep_rft": Entry(Config(deep_rft.small, normal(3, 12, 20)), Config(deep_rft.deep_rft, normal(3, 256, 256))),
    "sgconv": Entry(Config(sgconv.small, normal(48, 2)), Config(sgconv.sgconv_image, normal(1024, 1))),
    "hyena": Entry(Config(hyena.small, tokens(24, 32)), Config(hyena.hyena_125m, tokens(2048, 50257)), 125),
    "hyper_zzw": Entry(Config(hyper_zzw.small, normal(3, 10, 10)), Config(hyper_zzw.terminator, normal(3, 32, 32))),
}
"""The corpus by name."""


def load(
    name: str, size: Literal["small", "published"] = "small", *, batch: int = 2, seed: int = 0
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network in evaluation mode, called before, and example inputs; the same for the same arguments.

    Torch's own generator is left as it is.
    """
    config: Config = getattr(MODELS[name], size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config.build().eval()
    generator = torch.Generator().manual_seed(seed)
    randomize(model, (config.draw(batch, generator),), seed)
    return model, (config.draw(batch, generator),)
