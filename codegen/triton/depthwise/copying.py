"""Channels that pass a mixer unchanged: read, taken through prologue and epilogue, and stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codegen.triton.tile import Spread, Tile, block, closed, part, rest

if TYPE_CHECKING:
    from codegen.triton.depthwise.branch import BranchCode
    from codegen.triton.writer import Writer


@dataclass(frozen=True)
class Copying:
    """How a branch is cut into programs.

    Attributes:
        pixels: of a program.
        others: channels of one sample where they are next to one another in memory, else planes of any samples.
        last: whether the channels are next to one another.
    """

    pixels: int
    others: int
    last: bool
    warps: int = 4
    stages: int = 1

    def __str__(self) -> str:
        return f"copy {self.pixels}x{self.others}"


@dataclass
class CopyingCode:
    """The code of one branch.

    Attributes:
        code: of the branch, whatever the schedule.
        schedule: how it is cut.
    """

    code: BranchCode
    schedule: Copying

    def blocks(self) -> int:
        """The programs over the pixels of an image."""
        return -(-self.code.sizes["h"] * self.code.sizes["w"] // self.schedule.pixels)

    def programs(self) -> str:
        """How many there are for ``N`` samples, as text."""
        channels = self.code.branch.channels
        if self.schedule.last:
            return f"N * {self.blocks() * -(-channels // self.schedule.others)}"
        return f"(N * {channels} + {self.schedule.others - 1}) // {self.schedule.others} * {self.blocks()}"

    def write(self, write: Writer) -> None:
        """The statements of a program whose number among those of the branch is ``program``."""
        tile = self._tile(write)
        fixed = self.code.ending.fixed(write, tile)
        at = {"h": tile.at["h"], "w": tile.at["w"]}
        tap = self.code.load(write, tile, at)
        write(f"v0 = {tap}")
        self.code.ending.write(write, tile, "v0", fixed)

    def _tile(self, write: Writer) -> Tile:
        code, schedule = self.code, self.schedule
        channels, width = code.constant("CHANNELS", code.branch.channels), code.size("w")
        pixels, others = code.constant("PIXELS", schedule.pixels), code.constant("OTHERS", schedule.others)
        if schedule.last:
            count = -(-code.branch.channels // schedule.others)
            write(f"c = {block(part('program', count), others)}")
            if count > 1:
                write(f"program = program // {count}")
        write(f"pixel = {block(part('program', self.blocks()), pixels)}")
        write(f"h = pixel // {width}")
        write(f"w = pixel % {width}")
        if schedule.last:
            write(f"n = {closed(rest('program', self.blocks()))}.to(tl.int64)")
            at = {"n": Spread("n"), "c": Spread("c", (1,)), "h": Spread("h", (0,)), "w": Spread("w", (0,))}
            inside = {"c": Spread(f"c < {channels}", (1,)), "h": Spread(f"h < {code.size('h')}", (0,))}
            return code.targeted(write, Tile((pixels, others), at, inside))
        write(f"plane = {block(rest('program', self.blocks()), others)}")
        write(f"n = (plane // {channels}).to(tl.int64)")
        write(f"c = plane % {channels}")
        at = {"n": Spread("n", (0,)), "c": Spread("c", (0,)), "h": Spread("h", (1,)), "w": Spread("w", (1,))}
        inside = {"n": Spread("n < N", (0,)), "h": Spread(f"h < {code.size('h')}", (1,))}
        return code.targeted(write, Tile((others, pixels), at, inside))
