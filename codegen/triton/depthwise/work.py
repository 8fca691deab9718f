"""What a depthwise kernel does under a schedule, and what the operators do that it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from codegen.triton.depthwise.banded import Banded
from codegen.triton.depthwise.copying import Copying
from codegen.triton.depthwise.emitting import Schedule, coordinates
from codegen.triton.depthwise.matrix import depth
from codegen.triton.depthwise.mixer import Branch, Mixer
from codegen.triton.depthwise.rolling import live_rows, strips
from codegen.triton.depthwise.streaming import Streaming
from codegen.triton.depthwise.toeplitz import Toeplitz
from codegen.triton.device import Work, total
from codegen.triton.traffic import instructions, size, times
from rewrite.ops import value

if TYPE_CHECKING:
    from codegen.triton.region import Region

_LINE = 128
_WARP = 32


class RegionWork:
    """What kernels for one region do.

    Args:
        region: around a :class:`Mixer`.
    """

    def __init__(self, region: Region):
        mixer = region.main
        assert isinstance(mixer, Mixer)
        self._region, self._mixer = region, mixer
        self._read, self._made = coordinates(mixer)
        self._moved = Work(bytes=size(region.operands) + size(region.outputs))
        self._before = total(instructions(node) for node in region.prologue)
        self._behind = total(instructions(node) for node in region.epilogue)
        self._stored = size(region.extras) + size(region.outputs)

    def fused(self, schedules: Sequence[Schedule]) -> Work:
        """What one kernel for all of the region does, with a schedule for each branch."""
        branches = zip(self._mixer.branches, schedules, strict=True)
        return total([self._moved, *(self.branch(branch, schedule) for branch, schedule in branches)])

    def branch(self, branch: Branch, schedule: Schedule) -> Work:
        """What the programs of one branch do beside moving bytes through memory."""
        read, made = self._read, {**self._made, "c": branch.channels}
        width = value(self._mixer.input).element_size()
        before, behind = self._before, self._behind
        share = branch.channels / self._region.sizes["c"]
        ending = Work(lines=self._stored * share / _LINE)
        match schedule:
            case Streaming():
                inputs = max(len(self._region.inputs), 1)
                return ending + _streamed(branch, schedule, made, width, before, behind, inputs)
            case Banded():
                return ending + _banded(branch, schedule, made, read, width, before, behind)
            case Toeplitz():
                return ending + _multiplied(branch, schedule, made, read, width, before, behind)
            case Copying():
                elements = math.prod(made.values())
                return ending + Work(lines=elements * width / _LINE) + times(before + behind, elements)


def _streamed(
    branch: Branch, schedule: Streaming, made: Mapping[str, int], width: int, before: Work, behind: Work, inputs: int
) -> Work:
    window, live = branch.window, live_rows(branch)
    cuts = strips(branch, made["h"], schedule.rows)
    blocks = -(-made["w"] // schedule.columns)
    if schedule.last:
        tiles = made["n"] * cuts * blocks * -(-made["c"] // schedule.others)
    else:
        tiles = -(-made["n"] * made["c"] // schedule.others) * cuts * blocks
    held = schedule.columns * schedule.others
    steps = schedule.rows + live - 1
    loads = tiles * steps * window.stride[0] * window.kernel[1]
    adjacent = schedule.others if schedule.last else schedule.columns
    # neighbours of a row that begin anywhere are loaded one by one
    together = width if schedule.last else max(width, 4)
    lines = held / adjacent * max(1.0, adjacent * (together if schedule.last else 4) / _LINE)
    taps = math.prod(window.kernel)
    weights = schedule.warps * max(1.0, schedule.others * width / _LINE) if taps > 9 or not schedule.last else 0.0
    done = tiles * schedule.rows * held
    work = Work(
        lines=loads * lines * inputs + tiles * steps * taps * weights,
        plain=tiles * steps * taps * held + loads * held * 2 / adjacent,
    )
    return work + times(before, loads * held) + times(behind, done)


def _banded(
    branch: Branch, schedule: Banded, made: Mapping[str, int], read: Mapping[str, int], width: int, before: Work,
    behind: Work,
) -> Work:  # fmt: skip
    window = branch.window
    deep = depth(branch, read["w"], schedule.columns, schedule.whole)
    blocks = -(-made["w"] // schedule.columns)
    cuts = strips(branch, made["h"], schedule.rows)
    programs = -(-made["n"] * cuts * blocks // schedule.many) * made["c"]
    steps = schedule.rows + live_rows(branch) - 1
    inputs = programs * schedule.many * deep * steps * window.stride[0]
    dots = programs * steps * window.kernel[0]
    # a tile of 64 rows reads the matrix once
    reads = dots * deep * schedule.columns * width * max(1.0, schedule.many / 64)
    gathered = programs * window.kernel[0] * deep * schedule.columns * (1 / _WARP + width / _LINE)
    work = Work(
        lines=2 * inputs * width / _LINE + reads / _LINE + gathered,
        tensor=2.0 * dots * schedule.many * deep * schedule.columns,
    )
    return work + times(before, inputs) + times(behind, programs * schedule.rows * schedule.many * schedule.columns)


def _multiplied(
    branch: Branch, schedule: Toeplitz, made: Mapping[str, int], read: Mapping[str, int], width: int, before: Work,
    behind: Work,
) -> Work:  # fmt: skip
    window, below = branch.window, schedule.below
    deep = depth(branch, read["w"], schedule.columns, schedule.whole)
    blocks = -(-made["w"] // schedule.columns)
    programs = -(-made["n"] * -(-made["h"] // below) * blocks // schedule.rows) * -(-made["c"] // schedule.channels)
    steps = window.kernel[0] + below - 1
    inputs = programs * steps * schedule.rows * deep * schedule.channels
    matrices = programs * steps * below * deep * schedule.columns * schedule.channels
    # inputs come through the first cache into shared memory and from there to the tensor cores; matrices are gathered
    # element by element, stored and read
    lines = 3 * inputs * width / _LINE + matrices * (1 / _WARP + 2 * width / _LINE)
    made_products = programs * schedule.rows * schedule.columns * schedule.channels * below
    work = Work(lines=lines, tensor=2.0 * programs * steps * below * schedule.rows * deep * schedule.columns
                * schedule.channels)  # fmt: skip
    return work + times(before, inputs) + times(behind, made_products)


def library(mixer: Mixer) -> list[Work]:
    """What libraries' kernels do for a mixer: one for each convolution, and a copy that puts parts together.

    A thread computes one result and loads each of its taps, as in torch's own kernel for CUDA.
    """
    made = value(mixer.node)
    width = made.element_size()
    works = []
    for branch in mixer.branches:
        if branch.weight is None:
            continue
        share = branch.channels / int(made.shape[1])
        results = made.numel() * share
        taps = math.prod(branch.window.kernel)
        read = value(mixer.input).numel() * branch.channels / int(value(mixer.input).shape[1])
        moved = width * (results + read) + size(branch.operands)
        works.append(Work(bytes=moved, lines=2 * taps * results / _WARP, plain=3 * taps * results))
    if len(mixer.branches) > 1:
        works.append(Work(bytes=2 * width * made.numel()))
    return works


def dtype_of(region: Region) -> torch.dtype:
    """Of what is multiplied."""
    return value(region.main.input).dtype
