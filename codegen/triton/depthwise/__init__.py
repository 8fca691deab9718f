"""The depthwise family: convolutions of single channels, of one and two dimensions, alone and in mixers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from codegen.triton.depthwise.emitting import Schedule, coordinates, emitted
from codegen.triton.depthwise.mixer import Branch, Mixer, mixers, why_not
from codegen.triton.depthwise.schedules import schedules
from codegen.triton.depthwise.work import RegionWork, dtype_of, library
from codegen.triton.emission import image_axes
from codegen.triton.family import Candidate
from codegen.triton.region import STORED, regions
from rewrite.ops import Convolution, value, view_as

if TYPE_CHECKING:
    import torch
    from torch.fx import Graph, Node

    from codegen.triton.device import Device, Work
    from codegen.triton.region import Main, Region

_WARPS = (4, 8)
_KEPT = 12
"""Candidates of one region."""


class Depthwise:
    """Depthwise convolutions by plain products and on tensor cores."""

    name = "depthwise"

    def mains(self, graph: Graph) -> Iterator[Mixer]:
        """The mixers of a graph."""
        return (mixer for mixer in mixers(graph) if not _unfit(mixer))

    def why_not(self, node: Node) -> str:
        """Why a grouped convolution is no mixer."""
        conv = view_as(node, Convolution)
        if conv is None or conv.groups == 1:
            return ""
        if value(node).dtype not in STORED:
            return f"it is {value(node).dtype}"
        return why_not(conv)

    def regions(self, main: Main) -> Iterator[Region]:
        """Those of one mixer; sums over pixels where it has one branch."""
        assert isinstance(main, Mixer)
        _, made = coordinates(main)
        return regions(main, image_axes(main.node), made, sums=len(main.branches) == 1)

    def candidates(self, region: Region, device: Device, elementwise: bool = False) -> Sequence[Candidate]:
        """Each branch with the schedule that is fastest for it, for each number of warps, and with others in turn."""
        found: dict[tuple[Schedule, ...], Work] = {}
        mixer, kind, work = region.main, dtype_of(region), RegionWork(region)
        assert isinstance(mixer, Mixer)
        for warps in _WARPS:
            choices = schedules(region, warps, device, elementwise)
            pairs = zip(mixer.branches, choices, strict=True)
            ranked = [self._ranked(work, branch, each, device, kind) for branch, each in pairs]
            if not all(ranked):
                continue
            for rank in range(_KEPT):
                chosen = tuple(each[min(rank, len(each) - 1)] for each in ranked)
                found.setdefault(chosen, work.fused(chosen))
        best = sorted(found, key=lambda each: device.order(found[each], kind))[:_KEPT]
        return [
            Candidate(found[each], tuple(map(str, each)), functools.partial(emitted, region, each)) for each in best
        ]

    def library(self, main: Main) -> Sequence[Work]:
        """Torch's kernels, one for each convolution."""
        assert isinstance(main, Mixer)
        return library(main)

    @staticmethod
    def _ranked(
        work: RegionWork, branch: Branch, choices: Sequence[Schedule], device: Device, kind: torch.dtype
    ) -> list[Schedule]:
        return sorted(choices, key=lambda each: device.order(work.branch(branch, each), kind))[:_KEPT]


def _unfit(mixer: Mixer) -> bool:
    """Whether a kernel cannot read or write it: of other dtypes, or empty."""
    nodes = (mixer.node, mixer.input, *mixer.roles.values())
    kinds = {value(node).dtype for node in nodes}
    fixed = all(isinstance(size, int) for node in nodes for size in value(node).shape)
    full = fixed and all(value(node).numel() > 0 for node in nodes)
    return not (full and kinds <= set(STORED) and value(mixer.node).dtype == value(mixer.input).dtype)
