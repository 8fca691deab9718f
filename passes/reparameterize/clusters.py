"""Which branches become one convolution: what must agree, and what it may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from passes.reparameterize.kernels import union
from rewrite.ops import Convolution, Linear, value
from rewrite.provenance import called
from rewrite.rule import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch.fx import Node

    from passes.reparameterize.forms import Branch
    from passes.reparameterize.kernels import Taps


@dataclass(frozen=True)
class Cluster:
    """Branches over one source, and the convolution or linear layer that they add up to.

    Attributes:
        branches: at least one.
        taps, stride, groups, mode: of the layer.
        macs: its multiply-accumulates for each output position.
    """

    branches: tuple[Branch, ...]
    taps: tuple[Taps, ...]
    stride: tuple[int, ...]
    groups: int
    mode: str
    macs: int

    @property
    def source(self) -> Node:
        """What the branches read."""
        return self.branches[0].source

    @property
    def layer(self) -> Convolution | Linear | None:
        """The first of the convolutions or linear layers among the branches."""
        return next((b.leaf for b in self.branches if isinstance(b.leaf, (Convolution, Linear))), None)

    @property
    def is_same(self) -> bool:
        """Whether the padding is what ``padding='same'`` means, the larger half behind."""
        return (
            self.mode in ("", "zeros")
            and all(step == 1 for step in self.stride)
            and all((part.low, part.high) == (part.extent // 2, part.extent - part.extent // 2) for part in self.taps)
        )

    @property
    def needs_pad(self) -> bool:
        """Whether the convolution needs an operator that pads its input first."""
        if self.mode not in ("", "zeros"):
            return True
        return not self.is_same and any(part.low != part.high for part in self.taps)


def singleton(branch: Branch, outputs: int) -> Cluster:
    """One branch by itself, with ``outputs`` channels."""
    macs = _macs(branch, outputs, branch.groups, branch.taps)
    return Cluster((branch,), branch.taps, branch.stride, branch.groups, branch.mode, macs)


def merge(parts: Sequence[Cluster], outputs: int, max_kernel: int | None) -> Cluster | Refusal:
    """The union of clusters over one source, or why there is none that pays.

    It pays when it costs no more multiply-accumulates than the parts, where an addition that disappears, like an
    identity or a norm, counts as one for each element.
    """
    branches = tuple(branch for part in parts for branch in part.branches)
    source = branches[0].source
    refusal = _mismatch(branches)
    if refusal is not None:
        return refusal
    sizes: list[Any] = list(value(source).shape[2 : len(branches[0].taps) + 2])
    known = [size if isinstance(size, int) else None for size in sizes]
    stride = branches[0].stride
    taps = [union([part.taps[d] for part in parts], stride[d], size) for d, size in enumerate(known)]
    whole = tuple(part for part in taps if part is not None)
    if len(whole) < len(taps):
        return Refusal("the branches give equally many outputs only for some sizes of the input", source,
                       "give them paddings with one value of dilation * (kernel - 1) - 2 * padding")  # fmt: skip
    span = max((part.extent + 1 for part in whole), default=1)
    if max_kernel is not None and span > max_kernel:
        return Refusal(f"the merged kernel would span {span}, more than max_kernel={max_kernel}", _largest(parts),
                       f"reparameterize{{max_kernel={span}}} allows it")  # fmt: skip
    groups = math.gcd(*(part.groups for part in parts))
    macs = _macs(branches[0], outputs, groups, whole)
    before = sum(part.macs for part in parts)
    if macs > before + outputs * (len(parts) - 1):
        ratio = f"{macs / before:.3g}"
        return Refusal(f"merging would cost {ratio} times the multiply-accumulates of the branches", _largest(parts),
                       _cost_remedy(parts))  # fmt: skip
    mode = next((branch.mode for branch in branches if branch.mode), "")
    return Cluster(branches, whole, stride, groups, mode, macs)


def cluster(
    branches: Iterable[Branch], outputs: int, max_kernel: int | None
) -> tuple[list[Cluster], list[Branch], list[tuple[Node, Refusal]]]:
    """Few clusters that hold the branches of each source, each with a layer.

    All branches of a source together where that pays; otherwise largest first, each into the first cluster where it
    pays. Returns the clusters, the identities and pools that found none, and why branches of a source did not come
    together.
    """
    clusters: list[Cluster] = []
    stranded: list[Branch] = []
    refusals: list[tuple[Node, Refusal]] = []
    by_source: dict[Node, list[Cluster]] = {}
    for branch in branches:
        by_source.setdefault(branch.source, []).append(singleton(branch, outputs))
    for source, parts in by_source.items():
        heavy = sorted((part for part in parts if part.layer), key=lambda part: -part.macs)
        light = [part for part in parts if not part.layer]
        whole = merge(parts, outputs, max_kernel) if heavy and len(parts) > 1 else None
        if isinstance(whole, Cluster):
            clusters.append(whole)
            continue
        refusals.extend([(source, whole)] if whole is not None else [])
        bins: list[Cluster] = []
        for part in (*heavy, *light):
            if not _fill(bins, part, outputs, max_kernel):
                if part.layer:
                    bins.append(part)
                else:
                    stranded.extend(part.branches)
        clusters.extend(bins)
    return clusters, stranded, refusals


def _fill(bins: list[Cluster], part: Cluster, outputs: int, max_kernel: int | None) -> bool:
    for i, held in enumerate(bins):
        merged = merge([held, part], outputs, max_kernel)
        if isinstance(merged, Cluster):
            bins[i] = merged
            return True
    return False


def _macs(branch: Branch, outputs: int, groups: int, taps: Sequence[Taps]) -> int:
    channels = branch.groups * branch.width
    return outputs * (channels // groups) * math.prod(part.count for part in taps)


def _largest(parts: Sequence[Cluster]) -> Node:
    span = max(parts, key=lambda part: math.prod(tap.extent + 1 for tap in part.taps))
    return span.layer.node if span.layer is not None else span.source


def _cost_remedy(parts: Sequence[Cluster]) -> str:
    groups = sorted({part.groups for part in parts if part.layer})
    if len(groups) > 1:
        return f"build all of them with groups={groups[-1]}"
    return "give them kernels of more similar size and dilation"


def _mismatch(branches: Sequence[Branch]) -> Refusal | None:
    first = branches[0]
    other = next((branch for branch in branches if branch.stride != first.stride), None)
    if other is not None:
        return Refusal(f"the branches have different strides, {first.stride} and {other.stride}", _node(other),
                       f"give {called(_node(other))} the stride {first.stride}")  # fmt: skip
    modes = {branch.mode: branch for branch in branches if branch.mode}
    if len(modes) > 1:
        a, b = sorted(modes)[:2]
        return Refusal(f"the branches extend the input differently, with {a} and {b}", _node(modes[b]),
                       f"give all of them padding_mode='{'zeros' if 'zeros' in modes else a}'")  # fmt: skip
    return None


def _node(branch: Branch) -> Node:
    return branch.leaf.node if branch.leaf is not None else branch.source
