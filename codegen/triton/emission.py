"""Writing a kernel for a region: its arguments, and the operators of its prologue and epilogue on a tile."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from codegen.triton.axes import COORDINATES, Axes, spread, strides_of
from codegen.triton.pointwise import HELPERS, computing, helpers, printed
from codegen.triton.region import base, is_view
from codegen.triton.tile import Spread, Tile
from rewrite.ops import Copy, LayerNorm, Reduction, is_tensor, reduction, value, view, view_as

if TYPE_CHECKING:
    from torch.fx import Node

    from codegen.triton.region import Region
    from codegen.triton.writer import Writer

KINDS = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.bool: "i1", torch.int8: "i8",
    torch.uint8: "u8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
"""Dtypes as Triton's signatures call them."""

IMAGE: Axes = (("n",), ("c",), ("h",), ("w",))
SEQUENCE: Axes = (("n",), ("c",), ("w",))


def image_axes(node: Node) -> Axes:
    """The axes of an image or a sequence."""
    return IMAGE if value(node).dim() == 4 else SEQUENCE


@dataclass
class Arguments:
    """The arguments of a kernel as they come to be needed.

    Attributes:
        region: what the kernel computes.
        names: of tensors: what is read, and what is written, as outputs are told from operands by their place.
        outputs: the names of those that are written, by node.
        constants: the values of those that are known as the kernel is compiled.
        helpers: functions that the kernel calls.
    """

    region: Region
    names: dict[Node, str] = field(default_factory=dict)
    outputs: dict[Node, str] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    helpers: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        region = self.region
        self._name(self.names, "x", region.inputs)
        for role, node in region.main.roles.items():
            self.names.setdefault(node, role)
        self._name(self.names, "other", [node for node in region.extras if node not in self.names])
        self._name(self.outputs, "y", [node for node in region.outputs if node not in region.totals])
        self._name(self.outputs, "total", region.totals)

    @staticmethod
    def _name(names: dict[Node, str], stem: str, nodes: Sequence[Node]) -> None:
        for i, node in enumerate(nodes):
            names.setdefault(node, stem if len(nodes) == 1 else f"{stem}{i}")

    def signature(self) -> dict[str, str]:
        """The arguments of a launch with their types."""
        kinds = {name: f"*{KINDS[value(node).dtype]}" for node, name in self.names.items()}
        totals = {name: "*fp32" for node, name in self.outputs.items() if node in self.region.totals}
        written = {name: f"*{KINDS[value(node).dtype]}" for node, name in self.outputs.items()}
        return {**kinds, **written, **totals, "N": "i32"}

    def constant(self, name: str, number: int) -> str:
        """The name of a number that is known as the kernel is compiled; numbered where the name is taken."""
        taken, count = name, 0
        while self.constants.setdefault(taken, number) != number:
            count += 1
            taken = f"{name}_{count}"
        return taken

    def strides(self, name: str, node: Node, axes: Axes, sizes: Mapping[str, int]) -> dict[str, str]:
        """The strides of a tensor by coordinate, as text; those that it does not have are missing."""
        found = strides_of(axes, value(node).stride(), sizes)
        return {
            at: self.constant(f"{name.upper()}_{at.upper()}", found[at])
            for at in COORDINATES if any(at in axis for axis in axes) and sizes[at] > 1
        }  # fmt: skip


@dataclass
class Chain:
    """Operators one after the other on a tile.

    Attributes:
        arguments: of the kernel.
        nodes: the operators, in order.
        axes: of the values that they read and make.
        sizes: of the coordinates.
        stem: what the names of values begin with.
    """

    arguments: Arguments
    nodes: Sequence[Node]
    axes: Mapping[Node, Axes]
    sizes: Mapping[str, int]
    stem: str = "v"

    def loads(
        self, write: Writer, tile: Tile, known: Mapping[Node, Spread], fixed: bool, varying: Iterable[str] = ("h",)
    ) -> dict[Node, Spread]:
        """Load operands that are not known.

        Args:
            write: the kernel.
            tile: where results lie.
            known: values that are there.
            fixed: whether those that differ along none of the varying coordinates, else the others.
            varying: coordinates that change in the innermost loop.
        """
        found: dict[Node, Spread] = {}
        for node in self.nodes:
            for operand in node.all_input_nodes:
                if operand in known or operand in self.nodes or operand in found or not is_tensor(operand):
                    continue
                axes = self._operand_axes(node, operand)
                name = self.arguments.names[operand]
                strides = self.arguments.strides(name, operand, axes, self.sizes)
                if fixed == strides.keys().isdisjoint(varying):
                    loaded = tile.load(name, strides, str(computing(value(operand).dtype)))
                    write(f"{self.stem}_{name} = {loaded.text}")
                    found[operand] = Spread(f"{self.stem}_{name}", loaded.axes)
        return found

    def write(self, write: Writer, tile: Tile, known: dict[Node, Spread]) -> None:
        """Compute the operators on a tile; ``known`` has all operands, and then all results."""
        for number, node in enumerate(self.nodes):
            if is_view(node) or isinstance(view(node), Copy):
                known[node] = known[node.all_input_nodes[0]]
                continue
            name = f"{self.stem}{number + 1}"
            norm = view_as(node, LayerNorm)
            if norm is not None:
                self._norm(write, tile, norm, known, name)
            else:
                operands = {each: known[each].over(tile.axes) for each in node.all_input_nodes}
                self.arguments.helpers.update(dict.fromkeys(helpers(node)))
                write(f"{name} = {printed(node, operands)}")
            known[node] = Spread(name, tile.axes)

    def _operand_axes(self, node: Node, operand: Node) -> Axes:
        inner = next((each for each in node.all_input_nodes if each in self.axes), node)
        norm = view_as(node, LayerNorm)
        axes = (("c",),) if norm is not None else spread(operand, self.axes[inner])
        assert axes is not None
        return axes

    def _norm(self, write: Writer, tile: Tile, norm: LayerNorm, known: Mapping[Node, Spread], name: str) -> None:
        """Mean and variance over all channels, which lie along one axis of the tile."""
        axis = tile.at["c"].axes[0]
        rest = tuple(each for each in tile.axes if each != axis)
        mask = tile.mask(["c"], tile.axes)
        count = self.arguments.constant("C", self.sizes["c"])
        x = known[norm.input].text
        mean, deviation = Spread(f"{name}_mean", rest), Spread(f"{name}_scale", rest)
        write(f"{name}_mean = tl.sum(tl.where({mask}, {x}, 0.0), axis={axis}) / {count}")
        write(f"{name} = tl.where({mask}, {x} - {mean.over(tile.axes)}, 0.0)")
        write(f"{name}_scale = tl.rsqrt(tl.sum({name} * {name}, axis={axis}) / {count} + {norm.eps!r})")
        write(f"{name} = {name} * {deviation.over(tile.axes)}")
        if norm.weight is not None:
            write(f"{name} = {name} * {known[norm.weight].over(tile.axes)}")
        if norm.bias is not None:
            write(f"{name} = {name} + {known[norm.bias].over(tile.axes)}")


@dataclass
class Ending:
    """What becomes of a main operator's results: the epilogue, and what is stored.

    Attributes:
        arguments: of the kernel.
    """

    arguments: Arguments

    @property
    def _region(self) -> Region:
        return self.arguments.region

    @property
    def chain(self) -> Chain:
        """The epilogue."""
        region = self._region
        return Chain(self.arguments, region.epilogue, region.axes, region.sizes)

    def fixed(self, write: Writer, tile: Tile) -> dict[Node, Spread]:
        """Load what is the same in all steps of the innermost loop."""
        return self.chain.loads(write, tile, {self._region.main.node: Spread("v0", tile.axes)}, True)

    def write(self, write: Writer, tile: Tile, result: str, fixed: Mapping[Node, Spread]) -> dict[Node, Spread]:
        """Compute the epilogue of a result and store what others read; the values."""
        region, chain = self._region, self.chain
        known = {region.main.node: Spread(result, tile.axes), **fixed}
        known.update(chain.loads(write, tile, known, False))
        chain.write(write, tile, known)
        for node, name in self.arguments.outputs.items():
            if node not in region.totals:
                strides = self.arguments.strides(name, node, region.axes[node], region.sizes)
                write(tile.store(name, strides, known[node].text))
        return known

    def totals(self) -> list[tuple[str, Node, Reduction]]:
        """The sums: the name of the output, what is summed up, and how."""
        found = []
        for node, name in self.arguments.outputs.items():
            if node in self._region.totals:
                made = reduction(node)
                assert made is not None
                found.append((name, base(made.input), made))
        return found


def module(arguments: Arguments, functions: Iterable[Iterable[str]]) -> str:
    """The text of a kernel's module: helpers that the kernel calls, then functions as :func:`function` gives them."""
    parts = ["import triton", "import triton.language as tl"]
    for name in arguments.helpers:
        parts += ["", "", HELPERS[name].strip()]
    return "\n".join([*parts, *itertools.chain.from_iterable(functions)]) + "\n"


def function(
    name: str, arguments: Sequence[str], constants: Collection[str], doc: str, lines: Sequence[str]
) -> list[str]:
    """A function that Triton compiles, as lines.

    Args:
        name: of the function.
        arguments: what it takes that is not constant; constants come behind.
        constants: what is known as it is compiled, those that the lines name.
        doc: what it computes.
        lines: its body.
    """
    typed = [*arguments, *(f"{each}: tl.constexpr" for each in constants)]
    body = [f"    {line}" if line else "" for line in lines]
    return ["", "", "@triton.jit", *wrapped(f"def {name}(", typed, "):"), f'    """{doc}"""', *body]


def wrapped(head: str, items: Sequence[str], tail: str) -> list[str]:
    """Items between parentheses, as many on a line as fit."""
    lines, line = [head], "   "
    for item in items:
        if len(line) + len(item) > 108:
            lines.append(line)
            line = "   "
        line += f" {item},"
    return [*lines, line, tail]
