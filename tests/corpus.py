"""Networks from timm whose random weights hide nothing: what the rewrites are tried on."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from examples.models import weights
from rewrite import zoo

zoo.timm()  # from here on timm can be imported whatever torchvision there is

import timm  # noqa: E402
import timm.utils  # noqa: E402

CORPUS = (
    "resnet18",
    "resnet50",
    "repvgg_a0",
    "repvgg_d2se",
    "mobileone_s0",
    "mobileone_s4",
    "fastvit_t8",
    "repvit_m0_9",
    "repghostnet_050",
    "convnext_atto",
    "convnextv2_atto",
    "inception_next_atto",
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "mixnet_s",
    "densenet121",
    "vgg11_bn",
    "ghostnet_050",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
)


def load(name: str, seed: int = 0) -> nn.Module:
    """Return the network `name` of timm in eval mode, as its own initialisation leaves it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(name, pretrained=False)
    return model.eval()


def merged_by_timm(model: nn.Module) -> nn.Module:
    """A copy of `model` with its branches merged by timm itself, the peer of this project's passes."""
    merged: nn.Module = timm.utils.reparameterize_model(copy.deepcopy(model))
    return merged


def input_for(model: nn.Module, batch: int = 2, seed: int = 0) -> Tensor:
    """Draw a normal input of shape `(batch, *pretrained_cfg["input_size"])`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *model.pretrained_cfg["input_size"], generator=generator)


def randomize(model: nn.Module, seed: int = 0, inputs: Tensor | None = None) -> nn.Module:
    """Spread the weights and statistics of `model`, measured on `inputs`, by default four images; see
    :func:`examples.models.weights.randomize`."""
    return weights.randomize(model, (input_for(model, batch=4) if inputs is None else inputs,), seed)
