"""Motifs: the ways in which networks put layers together, each with whatever variation the literature has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rewrite.testing.networks.drawing import LARGEST, Drawing

Motif = Callable[[Drawing], None]

ACTIVATIONS = ("relu", "gelu", "silu", "relu6", "leaky_relu", "sigmoid", "tanh", "hardswish")


def activation(d: Drawing, value: int) -> int:
    """Any activation."""
    return d.step(d.one_of(ACTIVATIONS), value)


def maybe_norm(d: Drawing, value: int) -> int:
    """A batch norm, or nothing."""
    return d.step("batch_norm", value) if d.flag() else value


def group_norm(d: Drawing, value: int, **more: Any) -> int:
    """A group norm, whose groups have several elements each, which torch demands of a batch of one; or the value."""
    _, channels, height, width = d.shape(value)
    groups = [n for n in (1, 2, channels) if channels % n == 0 and channels // n * height * width > 1]
    return d.step("group_norm", value, groups=d.one_of(groups), **more) if groups else value


def conv(d: Drawing, value: int, out: int | None = None, **fixed: Any) -> int:
    """A convolution that fits; what is not fixed is drawn."""
    _, channels, height, width = d.shape(value)
    out = out or d.one_of([4, channels, 2, 6, 1])
    kernel = fixed.pop("kernel", None) or (d.one_of([1, 3, 2, 5]), d.one_of([1, 3, 2]))
    kernel = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
    dilation = fixed.pop("dilation", 1)
    padding = fixed.pop("padding", None)
    if padding is None:
        padding = tuple(dilation * (k - 1) // 2 for k in kernel) if d.flag() else 0
    low = (padding, padding) if isinstance(padding, int) else padding
    kernel = tuple(min(k, max(1, (size + 2 * p - 1) // dilation + 1))
                   for k, size, p in zip(kernel, (height, width), low, strict=True))  # fmt: skip
    options: dict[str, Any] = {"kernel": kernel, "padding": padding, "bias": fixed.pop("bias", None)}
    if options["bias"] is None:
        options["bias"] = not d.flag()
    if dilation != 1:
        options["dilation"] = dilation
    return d.step("conv", value, out=out, **options, **fixed)


def same_size(d: Drawing, value: int, out: int, kernel: int, **more: Any) -> int:
    """A convolution that keeps the size."""
    return conv(d, value, out, kernel=kernel, padding=more.get("dilation", 1) * (kernel - 1) // 2, **more)


def layer(d: Drawing) -> None:
    """A convolution, perhaps a norm, perhaps an activation."""
    value = d.value()
    if value is None:
        return
    channels = d.shape(value)[1]
    form = d.one_of(["plain", "depthwise", "strided", "dilated", "patch", "reflected", "transposed"])
    size = d.shape(value)[2:]
    if form == "depthwise":
        result = same_size(d, value, channels, d.one_of([3, 5, 1]), groups=channels)
    elif form == "strided":
        result = conv(d, value, stride=2)
    elif form == "dilated":
        result = same_size(d, value, d.one_of([4, 2]), 3, dilation=2)
    elif form == "patch" and min(size) > 1:
        result = d.step("conv", value, out=d.one_of([4, 6]), kernel=2, stride=2, bias=d.flag())
    elif form == "reflected" and min(size) > 1:
        result = d.step("conv", value, out=4, kernel=3, padding=1, padding_mode=d.one_of(["reflect", "circular",
                                                                                         "replicate"]))  # fmt: skip
    elif form == "transposed" and d.values[value].numel() < LARGEST:
        result = d.step("conv", value, out=d.one_of([4, 2]), kernel=3, stride=d.number(1, 2), padding=d.number(0, 1),
                        transposed=True, bias=d.flag())  # fmt: skip
    else:
        result = conv(d, value)
    result = maybe_norm(d, result)
    if d.flag():
        activation(d, result)


def shared(d: Drawing) -> None:
    """A module that is called twice, with a norm of its own behind each call."""
    value = d.value()
    if value is None:
        return
    kernel, channels = d.one_of([1, 3]), d.shape(value)[1]
    first = same_size(d, value, channels, kernel)
    options = d.steps[first - 1].options
    other = activation(d, first) if d.flag() else first
    second = d.step("conv", other, module_of=first, **options)
    if d.flag():
        first = d.step("batch_norm", first)
        second = d.step("batch_norm", second, module_of=first) if d.flag() else d.step("batch_norm", second)
    d.step("add", first, second)


def norm_before(d: Drawing) -> None:
    """A norm, scale or shift before a convolution."""
    value = d.value()
    if value is None:
        return
    value = d.step(d.one_of(["batch_norm", "scale", "shift", "grn"]), value)
    if d.flag():
        conv(d, value, padding=0)
    else:
        same_size(d, value, 4, 3)


def normed(d: Drawing) -> None:
    """A group norm and a 1x1 convolution."""
    value = d.value()
    if value is None:
        return
    conv(d, group_norm(d, value), kernel=1, padding=0)


def scaled(d: Drawing) -> None:
    """A layer times constants."""
    value = d.value()
    if value is not None:
        value = conv(d, value)
        value = d.step("scale", value) if d.flag() else d.step("times", value, by=d.one_of([0.5, -2.0, 1.0]))
        if d.flag():
            _ = d.step("shift", value) if d.flag() else d.step("plus", value, number=d.one_of([0.5, -1.0]))


def branches(d: Drawing) -> None:
    """Branches over one input that are added up."""
    value = d.value()
    if value is None:
        return
    channels = d.shape(value)[1]
    groups = channels if d.flag() else 1
    total = None
    for _ in range(d.number(2, 3)):
        kind = d.one_of(["conv", "point", "identity", "pool", "dilated"])
        if kind == "identity":
            part = maybe_norm(d, value)
        elif kind == "pool":
            part = d.step("avg_pool", value, kernel=3, stride=1, padding=1, counts=True)
        else:
            size = {"conv": 3, "point": 1, "dilated": 3}[kind]
            part = same_size(d, value, channels, size, groups=groups, dilation=2 if kind == "dilated" else 1)
            part = maybe_norm(d, part)
        total = part if total is None else d.step("add", total, part)
    if d.flag():
        activation(d, total if total is not None else value)


def residual(d: Drawing) -> None:
    """Values of one shape added, subtracted or multiplied."""
    value = d.value((2, 3, 4))
    if value is None:
        return
    others = d.like(value)
    if not others and d.values[value].dim() == 4:
        others = [same_size(d, value, d.shape(value)[1], 3)]
    if others:
        d.step(d.one_of(["add", "sub", "mul"]), d.one_of(others[:3]), value)


def wide(d: Drawing) -> None:
    """Parallel shallow layers: ``x + sum W2 act(W1 x)``."""
    value = d.value()
    if value is None:
        return
    channels, function = d.shape(value)[1], d.one_of(["relu", "gelu"])
    total = value
    for _ in range(2):
        hidden = d.step(function, conv(d, value, d.one_of([4, 2]), kernel=1, padding=0))
        total = d.step("add", total, conv(d, hidden, channels, kernel=1, padding=0))


def linear_pair(d: Drawing) -> None:
    """Two 1x1 convolutions in a row, or linear layers in a row."""
    value = d.value()
    if value is None:
        return
    middle = d.one_of([4, 1, 12])
    if d.flag():
        value = _tokens(d, value)
        value = d.step("linear", value, out=middle, bias=d.flag())
        d.step("linear", value, out=4, bias=d.flag())
        return
    value = conv(d, value, middle, kernel=1, padding=0)
    if d.flag():
        conv(d, value, 4, kernel=1, padding=0)
    else:
        same_size(d, value, 4, 3)


def siblings(d: Drawing) -> None:
    """Layers of one geometry over one input, each with its own reader."""
    value = d.value()
    if value is None:
        return
    kernel = d.one_of([1, 3])
    first, second = (same_size(d, value, 4, kernel) for _ in range(2))
    if d.flag():
        d.step("cat", first, second, dim=1)
    else:
        d.step("mul", d.step("sigmoid", first), second)


def selection(d: Drawing) -> None:
    """Branches weighted by attention."""
    value = d.value()
    if value is None:
        return
    weight = d.step("sigmoid", conv(d, value, d.one_of([1, 4]), kernel=1, padding=0))
    first, second = same_size(d, value, 4, 1), same_size(d, value, 4, 3)
    d.step("select", weight, first, second)


def inception(d: Drawing) -> None:
    """InceptionNeXt's mixer: parts of the channels through kernels of different shape."""
    value = d.value()
    if value is None or d.shape(value)[1] < 4:
        return
    channels = d.shape(value)[1]
    sizes = [channels - 3, 1, 1, 1]
    parts = [d.step("piece", value, index=i, sizes=sizes, dim=1) for i in range(4)]
    parts[1] = conv(d, parts[1], 1, kernel=(3, 3), padding=1, groups=1)
    parts[2] = conv(d, parts[2], 1, kernel=(1, 5), padding=(0, 2), groups=1)
    parts[3] = conv(d, parts[3], 1, kernel=(5, 1), padding=(2, 0), groups=1)
    d.step("cat", *parts, dim=1)


def pooled(d: Drawing) -> None:
    """An activation before a pool, or a convolution before an average."""
    value = d.value()
    if value is None or min(d.shape(value)[2:]) < 2:
        return
    if d.flag():
        d.step("max_pool", activation(d, value), kernel=2, stride=d.number(1, 2), padding=d.number(0, 1))
    else:
        value = conv(d, value, kernel=1, padding=0)
        d.step("avg_pool", value, kernel=2, stride=2, padding=d.number(0, 1), counts=d.flag())


def head(d: Drawing) -> None:
    """A layer, global pooling and a linear layer."""
    value = d.value()
    if value is None:
        return
    if d.flag():
        value = conv(d, value)
    elif d.flag():
        value = d.step("conv", value, out=4, kernel=2, stride=2, transposed=True)
    form = d.one_of(["mean", "pool", "sum"])
    value = d.step("pool", value) if form == "pool" else d.step(form, value, dims=[2, 3], keepdim=d.flag())
    if d.values[value].dim() == 4 and d.flag():
        value = d.step("mean", value, dims=[2, 3], keepdim=d.flag())
    if d.values[value].dim() == 4:
        value = d.step("flatten", value)
    value = d.step("linear", value, out=d.one_of([4, 1]), bias=d.flag())
    if d.flag():
        d.step("sum", value, dims=[1], keepdim=d.flag())


def excitation(d: Drawing) -> None:
    """Squeeze and excitation behind a layer."""
    value = d.value()
    if value is None:
        return
    channels = d.shape(value)[1]
    value = maybe_norm(d, same_size(d, value, channels, d.one_of([1, 3]), groups=d.one_of([1, channels])))
    gate = d.step("mean", value, dims=[2, 3], keepdim=True)
    gate = conv(d, d.step("relu", conv(d, gate, 2, kernel=1, padding=0)), channels, kernel=1, padding=0)
    d.step("mul", value, d.step("sigmoid", gate))


def _tokens(d: Drawing, value: int) -> int:
    return d.step("permute", value, order=[0, 2, 3, 1]) if d.flag() else d.step("tokens", value)


def mlp(d: Drawing) -> None:
    """ConvNeXt's mixer of channels: layer norm and two linear layers, channels last."""
    value = d.value()
    if value is None:
        return
    channels = d.shape(value)[1]
    inner = d.step("layer_norm", d.step("permute", value, order=[0, 2, 3, 1]))
    inner = d.step("linear", inner, out=d.one_of([4, 8]))
    inner = activation(d, inner) if d.flag() else inner
    inner = d.step("permute", d.step("linear", inner, out=channels), order=[0, 3, 1, 2])
    if d.flag():
        inner = d.step("scale", inner)
    d.step("add", value, inner)


def attention(d: Drawing) -> None:
    """Attention over pixels, its queries scaled."""
    value = d.value()
    if value is None or d.values[value].numel() > LARGEST // 4:
        return
    _, _, height, width = d.shape(value)
    tokens = d.step("layer_norm", d.step("tokens", value))
    qkv = d.step("linear", tokens, out=12, bias=d.flag())
    q, k, v = (d.step("piece", qkv, index=i, sizes=4, dim=2) for i in range(3))
    if d.flag():
        weights = d.step("matmul", d.step("times", q, by=0.5), k)
    else:
        weights = d.step("times", d.step("matmul", q, k), by=0.5)
    mixed = d.step("weigh", d.step("softmax", weights, dim=-1), v)
    d.step("image", d.step("linear", mixed, out=4), size=(height, width))


def bounds(d: Drawing) -> None:
    """Clamps and bounded functions in a row."""
    value = d.value((2, 3, 4))
    if value is None:
        return
    for _ in range(2):
        if d.flag():
            low = d.one_of([0.0, -1.0, 0.5])
            value = d.step("clamp", value, low=low, high=low + d.one_of([1.0, 0.25, 6.0]))
        else:
            value = d.step(d.one_of(["relu", "sigmoid", "relu6", "tanh"]), value)


def single(d: Drawing) -> None:
    """Reductions over a dimension of size one."""
    value = d.value((2, 3, 4))
    if value is None:
        return
    last = d.values[value].dim() - 1
    value = d.step("largest", value, dims=[last], keepdim=True)
    kind = d.one_of(["mean", "sum", "largest", "softmax"])
    if kind == "softmax":
        d.step("softmax", value, dim=last)
    else:
        d.step(kind, value, dims=[last], keepdim=d.flag())


LAYERS: tuple[Motif, ...] = (
    layer, residual, shared, branches, norm_before, normed, scaled, wide, linear_pair, siblings, selection, inception,
    pooled, head, excitation, mlp, attention, bounds, single,
)  # fmt: skip
