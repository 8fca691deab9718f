"""The steps that drawn networks are made of: operators over earlier values, and the modules behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewrite.testing.spec import Draws, assign

Build = Callable[[Draws, Sequence[Tensor], dict[str, Any]], nn.Module]


class Step:
    """One operator over values of a network: value 0 is the input, value ``i`` what step ``i`` gives.

    Attributes:
        kind: a key of :data:`KINDS`.
        of: the values that it is applied to.
        options: by name; ``module_of=i`` uses the module of step ``i`` once more.
    """

    def __init__(self, kind: str, *of: int, **options: Any):
        self.kind, self.of, self.options = kind, of, options

    def __repr__(self) -> str:
        given = [repr(self.kind), *map(repr, self.of), *(f"{name}={value!r}" for name, value in self.options.items())]
        return f"Step({', '.join(given)})"

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


class Apply(nn.Module):
    """A function of tensors, with parameters of its own where it needs some."""

    def __init__(self, function: Callable[..., Any], **parameters: Tensor):
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, *values: Tensor) -> Any:
        """The function of the values, then of the parameters in order."""
        return self.function(*values, *self.parameters())


class Against(nn.Module):
    """A function of a tensor and a number that nobody trains."""

    number: Tensor

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], number: float):
        super().__init__()
        self.function = function
        self.register_buffer("number", torch.tensor(number))

    def forward(self, x: Tensor) -> Tensor:
        """The function of both."""
        return self.function(x, self.number)


def _conv(draw: Draws, values: Sequence[Tensor], o: dict[str, Any]) -> nn.Module:
    channels = values[0].shape[1]
    given = {key: value for key, value in o.items() if key not in ("out", "kernel", "plant")}
    kind = nn.ConvTranspose2d if given.pop("transposed", False) else nn.Conv2d
    layer = kind(channels, o["out"], o["kernel"], **given)
    return _filled(layer, draw, o.get("plant", ""))


def _linear(draw: Draws, values: Sequence[Tensor], o: dict[str, Any]) -> nn.Module:
    return _filled(nn.Linear(values[0].shape[-1], o["out"], bias=o.get("bias", True)), draw, o.get("plant", ""))


def _filled(layer: Any, draw: Draws, plant: str) -> nn.Module:
    """Random weights, with what is planted in them: what networks have after pruning, training or by design."""
    weight = draw.kernel(layer.weight.shape, math.prod(layer.weight.shape[1:]))
    bias = None if layer.bias is None else draw.normal(*layer.bias.shape)
    if plant == "dead":
        weight[-1] = 0
    elif plant == "duplicate":
        weight[-1] = weight[0]
        if bias is not None:
            bias[-1] = bias[0]
    elif plant == "unread":
        weight[:, -1] = 0
    elif plant == "border":
        weight[..., 0] = 0
        weight[..., -1] = 0
    elif plant == "cross":
        inside = torch.zeros_like(weight)
        inside[0, :, weight.shape[2] // 2] = 1
        inside[1:, :, weight.shape[2] // 2, weight.shape[3] // 2] = 1
        weight = weight * inside
    elif plant == "separable":
        weight = weight[..., :1] * weight[..., :1, :]
    elif plant == "few":
        weight = weight[:, :, :1, :1] * weight[:1]
    assign(layer.weight, weight)
    if bias is not None:
        assign(layer.bias, bias)
    return layer  # type: ignore[no-any-return]


def _batch_norm(draw: Draws, values: Sequence[Tensor], o: dict[str, Any]) -> nn.Module:
    channels = values[0].shape[1]
    norm = nn.BatchNorm2d(channels) if values[0].dim() == 4 else nn.BatchNorm1d(channels)
    assign(norm.weight, draw.scale(channels))
    if o.get("plant") == "dead":
        with torch.no_grad():
            norm.weight[-1] = 0
    assign(norm.bias, draw.normal(channels))
    assign(norm.running_mean, draw.normal(channels))
    assign(norm.running_var, draw.uniform(0.3, 2.0, channels))
    return norm


def _affine(norm: Any, draw: Draws) -> nn.Module:
    assign(norm.weight, draw.scale(*norm.weight.shape))
    assign(norm.bias, draw.normal(*norm.bias.shape))
    return norm  # type: ignore[no-any-return]


def _group_norm(draw: Draws, values: Sequence[Tensor], o: dict[str, Any]) -> nn.Module:
    norm = _affine(nn.GroupNorm(o["groups"], values[0].shape[1]), draw)
    if o.get("uniform"):
        with torch.no_grad():
            norm.weight.fill_(0.5)  # type: ignore[operator]
    return norm


def _along(value: Tensor, vector: Tensor) -> Tensor:
    """A vector in the shape that goes along the channels: dimension 1 of an image, the last of anything else."""
    return vector.reshape(-1, 1, 1) if value.dim() == 4 else vector


def _channels(value: Tensor) -> int:
    return int(value.shape[1] if value.dim() == 4 else value.shape[-1])


def _grn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    norm = x.norm(p=2, dim=(2, 3), keepdim=True)
    response = norm / (norm.mean(dim=1, keepdim=True) + 1e-6)
    return x + torch.addcmul(bias.reshape(1, -1, 1, 1), weight.reshape(1, -1, 1, 1), x * response)


def _select(a: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return a * first + (1 - a) * second


def _plain(function: Callable[..., Any]) -> Build:
    """A step without weights; options go to the function."""

    def build(draw: Draws, values: Sequence[Tensor], o: dict[str, Any]) -> nn.Module:
        return Apply(lambda *given: function(*given, **o))

    return build


KINDS: Mapping[str, Build] = {
    "conv": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": lambda draw, v, o: _affine(nn.LayerNorm(v[0].shape[-1]), draw),
    "scale": lambda draw, v, o: Apply(lambda x, s: x * _along(x, s), weight=draw.scale(_channels(v[0]))),
    "shift": lambda draw, v, o: Apply(lambda x, s: x + _along(x, s), bias=draw.normal(_channels(v[0]))),
    "grn": lambda draw, v, o: Apply(_grn, weight=draw.scale(_channels(v[0])), bias=draw.normal(_channels(v[0]))),
    "times": _plain(lambda x, by: x * by),
    "plus": _plain(lambda x, number: x + number),
    "less": _plain(lambda x, number: x - number),
    "negate": _plain(lambda x: -x),
    "smaller": lambda draw, v, o: Against(torch.minimum, o["number"]),
    "larger": lambda draw, v, o: Against(torch.maximum, o["number"]),
    "add": _plain(lambda a, b: a + b),
    "sub": _plain(lambda a, b: a - b),
    "mul": _plain(lambda a, b: a * b),
    "select": _plain(_select),
    "cat": _plain(lambda *parts, dim: torch.cat(parts, dim)),
    "part": _plain(lambda x, start, end, dim: x.narrow(dim, start, end - start)),
    "piece": _plain(lambda x, index, sizes, dim: x.split(sizes, dim)[index]),
    "relu": _plain(F.relu),
    "relu6": _plain(F.relu6),
    "leaky_relu": _plain(F.leaky_relu),
    "gelu": _plain(F.gelu),
    "silu": _plain(F.silu),
    "hardswish": _plain(F.hardswish),
    "sigmoid": _plain(torch.sigmoid),
    "tanh": _plain(torch.tanh),
    "softmax": _plain(lambda x, dim: x.softmax(dim)),
    "clamp": _plain(lambda x, low, high: x.clamp(low, high)),
    "max_pool": _plain(lambda x, kernel, stride, padding: F.max_pool2d(x, kernel, stride, padding)),
    "avg_pool": _plain(lambda x, kernel, stride, padding, counts: F.avg_pool2d(x, kernel, stride, padding, False,
                                                                              counts)),
    "mean": _plain(lambda x, dims, keepdim: x.mean(dims, keepdim)),
    "sum": _plain(lambda x, dims, keepdim: x.sum(dims, keepdim)),
    "largest": _plain(lambda x, dims, keepdim: x.amax(dims, keepdim)),
    "pool": _plain(lambda x: F.adaptive_avg_pool2d(x, 1)),
    "pad": _plain(lambda x, amounts, mode: F.pad(x, amounts, mode)),
    "permute": _plain(lambda x, order: x.permute(order)),
    "flatten": _plain(lambda x: x.flatten(1)),
    "tokens": _plain(lambda x: x.flatten(2).transpose(1, 2)),
    "image": _plain(lambda x, size: x.transpose(1, 2).reshape(x.shape[0], x.shape[2], *size)),
    "matmul": _plain(lambda a, b: a @ b.transpose(-1, -2)),
    "weigh": _plain(lambda a, b: a @ b),
    "contiguous": _plain(lambda x: x.contiguous()),
    "clone": _plain(lambda x: x.clone()),
}  # fmt: skip
"""Every kind of step: builds the module from drawn weights, the values that it is applied to, and its options."""
