"""A convolution or linear layer as a chain of smaller ones, fitted to data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from passes import affine
from passes.convolve import convolution_refusal
from passes.low_rank_approximation.chain import Fit, Grid, Shape, build
from passes.low_rank_approximation.cp import cp
from passes.low_rank_approximation.forms import channel, spatial, tucker
from passes.low_rank_approximation.patches import Patches
from passes.low_rank_approximation.regression import Metric, of_outputs, of_patches
from rewrite.approximation.contract import Approximation, Option, Watch
from rewrite.approximation.statistics import Moments
from rewrite.errors import PipelineError
from rewrite.flops import Sizes
from rewrite.names import nearest
from rewrite.ops import Convolution, Linear, value, view_as
from rewrite.rule import Match, Miss, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor
    from torch.fx import Node

    from passes.affine import Layer
    from rewrite.fragment import Builder
    from rewrite.graph import Graph

FORMS = {"channel": channel, "spatial": spatial, "tucker": tucker, "cp": cp}

LARGEST = 5000
"""Values, of what a layer reads at once or gives, up to which all products are kept: 100 MB in float32."""


@dataclass(frozen=True)
class LowRank(Approximation):
    r"""Replace a layer by a chain of smaller ones whose weights have low rank, fitted to the inputs.

    .. math:: y = W' p + b',\quad b' = b + (W - W') m,\quad \min \operatorname{tr} (W - W') S (W - W')^\top

    for the moments S, m of what the layer reads at once (:mod:`passes.low_rank_approximation.patches`), so that the
    bias takes what the mean makes of the difference, and directions that the data does not show cost nothing. Forms:

    - ``channel``: the layer with fewer outputs, and a pointwise one; all that there is for linear layers and 1x1
      convolutions; the best of its rank
    - ``spatial``: a convolution along one axis, then one along the other
    - ``tucker``: fewer channels, the convolution over these, more channels
    - ``cp``: fewer channels, depthwise along each axis, more channels; not the best, and of kernels of up to 2^20
      elements only

    Each is offered with several ranks that take fewer multiply-accumulates than the layer, in geometric progression.
    Groups stay, each with its own moments. Where a layer reads more than 5000 values at once, which is where all
    products of these take over 100 MB, ``channel`` alone is offered, from the moments of its outputs. Products of more
    than 2500 values are kept in float32, the others in float64.

    Attributes:
        forms: names of forms, with spaces between.
        ranks: how many of each form at most.
        least: the lowest rank as a part of the highest one that saves anything.
    """

    forms: str = "channel spatial tucker cp"
    ranks: int = 8
    least: float = 1 / 16

    starts = "a convolution that is not depthwise, or a linear layer"

    def __post_init__(self) -> None:
        names = self.forms.split()
        for name in names:
            if name not in FORMS:
                raise PipelineError(f"forms has '{name}', which is no form{nearest(name, FORMS)}")
        if not names:
            raise PipelineError(f"forms is empty; name some of {', '.join(FORMS)}")
        if self.ranks < 1:
            raise PipelineError(f"ranks is {self.ranks}; give the number of ranks of each form, at least 1")
        if not 0 < self.least <= 1:
            raise PipelineError(f"least is {self.least}; give a part of the highest rank, above 0 and up to 1")

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each convolution that is not depthwise, and each linear layer."""
        for node in dirty:
            layer = view_as(node, Convolution) or view_as(node, Linear)
            if layer is not None and not _is_depthwise(layer):
                yield self.at(node, _refusal(graph, layer), layer=layer)

    def watch(self, graph: Graph, match: Match) -> Mapping[str, Watch]:
        """The patches of the input, or where these are many, or not needed, the outputs."""
        layer: Layer = match.layer
        if self._by_outputs(layer):
            return {"outputs": Watch((layer.node,), Moments(affine.channel_axis(layer)))}
        shape = Shape.of(layer)
        return {"patches": Watch((layer.input,), Patches(layer, shape.groups, shape.features))}

    def _by_outputs(self, layer: Layer) -> bool:
        """Whether the moments of the outputs tell all that is needed, in less memory."""
        shape = Shape.of(layer)
        if shape.features > LARGEST:
            return True
        pointwise = shape.features == shape.inputs or self.forms.split() == ["channel"]
        return pointwise and shape.groups * shape.outputs <= shape.features

    def options(self, graph: Graph, match: Match, seen: Mapping[str, Any]) -> Sequence[Option]:
        """Each form with several ranks."""
        layer: Layer = match.layer
        shape = Shape.of(layer, Sizes(graph))
        metric = self._metric(graph, layer, seen)
        if not math.isfinite(metric.energy):
            return []
        forms = dict.fromkeys(self.forms.split()) if metric.patches is not None else {"channel": None}
        if metric.patches is None and "channel" not in self.forms.split():
            return []
        pick = Grid(shape, self.ranks, self.least)
        fits: list[Fit] = [fit for name in forms for fit in FORMS[name](metric, shape, pick)]
        return [Option(fit.text, fit.error, fit) for fit in fits]

    def _metric(self, graph: Graph, layer: Layer, seen: Mapping[str, Any]) -> Metric:
        shape = Shape.of(layer)
        weight = _weight(graph, layer).reshape(shape.groups, shape.outputs, shape.inputs, *shape.kernel)
        bias = weight.new_zeros(shape.groups * shape.outputs)
        if layer.bias is not None:
            bias += graph.value(layer.bias)
        bias = bias.reshape(shape.groups, shape.outputs)
        dtype = value(layer.weight).dtype
        if "outputs" in seen:
            return of_outputs(weight, bias, seen["outputs"], dtype)
        return of_patches(weight, bias, seen["patches"], dtype)

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The chain."""
        return build(g, match.layer, match.option.facts)


def _is_depthwise(layer: Layer) -> bool:
    return isinstance(layer, Convolution) and layer.groups == layer.in_channels > 1


def _weight(graph: Graph, layer: Layer) -> Tensor:
    weight = graph.value(layer.weight).detach().double()
    return weight.mT if isinstance(layer, Linear) and layer.stored_transposed else weight


def _refusal(graph: Graph, layer: Layer) -> Refusal | None:
    if isinstance(layer, Convolution) and (refusal := convolution_refusal(layer)) is not None:
        return refusal
    refusal = affine.layer_refusal(graph, layer)
    if refusal is not None:
        return refusal
    weight = graph.value(layer.weight)
    if weight.numel() == 0:
        return Refusal("it has no weights", layer.weight)
    if not bool(weight.isfinite().all()):
        return Refusal("its weights are infinite or NaN", layer.weight, "give it finite values")
    shape = Shape.of(layer)
    outputs = shape.groups * shape.outputs
    if shape.features > LARGEST and outputs > LARGEST:
        return Refusal(f"it reads {shape.features} values at once and gives {outputs}, and products of more than "
                       f"{LARGEST} are not kept", layer.node)  # fmt: skip
    return None
