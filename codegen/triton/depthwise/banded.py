"""Depthwise convolution on tensor cores row by row: a row of the input is loaded once, and multiplied by all matrices.

The matrices of the kernel's rows stay in shared memory while rows go by. A program has one channel of many samples, and
several strips of each: their rows at the same height are the rows of one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codegen.triton.depthwise.matrix import Matrix
from codegen.triton.depthwise.rolling import Rolling
from codegen.triton.tile import Spread, Tile, block, closed, part, rest

if TYPE_CHECKING:
    from codegen.triton.writer import Writer


@dataclass(frozen=True)
class Banded:
    """How a branch is cut into programs.

    Attributes:
        many: strips, of any samples, that a program has.
        columns: of the result.
        rows: of the result in a strip.
        whole: whether one window holds whole rows of the input.
        warps: of a program.
        stages: how many rows are loaded ahead.
    """

    many: int
    columns: int
    rows: int
    whole: bool
    warps: int = 4
    stages: int = 1

    def __str__(self) -> str:
        return f"Toeplitz row by row {self.many}x{self.columns}, strips of {self.rows} rows"


@dataclass
class BandedCode(Rolling):
    """The code of one branch.

    Attributes:
        schedule: how it is cut.
    """

    schedule: Banded

    @property
    def strip_rows(self) -> int:
        """The rows of the result that a strip has."""
        return self.schedule.rows

    @property
    def matrix(self) -> Matrix:
        """The matrices of the kernel's rows."""
        return Matrix(self.code, self.schedule.columns, self.schedule.whole)

    def blocks(self) -> int:
        """The windows of a row."""
        return -(-self.code.sizes["w"] // self.schedule.columns)

    def programs(self) -> str:
        """How many there are for ``N`` samples, as text."""
        each, many = self.strips * self.blocks(), self.schedule.many
        return f"(N * {each} + {many - 1}) // {many} * {self.code.branch.channels}"

    def tile(self, write: Writer) -> Tile:
        """Strips of one channel, and columns."""
        code, blocks, strips = self.code, self.blocks(), self.strips
        many, columns = code.constant("OTHERS", self.schedule.many), code.constant("COLUMNS", self.schedule.columns)
        write(f"c = {part('program', code.branch.channels)}")
        write(f"m = {block(rest('program', code.branch.channels), many)}")
        write(f"strip = {part(rest('m', blocks), strips)}")
        write(f"first = {self.first_row()}")
        write(f"n = {closed(rest('m', blocks * strips))}.to(tl.int64)")
        write(f"j = tl.arange(0, {columns})")
        w = Spread("j", (1,))
        if blocks > 1:
            write(f"block = m % {blocks}")
            write(f"w = block[:, None] * {columns} + j[None, :]")
            w = Spread("w", (0, 1))
        spread = (0,) if strips > 1 else ()
        at = {"n": Spread("n", (0,)), "c": Spread("c"), "h": Spread("h", spread), "w": w}
        inside = {"n": Spread("n < N", (0,)), "w": Spread(f"{w.text} < {code.size('w')}", w.axes)}
        if strips > 1:
            inside["h"] = Spread(f"h < {code.size('h')}", spread)
        return Tile((many, columns), at, inside)

    def held(self, write: Writer, tile: Tile) -> Mapping[tuple[int, int], str]:
        """The matrices of all rows of the kernel."""
        matrix = self.matrix
        matrix.begin(write)
        self._window = matrix.window(write, self.blocks(), 0)
        found = {}
        for kh in range(self.code.branch.window.kernel[0]):
            write(f"matrix{kh} = {matrix.load(str(kh))}")
            found[kh, 0] = f"matrix{kh}"
        return found

    def store_totals(self, write: Writer, tile: Tile) -> None:
        """There are none: rows of several samples lie in one tile."""
        raise NotImplementedError("sums over pixels are made by plain products")

    def add(self, write: Writer, tile: Tile, rows: Mapping[int, int], held: Mapping[tuple[int, int], str]) -> None:
        """Add the products of a row of the input and the matrices."""
        place = Tile((tile.shape[0], self.matrix.depth), tile.at, tile.inside)
        at = {"h": Spread("row", tile.at["h"].axes), "w": self._window}
        tap = self.code.load(write, place, at, wide=False)
        for i, kh in rows.items():
            write(f"sum{i} = {self.matrix.product(tap, held[kh, 0], f'sum{i}')}")
