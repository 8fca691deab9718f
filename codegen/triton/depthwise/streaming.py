"""Depthwise convolution row by row with plain products.

A row is loaded once for every column of the kernel. So a result takes as many loads as the kernel has columns, where
one that gathers its taps takes as many as there are taps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codegen.triton.axes import symbol, text
from codegen.triton.depthwise.rolling import Rolling
from codegen.triton.tile import Spread, Tile, block, closed, part, rest

if TYPE_CHECKING:
    from codegen.triton.writer import Writer

HELD, HELD_LAST = 25, 9
"""Taps of a kernel that stays in registers; fewer where a thread has several channels, and so the kernel of each."""

UNROLLED = 9
"""Columns of a kernel up to which the loop over them is unrolled: more of them load more ahead than registers hold."""


@dataclass(frozen=True)
class Streaming:
    """How a branch is cut into programs.

    Attributes:
        columns: of the result that a program holds.
        others: channels of one sample where they are next to one another in memory, else planes of any samples.
        rows: of the result that a program makes, one after the other.
        last: whether the channels are next to one another.
        warps: of a program.
        stages: of pipelined loops, of which there are none.
    """

    columns: int
    others: int
    rows: int
    last: bool
    warps: int = 4
    stages: int = 1

    def __str__(self) -> str:
        return f"rows {self.rows}x{self.columns} of {self.others} {'channels' if self.last else 'planes'}"


@dataclass
class StreamingCode(Rolling):
    """The code of one branch.

    Attributes:
        schedule: how it is cut.
    """

    schedule: Streaming

    @property
    def strip_rows(self) -> int:
        """The rows of the result that a strip has."""
        return self.schedule.rows

    def blocks(self) -> int:
        """The programs along the columns."""
        return -(-self.code.sizes["w"] // self.schedule.columns)

    def programs(self) -> str:
        """How many there are for ``N`` samples, as text."""
        channels, each = self.code.branch.channels, self.slots()
        if self.schedule.last:
            return f"N * {each * -(-channels // self.schedule.others)}"
        return f"(N * {channels} + {self.schedule.others - 1}) // {self.schedule.others} * {each}"

    def slots(self) -> int:
        """The partial sums of each channel."""
        return self.strips * self.blocks()

    def tile(self, write: Writer) -> Tile:
        """Columns and channels of one sample, or planes and columns."""
        code, schedule = self.code, self.schedule
        channels = code.constant("CHANNELS", code.branch.channels)
        wide, many = code.constant("COLUMNS", schedule.columns), code.constant("OTHERS", schedule.others)
        blocks, strips = self.blocks(), self.strips
        if schedule.last:
            count = -(-code.branch.channels // schedule.others)
            write(f"c = {block(part('program', count), many)}")
            if count > 1:
                write(f"program = program // {count}")
        write(f"w = {block(part('program', blocks), wide)}")
        if strips > 1:
            write(f"strip = {part(rest('program', blocks), strips)}")
        column = Spread("w", (0,) if schedule.last else (1,))
        inside = {"w": Spread(f"w < {code.size('w')}", column.axes)}
        write(f"first = {self.first_row()}")
        if schedule.last:
            write(f"n = {closed(rest('program', blocks * strips))}.to(tl.int64)")
            inside["c"] = Spread(f"c < {channels}", (1,))
            at = {"n": Spread("n"), "c": Spread("c", (1,)), "w": column, "h": Spread("h")}
            return Tile((wide, many), at, inside)
        write(f"plane = {block(rest('program', blocks * strips), many)}")
        write(f"n = (plane // {channels}).to(tl.int64)")
        write(f"c = plane % {channels}")
        inside["n"] = Spread("n < N", (0,))
        at = {"n": Spread("n", (0,)), "c": Spread("c", (0,)), "w": column, "h": Spread("h")}
        return Tile((many, wide), at, inside)

    def held(self, write: Writer, tile: Tile) -> Mapping[tuple[int, int], str]:
        """Taps that stay in registers, by row and column: all of a small kernel."""
        window = self.code.branch.window
        if math.prod(window.kernel) > (HELD_LAST if self.schedule.last else HELD):
            return {}
        found = {}
        for kh, kw in itertools.product(*map(range, window.kernel)):
            loaded = self.code.weight(tile, str(kh), str(kw))
            write(f"weight{kh}_{kw} = {loaded.over(tile.axes)}")
            found[kh, kw] = f"weight{kh}_{kw}"
        return found

    def add(self, write: Writer, tile: Tile, rows: Mapping[int, int], held: Mapping[tuple[int, int], str]) -> None:
        """Add a row of the input, moved by each column of the kernel."""
        code, window = self.code, self.code.branch.window
        place = symbol("w") * window.stride[1] - window.low[1]
        at = {"h": Spread("row"), "w": Spread("column", tile.at["w"].axes)}
        if held:
            for each in range(window.kernel[1]):
                write(f"column = {text(place + each * window.dilation[1])}")
                loaded = code.load(write, tile, at)
                for i, kh in rows.items():
                    write(f"sum{i} += {loaded} * {held[kh, each]}")
            return
        loop = "tl.static_range" if window.kernel[1] <= UNROLLED else "range"
        with write.block(f"for kw in {loop}({window.kernel[1]}):"):
            write(f"column = {text(place + symbol('kw') * window.dilation[1])}")
            loaded = code.load(write, tile, at)
            for i, kh in rows.items():
                write(f"sum{i} += {loaded} * {code.weight(tile, str(kh), 'kw').over(tile.axes)}")

    def store_totals(self, write: Writer, tile: Tile) -> None:
        """Store each program's sums in a place of their own, so that the order of additions is always the same."""
        axis = tile.at["w"].axes[0]
        for name, _, _ in self.code.ending.totals():
            slot = part("program", self.slots())
            channels = self.code.constant("C", self.code.sizes["c"])
            place = f"{name} + (n * {self.slots()} + {slot}) * {channels} + {tile.at['c'].text}"
            mask = " & ".join(each.text.join("()") for at, each in tile.inside.items() if at in "nc")
            write(f"tl.store({place}, tl.sum({name}_sum, axis={axis}), mask={mask})")
