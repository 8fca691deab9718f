"""Depthwise convolution on tensor cores: rows of images times the Toeplitz matrices of the kernel's rows.

The rows of all samples of one channel are the rows of one matrix, so a batch of one fills tensor cores as well as a
large one. A program makes several rows of the result below one another, for which it loads each row of the input once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from codegen.triton.axes import symbol, text
from codegen.triton.depthwise.matrix import Matrix
from codegen.triton.tile import Spread, Tile, block, part, rest

if TYPE_CHECKING:
    from codegen.triton.depthwise.branch import BranchCode
    from codegen.triton.writer import Writer


@dataclass(frozen=True)
class Toeplitz:
    """How a branch is cut into programs.

    Attributes:
        rows: of the matrix of inputs, from any samples.
        columns: of the result.
        channels: of a program; more than one where they are next to one another in memory.
        whole: whether one window holds whole rows of the input.
        below: rows of the result below one another that share what is loaded; one where results are strided or taps
            dilated along the columns.
        warps: of a program.
        stages: how many rows of the kernel are loaded ahead.
    """

    rows: int
    columns: int
    channels: int
    whole: bool
    below: int = 1
    warps: int = 4
    stages: int = 2

    def __str__(self) -> str:
        many = f" of {self.channels} channels" if self.channels > 1 else ""
        return f"Toeplitz {self.rows}x{self.columns}{many}" + (f", {self.below} rows at once" if self.below > 1 else "")


@dataclass
class ToeplitzCode:
    """The code of one branch.

    Attributes:
        code: of the branch, whatever the schedule.
        schedule: how it is cut.
    """

    code: BranchCode
    schedule: Toeplitz

    @property
    def matrix(self) -> Matrix:
        """The matrices of the kernel's rows."""
        return Matrix(self.code, self.schedule.columns, self.schedule.whole, self.schedule.channels > 1)

    def blocks(self) -> int:
        """The windows of a row."""
        return -(-self.code.sizes["w"] // self.schedule.columns)

    def groups(self) -> int:
        """The groups of rows that are made at once."""
        return -(-self.code.sizes["h"] // self.schedule.below)

    def programs(self) -> str:
        """How many there are for ``N`` samples, as text."""
        rows, channels = self.groups() * self.blocks(), self.code.branch.channels
        each = self.schedule.rows
        return f"(N * {rows} + {each - 1}) // {each} * {-(-channels // self.schedule.channels)}"

    def write(self, write: Writer) -> None:
        """The statements of a program whose number among those of the branch is ``program``."""
        code, window, below = self.code, self.code.branch.window, self.schedule.below
        tile = code.targeted(write, self._tile(write))
        fixed = code.ending.fixed(write, tile)
        offset = code.bias(write, tile)
        matrix = self.matrix
        matrix.begin(write)
        column = matrix.window(write, self.blocks(), len(tile.shape) - 2)
        for i in range(below):
            write(f"sum{i} = tl.zeros(({', '.join(tile.shape)}), tl.float32)")
        first, step = symbol("first"), symbol("step")
        with write.block(f"for step in range({window.kernel[0] + below - 1}):"):
            write(f"row = {text(first * window.stride[0] + step * window.dilation[0] - window.low[0])}")
            loaded_at = Tile((*tile.shape[:-1], matrix.depth), tile.at, tile.inside)
            at = {"h": Spread("row", tile.at["h"].axes), "w": column}
            tap = code.load(write, loaded_at, at, wide=False)
            for i in range(below):
                kh = "step" if not i else f"(step - {i})"
                inside = "" if below == 1 else f"({kh} >= 0) & ({kh} < {window.kernel[0]})"
                write(f"matrix = {matrix.load(kh, inside)}")
                write(f"sum{i} = {matrix.product(tap, 'matrix', f'sum{i}')}")
        for i in range(below):
            write(f"h = {text(first + i)}")
            write(f"v0 = sum{i}" if offset is None else f"v0 = sum{i} + {offset.over(tile.axes)}")
            code.ending.write(write, tile, "v0", fixed)

    def _tile(self, write: Writer) -> Tile:
        code, schedule = self.code, self.schedule
        channels = code.constant("CHANNELS", code.branch.channels)
        rows, columns = code.constant("ROWS", schedule.rows), code.constant("COLUMNS", schedule.columns)
        blocks, groups, count = self.blocks(), self.groups(), -(-code.branch.channels // schedule.channels)
        batched = schedule.channels > 1
        if batched:
            many = code.constant("OTHERS", schedule.channels)
            write(f"c = {block(part('program', count), many)}")
        else:
            write(f"c = {part('program', count)}")
        write(f"m = {block(rest('program', count), rows)}")
        group = rest("m", blocks)
        write(f"first = {group} % {groups}" + (f" * {schedule.below}" if schedule.below > 1 else ""))
        write("h = first")
        write(f"n = ({group} // {groups}).to(tl.int64)")
        write(f"j = tl.arange(0, {columns})")
        axis = 1 if batched else 0
        m, j = (axis,), (axis + 1,)
        w = Spread("j", j)
        if blocks > 1:
            write(f"block = m % {blocks}")
            write(f"w = block[:, None] * {columns} + j[None, :]")
            w = Spread("w", (*m, *j))
        at = {"n": Spread("n", m), "c": Spread("c", (0,) if batched else ()), "h": Spread("h", m), "w": w}
        inside = {"n": Spread("n < N", m), "w": Spread(f"{w.text} < {code.size('w')}", w.axes)}
        if groups * schedule.below > code.sizes["h"]:
            inside["h"] = Spread(f"h < {code.size('h')}", m)
        if batched:
            inside["c"] = Spread(f"c < {channels}", (0,))
        shape = (rows, columns)
        return Tile((many, *shape) if batched else shape, at, inside)
