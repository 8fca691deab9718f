"""A depthwise convolution as the mixer of an InceptionNeXt, fitted to data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from passes import affine
from passes.convolve import convolution_refusal, convolve
from passes.inception.assignment import cheapest, in_numbers
from passes.inception.fitting import Fit, energy, fits
from passes.inception.patches import Patches
from passes.inception.supports import Support, supports
from passes.split_support import is_depthwise, keeps_position
from passes.taps import axes_of, best_cuts, convolve_cut, zero_borders
from rewrite.approximation.contract import Approximation, Option, Watch
from rewrite.approximation.trial import relative
from rewrite.errors import PipelineError
from rewrite.ops import Convolution, value, view_as
from rewrite.rule import Match, Miss

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class Group:
    """Channels with one kind of kernel.

    Attributes:
        support: the kind.
        channels: in order, whole numbers.
        fit: the kernels of all channels of this kind.
    """

    support: Support
    channels: Tensor
    fit: Fit


@dataclass(frozen=True)
class Inception(Approximation):
    r"""Replace the kernel of each channel by a small part of it, or by a separable one, fitted to the inputs.

    .. math:: y_c = v_c * x_c + b'_c,\quad v_c = (S^\top R_c S)^{-1} S^\top R_c w_c,\quad
        b'_c = b_c + (w_c - S v_c) \cdot m_c

    for a support S: the centre (the channel passes through, scaled), a square, a row, a column, or for
    :math:`v_c = \sum_r h_{c,r} u_{c,r}^\top`, separable kernels; :math:`R_c, m_c` are the moments of the values under
    the kernel (see :mod:`passes.inception.patches`). Yu et al., InceptionNeXt, 2024, with its ratios for trained
    networks; here channels are assigned by what each of them loses. Exact where the kernel lies in the support.

    Channels of one kind run as one convolution. Where there are several kinds, they are gathered before and put back
    behind, which costs a copy each: options whose channels are all of one kind need none.

    Attributes:
        square: the side of the square, an odd number.
        band: the length of rows and columns, an odd number; 0 for the kernel's own.
        rank: the highest of separable kernels; 0 for none.
        ratio: the part of the channels that each of square, row and column get, the others pass through scaled; 0 for
            no fixed numbers.
    """

    square: int = 3
    band: int = 0
    rank: int = 2
    ratio: float = 0.0

    starts = "a depthwise convolution of two dimensions"

    def __post_init__(self) -> None:
        if self.square < 1 or self.square % 2 == 0:
            raise PipelineError(f"square is {self.square}; give an odd number, the side of a square around the centre")
        if self.band < 0 or (self.band and self.band % 2 == 0):
            raise PipelineError(f"band is {self.band}; give an odd number, the length of rows and columns, or 0")
        if self.rank < 0:
            raise PipelineError(f"rank is {self.rank}; give the highest rank of separable kernels, or 0 for none")
        if not 0 <= self.ratio <= 1 / 3:
            raise PipelineError(f"ratio is {self.ratio}; give the part of the channels of each branch, up to 1/3")

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """One match or miss for each depthwise convolution of more than one tap."""
        for node in dirty:
            conv = view_as(node, Convolution)
            if conv is None or conv.dims != 2 or conv.transposed or not is_depthwise(conv):
                continue
            if conv.kernel[0] * conv.kernel[1] > 1:
                yield self.at(node, convolution_refusal(conv) or affine.layer_refusal(graph, conv), conv=conv)

    def watch(self, graph: Graph, match: Match) -> Mapping[str, Watch]:
        """The patches of the input."""
        return {"patches": Watch((match.conv.input,), Patches(match.conv))}

    def options(self, graph: Graph, match: Match, seen: Mapping[str, Any]) -> Sequence[Option]:
        """Each kind for all channels, and assignments of kinds to channels."""
        conv: Convolution = match.conv
        patches: Patches = seen["patches"]
        weight = graph.value(conv.weight)[:, 0].double()
        bias = None if conv.bias is None else graph.value(conv.bias).double()
        found = fits(weight, patches, supports(conv, self.square, self.band, self.rank))
        wrong = torch.stack([fit.wrong for fit in found], 1).cpu()
        whole = float(energy(weight, bias, patches).sum())
        costs = torch.tensor([float(fit.support.taps) for fit in found], dtype=wrong.dtype)
        kinds = [torch.full((len(weight),), k) for k in range(len(found) - 1)]
        kinds += self._in_numbers(found, wrong) if self.ratio else cheapest(wrong, costs)
        options: dict[tuple[int, ...], Option] = {}
        for chosen in kinds:
            if bool((chosen < len(found) - 1).any()):
                left = float(wrong.gather(1, chosen[:, None]).sum())
                option = _option(found, chosen, relative(left, whole))
                options.setdefault(tuple(chosen.tolist()), option)
        return list(options.values())

    def _in_numbers(self, found: Sequence[Fit], wrong: Tensor) -> list[Tensor]:
        """The paper's numbers: square, row and column get their part, and the others pass through."""
        places = {fit.support.name: k for k, fit in enumerate(found)}
        if not {"identity", "square", "row", "column"} <= places.keys():
            return []
        counts = [0] * len(found)
        each = int(len(wrong) * self.ratio)
        for name in ("square", "row", "column"):
            counts[places[name]] = each
        counts[places["identity"]] = len(wrong) - 3 * each
        return [in_numbers(wrong, counts)]

    def rewrite(self, match: Match, g: Builder) -> Node:
        """The kinds side by side."""
        conv: Convolution = match.conv
        groups: Sequence[Group] = match.option.facts
        dtype = value(conv.weight).dtype
        bias = _bias(g, conv, groups)
        order = torch.cat([group.channels for group in groups])
        moved = not torch.equal(order, torch.arange(len(order)))
        x = conv.input
        if moved:
            x = g(aten.index_select.default, x, 1, g.bring("inception.order", order.to(bias.device)))
        parts, start = [], 0
        for number, group in enumerate(groups):
            stop = start + len(group.channels)
            part = x if len(groups) == 1 else g(aten.slice.Tensor, x, 1, start, stop)
            name = f"inception.{group.support.name.replace(' ', '_')}" + (f"_{number}" if len(groups) > 1 else "")
            parts.append(_branch(g, conv, group, part, bias[group.channels.to(bias.device)], dtype, name))
            start = stop
        y = parts[0] if len(parts) == 1 else g(aten.cat.default, parts, 1)
        if moved:
            y = g(aten.index_select.default, y, 1, g.bring("inception.back", order.argsort().to(bias.device)))
        return y


def _option(found: Sequence[Fit], kinds: Tensor, error: float) -> Option:
    groups = [Group(found[k].support, (kinds == k).nonzero().flatten(), found[k]) for k in kinds.unique().tolist()]
    groups.sort(key=lambda group: int(group.channels[0]))
    text = ", ".join(f"{len(group.channels)} {group.support.name}" for group in groups)
    return Option(text if len(groups) > 1 else f"all {groups[0].support.name}", error, groups)


def _bias(g: Builder, conv: Convolution, groups: Sequence[Group]) -> Tensor:
    """``[C]``: what there was, and what the means of the patches make of the difference."""
    shift = groups[0].fit.shift
    bias = torch.zeros_like(shift) if conv.bias is None else g.graph.value(conv.bias).to(shift)
    for group in groups:
        channels = group.channels.to(shift.device)
        bias = bias.index_add(0, channels, group.fit.shift[channels])
    return bias


def _branch(
    g: Builder, conv: Convolution, group: Group, x: Node, bias: Tensor, dtype: torch.dtype, name: str
) -> Node:  # fmt: skip
    """Channels of one kind."""
    channels = group.channels.to(bias.device)
    bias = bias.to(dtype)
    if group.fit.sides is not None:
        column, row = (side[channels] for side in group.fit.sides)
        return _separable(g, conv, x, (column.to(dtype), row.to(dtype)), g.bring(f"{name}.bias", bias), name)
    kernel = group.fit.kernel[channels].to(dtype)
    if group.support.name == "identity" and keeps_position(conv):
        scale = g.bring(f"{name}.scale", kernel.flatten(1).sum(1).reshape(-1, 1, 1))
        return g(aten.add.Tensor, g(aten.mul.Tensor, x, scale), g.bring(f"{name}.bias", bias.reshape(-1, 1, 1)))
    axes = axes_of(conv)
    outside = group.support.mask
    assert outside is not None
    cuts = best_cuts(axes, zero_borders(outside[None, None].expand(1, 1, -1, -1).to(dtype)))
    kept = kernel[:, None]
    for d, (axis, cut) in enumerate(zip(axes, cuts, strict=True), start=2):
        kept = kept.narrow(d, cut[0], axis.count - sum(cut))
    weight = g.bring(f"{name}.weight", kept)
    shift = g.bring(f"{name}.bias", bias)
    return convolve_cut(g, conv, axes, cuts, x=x, weight=weight, bias=shift, groups=len(channels))


def _separable(
    g: Builder, conv: Convolution, x: Node, sides: tuple[Tensor, Tensor], bias: Node, name: str
) -> Node:  # fmt: skip
    """A column for each channel and rank, then the rows that add them up."""
    column, row = sides
    channels, rank, height = column.shape
    first = g.bring(f"{name}.column", column.reshape(channels * rank, 1, height, 1))
    second = g.bring(f"{name}.row", row.reshape(channels, rank, 1, -1))
    middle = convolve(g, x, first, None, stride=[conv.stride[0], 1], padding=[conv.padding[0], (0, 0)],
                      dilation=[conv.dilation[0], 1], groups=channels)  # fmt: skip
    return convolve(g, middle, second, bias, stride=[1, conv.stride[1]], padding=[(0, 0), conv.padding[1]],
                    dilation=[1, conv.dilation[1]], groups=channels)  # fmt: skip
