"""The elements that one program of a kernel holds at a time, and text that loads and stores values at their places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from codegen.triton.axes import COORDINATES


@dataclass(frozen=True)
class Spread:
    """The text of a scalar or of an array over some axes of a tile, in their order.

    Attributes:
        text: an expression.
        axes: of the tile, ascending; none for a scalar.
    """

    text: str
    axes: tuple[int, ...] = ()

    def over(self, axes: tuple[int, ...]) -> str:
        """As an operand of arrays over more axes."""
        if not self.axes or self.axes == axes:
            return self.text
        index = ", ".join(":" if axis in self.axes else "None" for axis in axes)
        return f"{closed(self.text)}[{index}]"


def union(parts: Iterable[Spread]) -> tuple[int, ...]:
    """The axes of arrays together."""
    return tuple(sorted({axis for part in parts for axis in part.axes}))


@dataclass(frozen=True)
class Tile:
    """Elements by their coordinates.

    Attributes:
        shape: the sizes along each axis, as text.
        at: each coordinate.
        inside: for coordinates that may lie outside of an image: the condition that they do not.
    """

    shape: tuple[str, ...]
    at: Mapping[str, Spread]
    inside: Mapping[str, Spread] = field(default_factory=dict)

    @property
    def axes(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(len(self.shape)))

    def place(self, pointer: str, strides: Mapping[str, str]) -> Spread:
        """The addresses of a value's elements.

        Args:
            pointer: of the first one.
            strides: by coordinate, as text; coordinates that the value has not are missing.
        """
        used = [name for name in COORDINATES if name in strides]
        axes = union(self.at[name] for name in used)
        terms = [_term(self.at[name], axes, strides[name]) for name in used]
        return Spread(" + ".join([pointer, *terms]), axes)

    def places(self, pointer: str, strides: Mapping[str, str]) -> str:
        """The addresses of all elements of the tile, as text; the same for those that a value has in common."""
        place = self.place(pointer, strides)
        if place.axes == self.axes:
            return place.text
        return f"tl.broadcast_to({place.over(self.axes)}, ({', '.join(self.shape)}))"

    def mask(self, names: Iterable[str], axes: tuple[int, ...]) -> str:
        """The condition that elements over some axes lie inside, as to some coordinates; '' where they always do."""
        found = [self.inside[name] for name in COORDINATES if name in set(names) and name in self.inside]
        # scalars and vectors first: fewer comparisons
        terms = [closed(each.over(axes)) for each in sorted(dict.fromkeys(found), key=lambda each: len(each.axes))]
        return " & ".join(terms)

    def load(self, pointer: str, strides: Mapping[str, str], wide: str = "tl.float32") -> Spread:
        """The values of an operand, zero outside, over the axes along which they differ.

        Args:
            pointer: of the first element.
            strides: as for :meth:`place`.
            wide: the type to compute in; '' to keep what is in memory.
        """
        place = self.place(pointer, strides)
        mask = self.mask(strides, place.axes)
        loaded = f"tl.load({place.text}, mask={mask}, other=0.0)" if mask else f"tl.load({place.text})"
        return Spread(f"{loaded}.to({wide})" if wide else loaded, place.axes)

    def store(self, pointer: str, strides: Mapping[str, str], result: str) -> str:
        """A statement that stores a value of the whole tile."""
        mask = self.mask(COORDINATES, self.axes)
        ending = f", mask={mask}" if mask else ""
        return f"tl.store({self.places(pointer, strides)}, {result}.to({pointer}.dtype.element_ty){ending})"


def _term(part: Spread, axes: tuple[int, ...], stride: str) -> str:
    text = closed(part.over(axes))
    return text if stride == "1" else f"{text} * {stride}"


def closed(text: str) -> str:
    """An expression that may stand in a product."""
    depth = 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter in " <>&" and not depth:
            return f"({text})"
    return text


def block(number: str, size: str) -> str:
    """The indices of a block of so many, by its number."""
    return f"tl.arange(0, {size})" if number == "0" else f"{number} * {size} + tl.arange(0, {size})"


def part(text: str, size: int) -> str:
    """An index modulo a size."""
    return f"{text} % {size}" if size > 1 else "0"


def rest(text: str, size: int) -> str:
    """An index divided by a size."""
    return f"{text} // {size}" if size > 1 else text
