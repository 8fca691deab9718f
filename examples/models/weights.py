"""Random weights that hide nothing.

A fresh network is too kind to a wrong rewrite. Its norms are the identity, its layer scales and last norms are zero or
nearly so, its biases vanish. `randomize` replaces all of these, so that an error in any branch reaches the output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Below this no parameter carries information; the smallest spread that initializations draw on purpose is 0.01.
TINY = 1e-3


def randomize(model: nn.Module, inputs: tuple[Tensor, ...], seed: int = 0) -> nn.Module:
    """Spread every parameter and statistic that starts constant or tiny, in place, and return `model`.

    Weights of convolutions and linear layers stay as they are. Scales, of norms and of layers, lie in +-[0.5, 1.5], a
    quarter of the signs negative. Running statistics are the true ones on `inputs` moved by a random shift (0.5
    standard deviations) and factor (the variance times [0.3, 2]): drawn without regard to the activations, they would
    let a deep network fade to its biases or explode.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _spread_parameter(name.rpartition(".")[2], parameter, generator)
        _spread_statistics(model, inputs, generator)
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


def _spread_statistics(model: nn.Module, inputs: tuple[Tensor, ...], generator: torch.Generator) -> None:
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
        model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
