r"""The Toeplitz matrix of a row of a kernel, whose product with a row of an image is the convolution of both.

:math:`T_{ij} = w_{(i - s j + p) / d}` for stride :math:`s`, dilation :math:`d` and :math:`p` zeros in front, gathered
from the kernel where it lies. A window of the input's columns ``i`` gives columns ``j`` of the result: all columns at
once where rows are short, else windows that overlap, all of which take the same matrix.

Zeros of the matrix are multiplied too: an infinity or a NaN in the input reaches all results of its window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from codegen.triton.axes import symbol, text
from codegen.triton.tile import Spread
from rewrite.ops import value

if TYPE_CHECKING:
    from codegen.triton.depthwise.branch import BranchCode
    from codegen.triton.depthwise.mixer import Branch
    from codegen.triton.writer import Writer

LEAST = 16
"""The shortest sums of products, and the fewest rows and columns, that tensor cores are used for."""

_ALIGNED = 8
"""Elements that are loaded together: windows begin at multiples of them."""


def power(size: int) -> int:
    """The next power of two."""
    return 1 << max(size - 1, 0).bit_length()


def depth(branch: Branch, width: int, columns: int, whole: bool) -> int:
    """The columns of the input that give ``columns`` of the result, a power of two.

    Args:
        branch: whose kernel it is.
        width: of the input.
        columns: of the result.
        whole: whether it is one window.
    """
    if whole:
        return max(power(width), LEAST)
    window = branch.window
    reach = (columns - 1) * window.stride[1] + (window.kernel[1] - 1) * window.dilation[1] + 1
    return max(power(reach + _lead(branch)), LEAST)


def _lead(branch: Branch) -> int:
    """Columns that a window begins earlier, so that it begins at a multiple of :data:`_ALIGNED`."""
    return -branch.window.low[1] % _ALIGNED


@dataclass(frozen=True)
class Matrix:
    """The matrices of a branch, as text.

    Attributes:
        code: of the branch.
        columns: of the result in a window.
        whole: whether there is one window.
        channels: whether there is a matrix for each of several channels, ``c`` being their numbers.
    """

    code: BranchCode
    columns: int
    whole: bool
    channels: bool = False

    @property
    def depth(self) -> str:
        """The columns of the input in a window, as text: branches of a mixer may have windows of several sizes."""
        return self.code.constant("DEPTH", depth(self.code.branch, self.code.read["w"], self.columns, self.whole))

    def begin(self, write: Writer) -> None:
        """Which tap joins each column ``i`` of a window to each column ``j`` of the result."""
        window = self.code.branch.window
        shift = window.low[1] if self.whole else -_lead(self.code.branch)
        right = "j[None, :]" if window.stride[1] == 1 else f"j[None, :] * {window.stride[1]}"
        ending = "" if not shift else f" + {shift}" if shift > 0 else f" - {-shift}"
        write(f"i = tl.arange(0, {self.depth})")
        write(f"kw = i[:, None] - {right}{ending}")
        inside = f"(kw >= 0) & (kw < {window.kernel[1] * window.dilation[1]})"
        if window.dilation[1] > 1:
            write(f"joined = {inside} & (kw % {window.dilation[1]} == 0)")
            write(f"kw = kw // {window.dilation[1]}")
        else:
            write(f"joined = {inside}")

    def window(self, write: Writer, blocks: int, first: int) -> Spread:
        """The columns of the input in a window, of which ``block`` is the number where there are several.

        Args:
            write: the kernel.
            blocks: how many windows there are.
            first: the axis of rows; that of columns is the next one.
        """
        if self.whole:
            return Spread("i", (first + 1,))
        begin = -(self.code.branch.window.low[1] + _lead(self.code.branch))
        if blocks == 1:
            write(f"column = {text(symbol('i') + begin)}")
            return Spread("column", (first + 1,))
        start = symbol("block") * (self.columns * self.code.branch.window.stride[1]) + begin
        write(f"column = ({text(start)})[:, None] + i[None, :]")
        return Spread("column", (first, first + 1))

    def load(self, kh: str, inside: str = "") -> str:
        """The matrix of one row of the kernel; ``inside`` is a condition that there is such a row."""
        name, steps = self.code.taps(kh, "kw[None, :, :]" if self.channels else "kw")
        stride = self.code.constant(f"{name.upper()}_C", self.code.weight_strides[0])
        channel, mask = f"c * {stride}", "joined"
        if self.channels:
            count = self.code.constant("CHANNELS", self.code.branch.channels)
            channel, mask = f"c[:, None, None] * {stride}", f"joined[None, :, :] & (c < {count})[:, None, None]"
        mask = f"{mask} & {inside}" if inside else mask
        kept = self.code.kept(self.code.arguments.region.main.input)
        return f"tl.load({' + '.join([name, channel, *steps])}, mask={mask}, other=0.0).to({kept})"

    def product(self, rows: str, matrix: str, sums: str) -> str:
        """Sums with the product of rows and a matrix added.

        float32 numbers are multiplied by three products of TF32 numbers, which lose next to nothing.
        """
        single = value(self.code.arguments.region.main.input).dtype == torch.float32
        precision = ', input_precision="tf32x3"' if single else ""
        return f"tl.dot({rows}, {matrix}, {sums}{precision})"
