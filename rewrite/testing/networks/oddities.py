"""Motifs that make little sense and occur all the same: what tracing, pruning and unfinished edits leave."""

from __future__ import annotations

from rewrite.testing.networks.drawing import LARGEST, Drawing
from rewrite.testing.networks.motifs import Motif, activation, conv, group_norm, same_size


def planted(d: Drawing) -> None:
    """Channels that carry nothing or the same, before another layer."""
    value = d.value()
    if value is None:
        return
    plant = d.one_of(["dead", "duplicate", "border", "unread", "dead norm"])
    if plant == "dead norm":
        value = d.step("batch_norm", conv(d, value, 4), plant="dead")
    elif plant == "border":
        value = d.step("conv", value, out=4, kernel=5, padding=d.one_of([2, 4]), plant=plant, bias=d.flag())
    else:
        # what nothing reads is seen at the layer behind
        value = d.step("conv", value, out=4, kernel=1, bias=d.flag(), plant="" if plant == "unread" else plant)
    if d.flag():
        value = d.step(d.one_of(["relu", "gelu", "sigmoid"]), value)
    behind = {"plant": plant} if plant == "unread" else {}
    if d.flag():
        d.step("conv", value, out=4, kernel=1, **behind)
    else:
        d.step("conv", value, out=4, kernel=3, padding=1, **behind)


def views(d: Drawing) -> None:
    """Slices, copies, permutations there and back, padding by hand."""
    value = d.value()
    if value is None:
        return
    channels = d.shape(value)[1]
    kind = d.one_of(["part", "there and back", "pad", "pieces", "clone", "pieces", "contiguous"])
    if kind == "part" and channels > 1:
        d.step("part", value, start=0, end=d.number(1, channels - 1), dim=1)
    elif kind == "pieces" and channels > 1:
        sizes = [1, channels - 1]
        d.step("cat", *(d.step("piece", value, index=i, sizes=sizes, dim=1) for i in range(2)), dim=1)
    elif kind == "there and back":
        d.step("permute", d.step("permute", value, order=[0, 2, 3, 1]), order=[0, 3, 1, 2])
    elif kind == "pad" and d.values[value].numel() < LARGEST:
        value = d.step("pad", value, amounts=[d.number(0, 2), d.number(0, 1), 1, 0], mode="constant")
        conv(d, value, padding=0)
    elif kind in ("clone", "contiguous"):
        d.step(kind, value)


def kernels(d: Drawing) -> None:
    """Kernels of few taps or of low rank."""
    value = d.value()
    if value is None:
        return
    plant, channels = d.one_of(["separable", "cross", "cross", "few", "border"]), d.shape(value)[1]
    if plant == "few":
        d.step("conv", value, out=d.one_of([6, 12]), kernel=3, padding=1, plant=plant, bias=d.flag())
    else:
        size = d.one_of([5, 3])
        d.step("conv", value, out=channels, kernel=size, padding=size // 2, groups=channels, plant=plant,
               bias=d.flag())  # fmt: skip


def patches(d: Drawing) -> None:
    """A convolution whose stride is its kernel."""
    value = d.value()
    if value is not None and min(d.shape(value)[2:]) > 1:
        channels = d.shape(value)[1]
        d.step("conv", value, out=channels * d.number(1, 2), kernel=2, stride=2, padding=d.one_of([0, 0, 1]),
               groups=d.one_of([1, channels]), bias=d.flag())  # fmt: skip


def dilated(d: Drawing) -> None:
    """A convolution with gaps between its taps."""
    value = d.value()
    if value is not None:
        same_size(d, value, 4, 3, dilation=d.one_of([2, 3]), stride=d.one_of([1, 1, 2]))


def adapter(d: Drawing) -> None:
    """A layer and two layers in a row beside it, as LoRA adds them."""
    value = d.value()
    if value is None:
        return
    rank, function = d.number(1, 2), d.flag()
    if d.flag():
        value = d.step("tokens", value)
        whole, down = (d.step("linear", value, out=out, bias=d.flag()) for out in (4, rank))
        down = activation(d, down) if function else down
        up = d.step("linear", down, out=4, bias=d.flag())
    else:
        whole, down = conv(d, value, 4, kernel=1, padding=0), conv(d, value, rank, kernel=1, padding=0)
        down = activation(d, down) if function else down
        up = conv(d, down, 4, kernel=1, padding=0)
    d.step("add", whole, d.step("times", up, by=2.0) if d.flag() else up)


def leftover(d: Drawing) -> None:
    """Pieces of a layer's channels, of which some are read by nothing."""
    value = d.value()
    if value is None:
        return
    value = conv(d, value, 6)
    value = d.step(d.one_of(["relu", "batch_norm"]), value) if d.flag() else d.step("group_norm", value, groups=2)
    value = d.step("part", value, start=d.number(0, 1), end=d.number(3, 5), dim=1)
    if not d.flag():
        conv(d, value)


def shifted(d: Drawing) -> None:
    """A constant added before a convolution that pads, perhaps with a stride."""
    value = d.value()
    if value is None:
        return
    value = d.step(d.one_of(["shift", "batch_norm"]), value) if d.flag() else d.step("plus", value, number=0.5)
    same_size(d, value, d.one_of([2, 1, 6]), 3, stride=d.one_of([2, 1]))


def mean_of_norm(d: Drawing) -> None:
    """The mean of a group norm over all of a sample."""
    value = d.value()
    if value is not None:
        value = group_norm(d, value, uniform=not d.flag())
        dims = d.one_of([[1, 2, 3], [1, 2, 3], [2, 3], [0, 1, 2, 3]])
        d.step("mean", value, dims=dims, keepdim=len(dims) == 4 or d.flag())


def twice(d: Drawing) -> None:
    """The same reduction, permutation or negation again; a mean of a sum."""
    value = d.value()
    if value is None:
        return
    form = d.one_of(["reduction", "permute", "negate", "pool", "copy", "sum"])
    if form == "reduction":
        kind, keep = d.one_of(["mean", "sum", "largest"]), d.flag()
        value = d.step(kind, value, dims=[d.number(2, 3)], keepdim=keep)
        d.step(kind if d.number(0, 4) else "mean", value, dims=[1] if keep else [2], keepdim=d.flag())
    elif form == "pool" and min(d.shape(value)[2:]) > 1:
        value = d.step("avg_pool", value, kernel=2, stride=2, padding=d.one_of([0, 0, 1]), counts=True)
        d.step("mean", value, dims=[2, 3], keepdim=d.flag())
    elif form == "sum":
        value = d.step("add", value, same_size(d, value, d.shape(value)[1], 3))
        d.step("mean", value, dims=[2, 3], keepdim=d.flag())
    elif form == "permute":
        value = d.step("permute", value, order=[0, 2, 3, 1])
        d.step("permute", value, order=d.one_of([[0, 3, 1, 2], [0, 2, 1, 3], [0, 1, 3, 2]]))
    elif form == "negate":
        d.step("negate", d.step("negate", value))
    else:
        d.step("contiguous", d.step("clone", value))


def gathered(d: Drawing) -> None:
    """The mean, sum or maximum of what is permuted, reshaped or added up; two signs that cancel."""
    value = d.value()
    if value is None:
        return
    form = d.one_of(["layout", "sum", "signs"])
    if form == "layout":
        last = d.flag()
        value = d.step("permute", value, order=[0, 2, 3, 1]) if last else d.step("tokens", value)
        d.step(d.one_of(["mean", "sum", "largest"]), value, dims=[1, 2] if last else [1], keepdim=d.flag())
    elif form == "sum":
        value = d.step(d.one_of(["add", "sub"]), same_size(d, value, d.shape(value)[1], d.one_of([1, 3])), value)
        d.step(d.one_of(["mean", "sum"]), value, dims=[2, 3], keepdim=d.flag())
    else:
        d.step("negate", d.step("times", value, by=-1.0) if d.flag() else d.step("negate", value))


def nothing(d: Drawing) -> None:
    """Arithmetic that changes nothing; all channels, or all but one."""
    value = d.value((2, 3, 4))
    if value is None:
        return
    form = d.one_of(["times", "plus", "less", "part"])
    if form == "part":
        channels = d.shape(value)[1]
        d.step("part", value, start=0, end=d.one_of([channels, max(1, channels - 1)]), dim=1)
    elif form == "times":
        d.step("times", value, by=d.one_of([1, 1.0, 2.0]))
    else:
        d.step(form, value, number=d.one_of([0, 0.0, 0, -0.0, 1.0]))


def finite(d: Drawing) -> None:
    """What is the same number for all finite values."""
    value = d.value()
    if value is None:
        return
    if d.flag():
        d.step("softmax", d.step("mean", value, dims=[1], keepdim=True), dim=1)
    else:
        d.step("sub", value, value)


def in_range(d: Drawing) -> None:
    """Bounds that a value may never reach."""
    value = d.value((2, 3, 4))
    if value is None:
        return
    if d.flag():
        value = d.step(d.one_of(["smaller", "larger"]), value, number=d.one_of([0.5, 0.0, 0.1]))
    else:
        value = d.step(d.one_of(["sigmoid", "relu", "tanh"]), value)
    if d.flag():
        d.step("relu", value)
    else:
        d.step("clamp", value, low=d.one_of([-1.0, 0.0]), high=1.0)


def maxima(d: Drawing) -> None:
    """A maximum over windows or whole dimensions of an activation."""
    value = d.value()
    if value is None or min(d.shape(value)[2:]) < 2:
        return
    value = activation(d, value)
    if d.flag():
        d.step("largest", value, dims=[2, 3], keepdim=d.flag())
    else:
        d.step("max_pool", value, kernel=2, stride=2, padding=d.number(0, 1))


ODDITIES: tuple[Motif, ...] = (
    planted, views, kernels, patches, dilated, adapter, leftover, shifted, mean_of_norm, twice, gathered, nothing,
    finite, in_range, maxima,
)  # fmt: skip
