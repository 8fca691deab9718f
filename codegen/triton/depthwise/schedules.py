"""The schedules that a depthwise kernel may have: few, and those that fit a processor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from codegen.triton.depthwise.banded import Banded
from codegen.triton.depthwise.copying import Copying
from codegen.triton.depthwise.emitting import Schedule, coordinates
from codegen.triton.depthwise.matrix import LEAST, depth, power
from codegen.triton.depthwise.mixer import Branch, Mixer
from codegen.triton.depthwise.rolling import live_rows, refuses
from codegen.triton.depthwise.streaming import HELD, HELD_LAST, Streaming
from codegen.triton.depthwise.toeplitz import Toeplitz
from codegen.triton.device import REFERENCE, Device
from rewrite.ops import value

if TYPE_CHECKING:
    from codegen.triton.region import Region

_SHARE = 0.7
"""The part of a program's shared memory that what is known here may take: compilers need some to rearrange values."""

_FEWEST = 7
"""Kernels of fewer taps are left to plain products."""


def channels_last(region: Region) -> bool:
    """Whether the channels of the input are next to one another in memory."""
    source = value(region.inputs[0])
    return source.stride()[1] == 1 and source.shape[1] > 1


def schedules(
    region: Region, warps: int, device: Device = REFERENCE, elementwise: bool = False
) -> list[list[Schedule]]:
    """For each branch the schedules that a region may have; an empty list where there is none.

    Args:
        region: around a :class:`Mixer`.
        warps: of a program.
        device: whose memory they have to fit in.
        elementwise: no products with the zeros of a matrix, by which NaN and infinities reach other results.
    """
    mixer = region.main
    assert isinstance(mixer, Mixer)
    return [list(_of_branch(region, branch, warps, device, elementwise)) for branch in mixer.branches]


def _of_branch(region: Region, branch: Branch, warps: int, device: Device, elementwise: bool) -> Iterator[Schedule]:
    last = channels_last(region)
    if branch.weight is None:
        yield from _copies(region, branch, warps, last)
        return
    yield from _streams(region, branch, warps, last, device)
    window = branch.window
    multiplied = window.kernel[1] > 1 and (math.prod(window.kernel) >= _FEWEST or bool(refuses(branch)))
    exact = device.triple or value(region.main.input).dtype != torch.float32
    if multiplied and exact and not (elementwise or region.norms or region.totals):
        yield from _products(region, branch, warps, last, device)
        if not last and not refuses(branch):
            yield from _bands(region, branch, warps, device)


def _copies(region: Region, branch: Branch, warps: int, last: bool) -> Iterator[Copying]:
    if region.norms or region.totals:
        return
    pixels = power(region.sizes["h"] * region.sizes["w"])
    held = 256 * warps
    others = min(power(branch.channels), 64) if last else max(1, min(64, held // pixels))
    yield Copying(max(1, min(pixels, held // others)), others, last, warps)


def _streams(region: Region, branch: Branch, warps: int, last: bool, device: Device) -> Iterator[Streaming]:
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
            idle = held < 1 and columns < width and many < channels
            if idle or held > 32 or _registers(region, branch, held, last) > device.registers:
                continue
            for rows in _strips(height, live):
                yield Streaming(columns, many, rows, last, warps)


def _registers(region: Region, branch: Branch, held: float, last: bool) -> float:
    """An estimate, fitted to what compilers took: sums, taps of the kernel, what is loaded, norms, and addresses.

    A thread has up to eight channels where these are next to one another, and the taps of each.
    """
    live, taps = live_rows(branch), math.prod(branch.window.kernel)
    kept = taps if taps <= (HELD_LAST if last else HELD) else live
    epilogue = held * (3 * bool(region.norms) + bool(region.totals))
    return 1.2 * (40 + held * (live + 2) + kept * (min(held, 8) if last else 1) + epilogue)


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


def _products(region: Region, branch: Branch, warps: int, last: bool, device: Device) -> Iterator[Toeplitz]:
    window, size = branch.window, value(region.main.input).element_size()
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
                fits = fits and 2 * threads * (taken + matrix) * size <= _SHARE * device.shared
                if fits and rows < 2 * max(power(needed), LEAST):
                    yield Toeplitz(rows, columns, channels, whole, below, warps, 2)


def _bands(region: Region, branch: Branch, warps: int, device: Device) -> Iterator[Banded]:
    """Sums of all rows of the kernel stay in registers, and its matrices in shared memory.

    Matrices stay in registers too where a tile has fewer rows than the largest instructions take, or there are none.
    """
    live, height = live_rows(branch), region.sizes["h"]
    large = device.architecture in ("sm_90", "sm_100")
    size = value(region.main.input).element_size()
    for columns, whole, deep in _windows(region, branch):
        blocks = -(-region.sizes["w"] // columns)
        if branch.window.kernel[0] * deep * columns * size > _SHARE * device.shared:
            continue
        for many, rows in itertools.product((16, 32, 64, 128), _strips(height, live)):
            threads = 32 * warps
            needed = region.sizes["n"] * blocks * -(-height // rows)
            sums, taken = many * columns * live / threads, many * deep / threads
            if not (large and many >= 64):
                abreast = max(1, warps // min(warps, many // LEAST))  # warps that share the columns
                taken += branch.window.kernel[0] * deep * columns * size / 4 / 32 / abreast
            if 4 * live <= sums and sums + taken <= 100 and many < 2 * max(power(needed), LEAST):
                yield Banded(many, columns, rows, whole, warps)
