"""Hidden channels that make little difference, removed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from passes import affine
from passes.convolve import convolve
from passes.prune_filters.elimination import Kept, eliminate
from passes.prune_filters.hidden import Hidden, Layer, hidden_behind
from rewrite.approximation.contract import Approximation, Option, Watch
from rewrite.approximation.statistics import Moments
from rewrite.approximation.trial import relative
from rewrite.errors import PipelineError
from rewrite.ops import Activation, Convolution, Linear, value
from rewrite.rule import Match, Miss, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph


@dataclass(frozen=True)
class PruneFilters(Approximation):
    r"""Remove channels between two layers, and let those that stay make up for them.

    .. math:: y = V z + b \;\approx\; V' z_K + b',\quad
        V' = V \operatorname{Cov}(z, z_K) \operatorname{Cov}(z_K)^{-1},\quad b' = b + V \bar z - V' \bar z_K

    where z are the channels as the second layer reads them, behind activations and depthwise convolutions, and K those
    that stay, chosen one after the other by what is lost (Hassibi and Stork, Optimal brain surgeon, 1993; for channels
    of convolutions He, Zhang and Sun, Channel pruning, 2017). The first layer loses the filters of the others, and so
    do depthwise convolutions between.

    Where the second layer has a kernel of more than one tap, the covariance is that of single positions, so that the
    predicted error is an estimate: too low where neighbours are alike. Where it pads, moments about zero stand for
    covariances and the bias stays, since the mean of what it reads is another one at the border.

    Attributes:
        steps: how many numbers of channels are tried, in even steps.
        least: the part of the channels that stays at least.
        multiple: numbers of channels are multiples of this, which kernels of libraries like.
    """

    steps: int = 7
    least: float = 0.125
    multiple: int = 4

    starts = "a layer that reads the channels of another one"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise PipelineError(f"steps is {self.steps}; give how many numbers of channels to try, at least 1")
        if not 0 < self.least < 1:
            raise PipelineError(f"least is {self.least}; give the part of the channels that stays, between 0 and 1")
        if self.multiple < 1:
            raise PipelineError(
                f"multiple is {self.multiple}; give what numbers of channels are multiples of, from 1 on"
            )

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each layer that reads the channels of another one, alone."""
        for node in dirty:
            found = hidden_behind(graph, node)
            if isinstance(found, Refusal):
                yield Miss(self.name, node, found, (node,))
            elif found is not None:
                yield Match(self, found.nodes, (node,), {"hidden": found})

    def watch(self, graph: Graph, match: Match) -> Mapping[str, Watch]:
        """The channels as the reader reads them, and its outputs."""
        hidden: Hidden = match.hidden
        reader = hidden.reader
        axis = affine.channel_axis(reader)
        return {"hidden": Watch((reader.input,), Moments(hidden.axis)), "output": Watch((reader.node,), Energy(axis))}

    def options(self, graph: Graph, match: Match, seen: Mapping[str, Any]) -> Sequence[Option]:
        """So many channels less, in steps."""
        hidden: Hidden = match.hidden
        moments: Moments = seen["hidden"]
        weight = _columns(hidden.reader, graph.value(hidden.reader.weight).double())
        taps = weight.shape[2]
        flat = weight.transpose(1, 2).flatten(0, 1)  # [O * taps, C]: taps are taken for independent
        whole = float(seen["output"].mean)
        pads = isinstance(hidden.reader, Convolution) and any(map(any, hidden.reader.padding))
        options: list[Option] = []
        for kept in eliminate(flat, moments, self._counts(hidden.channels), centred=not pads):
            error = relative(kept.wrong, whole)
            columns = kept.weight.reshape(len(weight), taps, -1).transpose(1, 2)
            shift = (weight.sum(2) @ moments.mean) - columns.sum(2) @ moments.mean[kept.channels]
            if pads:
                shift = torch.zeros_like(shift)
            text = f"{len(kept.channels)} of {hidden.channels} channels"
            options.append(Option(text, error, Pruned(kept, columns, shift)))
        return options

    def _counts(self, channels: int) -> set[int]:
        low = self.least * channels
        wanted = (low + (channels - low) * step / self.steps for step in range(self.steps))
        counts = {math.ceil(count / self.multiple) * self.multiple for count in wanted}
        return {count for count in counts if count < channels}

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The same operators with fewer channels."""
        hidden: Hidden = match.hidden
        pruned: Pruned = match.option.facts
        kept = pruned.kept.channels
        x = _layer(g, hidden.writer, hidden.writer.input, "writer", *_rows(g, hidden.writer, kept))
        for number, step in enumerate(hidden.between):
            x = step.on(g, x) if isinstance(step, Activation) else _depthwise(g, step, x, kept, number)
        reader = hidden.reader
        bias = pruned.shift if bool(pruned.shift.any()) else None
        if reader.bias is not None:
            bias = g.graph.value(reader.bias).double() + pruned.shift
        return _layer(g, reader, x, "reader", _as_stored(reader, pruned.columns), bias)


@dataclass(frozen=True)
class Pruned:
    """What a number of channels comes to.

    Attributes:
        kept: which stay.
        columns: ``[O, kept, taps]``, of the reader.
        shift: ``[O]``, what its bias gains.
    """

    kept: Kept
    columns: Tensor
    shift: Tensor


class Energy:
    """The energy of each sample of a value, summed over its channels.

    Args:
        axis: the dimension of the channels.
    """

    def __init__(self, axis: int):
        self._axis, self._total, self._count = axis, 0.0, 0

    def add(self, *values: Tensor) -> None:
        """Add one batch."""
        (x,) = values
        self._total += float(x.double().square().sum())
        self._count += x.numel() // x.shape[self._axis]

    @property
    def mean(self) -> float:
        """Of a position."""
        return self._total / max(self._count, 1)


def _columns(layer: Layer, weight: Tensor) -> Tensor:
    """A reader's weight as ``[O, C, taps]``."""
    if isinstance(layer, Linear):
        return (weight.T if layer.stored_transposed else weight)[:, :, None]
    return weight.flatten(2)


def _as_stored(layer: Layer, columns: Tensor) -> Tensor:
    """The other way round, with fewer channels."""
    if isinstance(layer, Linear):
        return columns[:, :, 0].T if layer.stored_transposed else columns[:, :, 0]
    return columns.reshape(*columns.shape[:2], *layer.kernel)


def _rows(g: Builder, layer: Layer, kept: Tensor) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of a writer with some of its filters."""
    weight = g.graph.value(layer.weight)
    axis = 1 if isinstance(layer, Linear) and layer.stored_transposed else 0
    bias = None if layer.bias is None else g.graph.value(layer.bias).index_select(0, kept)
    return weight.index_select(axis, kept), bias


def _layer(g: Builder, layer: Layer, x: Node, role: str, weight: Tensor, bias: Tensor | None) -> Node:
    """A layer over another input, weight and bias."""
    dtype = value(layer.weight).dtype
    brought = g.bring(f"prune_filters.{role}.weight", weight.to(dtype))
    shift = None if bias is None else g.bring(f"prune_filters.{role}.bias", bias.to(dtype))
    return affine.with_weights(g, layer, x, brought, shift)


def _depthwise(g: Builder, conv: Convolution, x: Node, kept: Tensor, number: int) -> Node:
    """A depthwise convolution of the channels that stay."""
    name = f"prune_filters.between{number}"
    weight = g.bring(f"{name}.weight", g.graph.value(conv.weight).index_select(0, kept))
    bias = None if conv.bias is None else g.bring(f"{name}.bias", g.graph.value(conv.bias).index_select(0, kept))
    return convolve(g, x, weight, bias, stride=conv.stride, padding=conv.padding, dilation=conv.dilation,
                    groups=len(kept))  # fmt: skip
