"""The schedules that a depthwise kernel may have: few, and those that fit a processor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from codegen.triton.depthwise.banded import Banded
from codegen.triton.depthwise.copying import Copying
from codegen.triton.depthwise.emitting import Schedule, coordinates
from codegen.triton.depthwise.matrix import LEAST, depth, power
from codegen.triton.depthwise.mixer import Branch, Mixer
from codegen.triton.depthwise.rolling import live_rows, refuses
from codegen.triton.depthwise.streaming import Streaming
from codegen.triton.depthwise.toeplitz import Toeplitz
from rewrite.ops import value

if TYPE_CHECKING:
    from codegen.triton.region import Region

REGISTERS = 200
"""Registers of a thread that a schedule may need, by estimate: compilers add some for addresses."""

_SHARED = 160 * 1024
"""Bytes of matrices that a program may keep in shared memory."""

_FEWEST = 7
"""Kernels of fewer taps are left to plain products."""


def channels_last(region: Region) -> bool:
    """Whether the channels of the input are next to one another in memory."""
    source = value(region.inputs[0])
    return source.stride()[1] == 1 and source.shape[1] > 1


def schedules(region: Region, warps: int) -> list[list[Schedule]]:
    """For each branch the schedules with so many warps; an empty list where there is none."""
    mixer = region.main
    assert isinstance(mixer, Mixer)
    return [list(_of_branch(region, branch, warps)) for branch in mixer.branches]


def _of_branch(region: Region, branch: Branch, warps: int) -> Iterator[Schedule]:
    last = channels_last(region)
    if branch.weight is None:
        yield from _copies(region, branch, warps, last)
        return
    yield from _streams(region, branch, warps, last)
    window = branch.window
    multiplied = math.prod(window.kernel) >= _FEWEST and window.kernel[1] > 1
    if multiplied and not region.norms and not region.totals:
        yield from _products(region, branch, warps, last)
        if not last and not refuses(branch):
            yield from _bands(region, branch, warps)


def _copies(region: Region, branch: Branch, warps: int, last: bool) -> Iterator[Copying]:
    if region.norms or region.totals:
        return
    pixels = power(region.sizes["h"] * region.sizes["w"])
    held = 256 * warps
    others = min(power(branch.channels), 64) if last else max(1, min(64, held // pixels))
    yield Copying(max(1, min(pixels, held // others)), others, last, warps)


def _streams(region: Region, branch: Branch, warps: int, last: bool) -> Iterator[Streaming]:
    if refuses(branch):
        return
    channels, height, width = branch.channels, region.sizes["h"], region.sizes["w"]
    widths = [columns for columns in (2, 4, 8, 16, 32, 64, 128, 256) if columns < 2 * max(power(width), 2)]
    if region.norms:
        others = [power(channels)] if last else []
    elif last:
        others = [many for many in (16, 32, 64, 128) if many <= max(power(channels), 16)]
    else:
        others = [1, 2, 4, 8, 16, 32]
    live = live_rows(branch)
    for many in others:
        for columns in widths:
            held = many * columns / (32 * warps)
            if (
                held > 32
                or (held < 1 and columns < width and many < channels)
                or _registers(held, live, branch, last) > REGISTERS
            ):
                continue
            for rows in _strips(height, live):
                yield Streaming(columns, many, rows, last, warps)


def _registers(held: float, live: int, branch: Branch, last: bool) -> float:
    """An estimate: sums, a row of taps, and the kernel's values on their way."""
    return 32 + held * (live + 3) + 8 * min(branch.window.kernel[1], 7) * (1 if last else 0.5)


def _strips(height: int, live: int) -> list[int]:
    """How many rows a program makes: all of a small image, else so many that few sums are begun in vain."""
    whole = [rows for rows in (height, -(-height // 2), -(-height // 4)) if rows <= 64]
    found = sorted({rows for rows in (*whole, 16, 32) if rows <= height} | {min(height, 64)})
    useful = [rows for rows in found if rows >= min(height, 2 * live)]
    return useful or [height]


def _windows(region: Region, branch: Branch) -> Iterator[tuple[int, bool, int]]:
    """How the result's rows may be cut: columns, whether one window holds whole rows, and the columns that it has."""
    mixer = region.main
    assert isinstance(mixer, Mixer)
    read, made = coordinates(mixer)
    for columns in (16, 32, 64, 128):
        if columns >= 2 * max(power(made["w"]), LEAST):
            continue
        if columns >= made["w"] and power(read["w"]) <= 128:
            yield columns, True, depth(branch, read["w"], columns, True)
        deep = depth(branch, read["w"], columns, False)
        if deep <= 256:
            yield columns, False, deep


def _products(region: Region, branch: Branch, warps: int, last: bool) -> Iterator[Toeplitz]:
    window = branch.window
    simple = window.stride[0] == window.dilation[0] == 1 and window.kernel[0] > 1
    for columns, whole, deep in _windows(region, branch):
        blocks = -(-region.sizes["w"] // columns)
        for below in (1, 2, 4) if simple and not last and region.sizes["h"] >= 4 else (1,):
            needed = region.sizes["n"] * -(-region.sizes["h"] // below) * blocks
            for rows, channels in itertools.product((16, 32, 64, 128, 256), (8, 16) if last else (1,)):
                threads = 32 * warps
                sums, taken = rows * columns * channels * below / threads, rows * deep * channels / threads
                matrix = deep * columns * channels / threads
                fits = 4 <= sums <= 64 and taken <= 64 and matrix <= 64 and sums + (taken + matrix) / 2 <= 112
                if fits and rows < 2 * max(power(needed), LEAST):
                    yield Toeplitz(rows, columns, channels, whole, below, warps, 2)


def _bands(region: Region, branch: Branch, warps: int) -> Iterator[Banded]:
    """Sums of all rows of the kernel stay in registers, and its matrices in shared memory."""
    live, height = live_rows(branch), region.sizes["h"]
    size = value(region.main.input).element_size()
    for columns, whole, deep in _windows(region, branch):
        blocks = -(-region.sizes["w"] // columns)
        if branch.window.kernel[0] * deep * columns * size > _SHARED:
            continue
        for many, rows in itertools.product((16, 32, 64, 128), _strips(height, live)):
            threads = 32 * warps
            needed = region.sizes["n"] * blocks * -(-height // rows)
            sums, taken = many * columns * live / threads, many * deep / threads
            if 4 * live <= sums and sums + taken <= 128 and many < 2 * max(power(needed), LEAST):
                yield Banded(many, columns, rows, whole, warps)
