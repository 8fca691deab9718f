"""Depthwise convolution row by row: sums of several rows of the result that go round.

Each row of the input is loaded once and adds to all rows of the result that it belongs to. With every step one of these
is done, and a new one begins. An image is cut in strips of rows, each begun by a program of its own; rows apart by the
dilation are a convolution of their own. Sums are float32.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codegen.triton.axes import symbol, text
from codegen.triton.tile import Spread, Tile

if TYPE_CHECKING:
    import sympy
    from torch.fx import Node

    from codegen.triton.depthwise.branch import BranchCode
    from codegen.triton.depthwise.mixer import Branch
    from codegen.triton.writer import Writer


def refuses(branch: Branch) -> str:
    """Why a branch cannot be computed row by row; '' where it can."""
    window = branch.window
    if window.stride[0] > 1 and window.dilation[0] > 1:
        return "rows are both strided and dilated"
    return ""


def live_rows(branch: Branch) -> int:
    """The rows of the result whose sums are not done at a time."""
    return -(-branch.window.kernel[0] // branch.window.stride[0])


def strips(branch: Branch, height: int, rows: int) -> int:
    """The strips of so many rows that an image is cut in."""
    residues = min(branch.window.dilation[0], height)
    return residues * math.ceil(math.ceil(height / residues) / rows)


@dataclass
class Rolling(ABC):
    """The code of one branch.

    Attributes:
        code: of the branch, whatever the schedule.
    """

    code: BranchCode

    @property
    @abstractmethod
    def strip_rows(self) -> int:
        """The rows of the result that a strip has."""

    @abstractmethod
    def tile(self, write: Writer) -> Tile:
        """The program's part of a row of the result; its row ``h`` changes with every step, its ``strip`` does not."""

    @abstractmethod
    def held(self, write: Writer, tile: Tile) -> Mapping[tuple[int, int], str]:
        """What of the kernel stays where it is while rows go by."""

    @abstractmethod
    def add(self, write: Writer, tile: Tile, rows: Mapping[int, int], held: Mapping[tuple[int, int], str]) -> None:
        """Add row ``row`` of the input to sums, each by the row of the kernel that joins them."""

    @property
    def live(self) -> int:
        """The rows of the result whose sums are not done yet."""
        return live_rows(self.code.branch)

    @property
    def strips(self) -> int:
        """How many an image is cut in."""
        return strips(self.code.branch, self.code.sizes["h"], self.strip_rows)

    def write(self, write: Writer) -> None:
        """The statements of a program whose number among those of the branch is ``program``."""
        window = self.code.branch.window
        tile = self.code.targeted(write, self.tile(write))
        fixed = self.code.ending.fixed(write, tile)
        offset = self.code.bias(write, tile)
        held = self.held(write, tile)
        zeros = f"tl.zeros(({', '.join(tile.shape)}), tl.float32)"
        totals = self.code.ending.totals()
        for name in (*(f"sum{i}" for i in range(self.live)), *(f"{name}_sum" for name, _, _ in totals)):
            write(f"{name} = {zeros}")
        with write.block(f"for step in range({self.strip_rows + self.live - 1}):"):
            for phase in range(window.stride[0]):
                write(f"row = {text(self._row(phase))}")
                taps = {i: (self.live - 1 - i) * window.stride[0] + phase for i in range(self.live)}
                self.add(write, tile, {i: kh for i, kh in taps.items() if kh < window.kernel[0]}, held)
            self._finish(write, tile, offset, fixed)
            for i in range(self.live - 1):
                write(f"sum{i} = sum{i + 1}")
            write(f"sum{self.live - 1} = {zeros}")
        if totals:
            self.store_totals(write, tile)

    @abstractmethod
    def store_totals(self, write: Writer, tile: Tile) -> None:
        """Store the sums over a program's pixels."""

    def first_row(self) -> str:
        """The first row of a strip, as text."""
        dilation = self.code.branch.window.dilation[0]
        if self.strips == 1:
            return "0"
        if dilation == 1:
            return f"strip * {self.strip_rows}"
        residues = min(dilation, self.code.sizes["h"])
        return f"strip % {residues} + strip // {residues} * {self.strip_rows * dilation}"

    def _row(self, phase: int) -> sympy.Expr:
        """The row of the input that a step loads."""
        window = self.code.branch.window
        first, step = symbol("first"), symbol("step")
        if window.dilation[0] == 1:
            return (first + step) * window.stride[0] + phase - window.low[0]
        return first + step * window.dilation[0] - window.low[0]

    def _finish(self, write: Writer, tile: Tile, offset: Spread | None, fixed: Mapping[Node, Spread]) -> None:
        """What becomes of the row that is done."""
        first, step = symbol("first"), symbol("step")
        write(f"h = {text(first + (step - (self.live - 1)) * self.code.branch.window.dilation[0])}")
        conditions = [f"step >= {self.live - 1}"] if self.live > 1 else []
        if not tile.at["h"].axes:
            conditions.append(f"h < {self.code.size('h')}")
        several = len(conditions) > 1
        head = " & ".join(f"({each})" if several else each for each in conditions)
        with write.block(f"if {head}:") if head else contextlib.nullcontext():
            write("v0 = sum0" if offset is None else f"v0 = sum0 + {offset.over(tile.axes)}")
            known = self.code.ending.write(write, tile, "v0", fixed)
            for name, node, _ in self.code.ending.totals():
                mask = tile.mask("nchw", tile.axes)
                write(f"{name}_sum += tl.where({mask}, {known[node].text}, 0.0)")
