"""Code for one branch of a mixer, whatever the schedule: its input, taps, bias and place in the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codegen.triton.depthwise.mixer import Mixer
from codegen.triton.emission import Arguments, Chain, Ending, image_axes
from codegen.triton.pointwise import computing
from codegen.triton.tile import Spread, Tile
from rewrite.ops import value

if TYPE_CHECKING:
    from torch.fx import Node

    from codegen.triton.depthwise.mixer import Branch
    from codegen.triton.writer import Writer


@dataclass
class BranchCode:
    """A branch of a region's mixer.

    Attributes:
        arguments: of the kernel.
        branch: which one.
        read: sizes of the input's coordinates.
    """

    arguments: Arguments
    branch: Branch
    read: Mapping[str, int]

    @property
    def ending(self) -> Ending:
        """What becomes of results."""
        return Ending(self.arguments)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Of the result's coordinates."""
        return self.arguments.region.sizes

    def constant(self, name: str, number: int) -> str:
        """A number that is known as the kernel is compiled."""
        return self.arguments.constant(name, number)

    def size(self, name: str) -> str:
        """The size of one of the result's coordinates, as text."""
        return self.constant(f"OUT_{name.upper()}", self.sizes[name])

    def targeted(self, write: Writer, tile: Tile) -> Tile:
        """The tile with the channels of the whole result, where the branch's are some of them."""
        self._channels = tile.at["c"]
        if not self.branch.target:
            return tile
        write(f"c_out = c + {self.constant('TARGET', self.branch.target)}")
        inside = dict(tile.inside)
        return Tile(tile.shape, {**tile.at, "c": Spread("c_out", tile.at["c"].axes)}, inside)

    def bias(self, write: Writer, tile: Tile) -> Spread | None:
        """The bias over the tile's channels."""
        node = self.branch.bias
        if node is None:
            return None
        own = self._own(tile)
        name = self.arguments.names[node]
        loaded = own.load(name, self.arguments.strides(name, node, (("c",),), self.sizes))
        write(f"offset = {loaded.text}")
        return Spread("offset", loaded.axes)

    def weight(self, tile: Tile, kh: str, kw: str) -> Spread:
        """The value of one tap for the tile's channels."""
        name, steps = self.taps(kh, kw)
        channel = {"c": self.constant(f"{name.upper()}_C", self.weight_strides[0])}
        return self._own(tile).load(" + ".join([name, *steps]), channel)

    def taps(self, kh: str, kw: str) -> tuple[str, list[str]]:
        """The name of the kernel's tensor, and the terms of a tap's place in it."""
        assert self.branch.weight is not None
        name = self.arguments.names[self.branch.weight]
        steps = {
            f"{name.upper()}_ROW": (kh, self.weight_strides[1]),
            f"{name.upper()}_COLUMN": (kw, self.weight_strides[2]),
        }
        return name, [f"{at} * {self.constant(each, step)}" for each, (at, step) in steps.items() if at != "0"]

    @property
    def weight_strides(self) -> tuple[int, int, int]:
        """From channel to channel, row to row and column to column."""
        mixer, weight = self.arguments.region.main, self.branch.weight
        assert isinstance(mixer, Mixer)
        assert weight is not None
        strides = mixer.layouts.get(weight) or value(weight).stride()
        return strides[0], strides[2] if len(strides) == 4 else 0, strides[-1]

    def load(self, write: Writer, tile: Tile, at: Mapping[str, Spread], wide: bool = True) -> str:
        """The input where some taps lie, after the prologue, zeros around it; the name of the value.

        Args:
            write: the kernel.
            tile: where results lie.
            at: rows and columns of the input.
            wide: whether in float32, else in the dtype of the main operator's input.
        """
        region = self.arguments.region
        own = self._own(tile)
        channel = own.at["c"]
        if self.branch.source:
            channel = Spread(f"{channel.text} + {self.constant('SOURCE', self.branch.source)}", channel.axes)
        inside = dict(own.inside)
        for name in ("h", "w"):
            condition = self._bounds(name, at[name])
            if condition is not None:
                inside[name] = condition
            else:
                inside.pop(name, None)
        place = Tile(own.shape, {**own.at, "c": channel, **at}, inside)
        node = region.main.input
        if not region.prologue:
            self._load_plain(write, node, place, wide)
            return "tap"
        axes = image_axes(node)
        chain = Chain(self.arguments, region.prologue, dict.fromkeys(region.prologue, axes), self.read, "p")
        known = chain.loads(write, place, {}, False, "nchw")
        known.update(chain.loads(write, place, known, True, "nchw"))
        chain.write(write, place, known)
        inner = place.mask("nchw", place.axes)
        result = known[node].text
        if inner:
            write(f"inside = {inner}")
        write(f"tap = tl.where(inside, {result}, 0.0)" if inner else f"tap = {result}")
        if not wide:
            write(f"tap = tap.to({self.kept(node)})")
        return "tap"

    def kept(self, node: Node) -> str:
        """The type in memory of a node's value."""
        kind = str(value(node).dtype).removeprefix("torch.")
        return f"tl.{kind}"

    def _load_plain(self, write: Writer, node: Node, place: Tile, wide: bool) -> None:
        """The input as it is in memory, over the whole tile."""
        name = self.arguments.names[node]
        strides = self.arguments.strides(name, node, image_axes(node), self.read)
        write(f"at = {place.places(name, strides)}")
        mask = place.mask("nchw", place.axes)
        ending = f".to({computing(value(node).dtype)})" if wide else ""
        if mask:
            write(f"inside = {mask}")
        write(f"tap = tl.load(at{', mask=inside, other=0.0' if mask else ''}){ending}")

    def _bounds(self, name: str, at: Spread) -> Spread | None:
        """The condition that rows or columns of the input exist; None where they always do."""
        window, dim = self.branch.window, "hw".index(name)
        if self.read[name] == self.sizes[name] == window.kernel[dim] == 1 and not window.low[dim]:
            return None
        size = self.constant(f"IN_{name.upper()}", self.read[name])
        return Spread(f"({at.text} >= 0) & ({at.text} < {size})", at.axes)

    def _own(self, tile: Tile) -> Tile:
        """The tile with the branch's own channels."""
        return Tile(tile.shape, {**tile.at, "c": self._channels}, tile.inside)
