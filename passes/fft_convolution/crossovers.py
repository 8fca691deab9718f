"""For how many taps, and for which sizes, transforms take fewer operations than the sum over taps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from passes.fft_convolution import costs
from passes.fft_convolution.blocks import Blocks, cut_of
from passes.fft_convolution.circle import Circle
from rewrite.arithmetic import symbol
from rewrite.crossover import Crossover

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rewrite.arithmetic import Number
    from rewrite.ops import Convolution

    Circles = Sequence[Circle]


@dataclass(frozen=True)
class _Kept(Circle):
    """A circle with half of the zeros on each side that keep the size, which ``sympy`` does not find out."""

    @property
    def border(self) -> int:
        return (self.taps.extent + 1) // 2


_LEAST, _MOST = 512, 2**14
"""How far is looked at least, where there are so many sizes, and at most."""


def crossovers(conv: Convolution, circles: Circles) -> list[Crossover]:
    """Over the taps K along each dimension that has several, and over the size L of these, where they are equal."""
    axes = [dim for dim, circle in enumerate(circles) if circle.taps.count > 1]
    found = []
    for name, read, change in (("K", _taps, _with_taps), ("L", _size, _with_size)):
        here = {read(circles[dim]) for dim in axes}
        if len(here) != 1 or 2 * max(here) > _MOST:
            continue

        def at(value: Number, change: Any = change) -> Circles:
            return [change(circle, value) if dim in axes else circle for dim, circle in enumerate(circles)]

        found.append(_search(conv, name, here.pop(), at, cut_of(circles) is not None))
    return [crossover for crossover in found if crossover is not None]


def _search(
    conv: Convolution, name: str, here: int, at: Callable[[Number], Circles], in_blocks: bool
) -> Crossover | None:
    possible = [value for value in range(1, max(_LEAST, 2 * here) + 1) if min(c.dense for c in at(value)) > 0]
    if possible != list(range(possible[0], possible[-1] + 1)):
        return None

    def exact(value: int) -> tuple[float, float]:
        circles = at(value)
        return costs.direct(conv, circles), costs.least(conv, circles, cut_of(circles))

    circles = at(symbol(name))
    where: dict[str, str] = {}
    if in_blocks:
        points = _points("M")
        after = costs.transformed(conv, [points], Blocks.of(points, circles[0]).count)
        where["M"] = "the points of a block"
    else:
        after = costs.transformed(conv, _periods(circles, where))
    return Crossover.search("transforms", name, costs.direct(conv, circles), after, possible[0], possible[-1], here,
                            exact, where)  # fmt: skip


def _periods(circles: Circles, where: dict[str, str]) -> list[Number]:
    """The points along each dimension; those that depend on the size are a symbol, which ``where`` explains."""
    named: dict[str, Number] = {}
    periods: list[Number] = []
    for circle in circles:
        least: Any = circle.least
        if isinstance(least, int):
            periods.append(circle.period)
            continue
        meaning = f"fast_length({least})"
        if meaning not in named:
            name = "M" if not named else f"M{len(named) + 1}"
            named[meaning], where[name] = _points(name), meaning
        periods.append(named[meaning])
    return periods


def _points(name: str) -> Any:
    return symbol(name, even=True)


def _taps(circle: Circle) -> int:
    return circle.taps.count


def _size(circle: Circle) -> int:
    return circle.size


def _with_size(circle: Circle, size: Any) -> Circle:
    return replace(circle, size=size)


def _with_taps(circle: Circle, count: Any) -> Circle:
    """With another number of taps. Padding that makes up for them grows as they do, other padding stays."""
    taps = circle.taps
    extent = taps.step * (count - 1)
    if taps.low + taps.high == taps.extent and abs(taps.low - taps.high) < 2:
        half = extent // 2
        return _Kept(circle.size, replace(taps, count=count, low=half, high=extent - half), circle.stride)
    low, high = (extent if side == taps.extent else side for side in (taps.low, taps.high))
    return replace(circle, taps=replace(taps, count=count, low=low, high=high))
