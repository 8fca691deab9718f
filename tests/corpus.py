"""Networks from timm whose random weights hide nothing: what the rewrites are tried on.

A fresh network is too kind to a wrong rewrite. Its norms are the identity, its layer scales and last norms are zero or
nearly so, its biases vanish. `randomize` replaces all of these, so that an error in any branch reaches the output.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

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

# Below this no parameter carries information; the smallest spread that timm draws on purpose is 0.01.
TINY = 1e-3


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
    """Spread every parameter and statistic that starts constant or tiny, in place, and return `model`.

    Weights of convolutions and linear layers stay as they are. Scales, of norms and of layers, lie in +-[0.5, 1.5], a
    quarter of the signs negative. Running statistics are the true ones moved by a random shift (0.5 standard
    deviations) and factor (the variance times [0.3, 2]): drawn without regard to the activations, they would let a deep
    network fade to its biases or explode. The true ones are measured on `inputs`, by default four images.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _spread_parameter(name.rpartition(".")[2], parameter, generator)
        _spread_statistics(model, input_for(model, batch=4) if inputs is None else inputs, generator)
    return model


def _spread_parameter(name: str, parameter: nn.Parameter, generator: torch.Generator) -> None:
    constant = bool((parameter == parameter.flatten()[0]).all())
    if not constant and parameter.abs().max() >= TINY:
        return
    if constant and name != "bias":
        sign = torch.where(torch.rand(parameter.shape, generator=generator) < 0.25, -1.0, 1.0)
        parameter.copy_(sign * torch.empty(parameter.shape).uniform_(0.5, 1.5, generator=generator))
    else:
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def _spread_statistics(model: nn.Module, inputs: Tensor, generator: torch.Generator) -> None:
    """Set the statistics of each batch norm just before it runs, so that those after it are measured on its output."""

    def set_statistics(norm: nn.Module, args: tuple[Tensor]) -> None:
        channels = args[0].transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(channels, dim=1, correction=0)
        # A channel that is quiet on these inputs must not be blown up on others.
        variance = variance.clamp(min=max(variance.mean().item(), 1e-6))
        shift = 0.5 * torch.randn(mean.shape, generator=generator)
        factor = torch.empty(mean.shape).uniform_(0.3, 2.0, generator=generator)
        norm.running_mean.copy_(mean + shift * variance.sqrt())
        norm.running_var.copy_(factor * variance)

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    hooks = [norm.register_forward_pre_hook(set_statistics) for norm in norms]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
