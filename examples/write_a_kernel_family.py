"""Write a family of Triton kernels of one's own: layer norms with the pointwise operators behind them.

    python examples/write_a_kernel_family.py

A family tells the planner which operators it knows (`mains`), what a kernel can hold around one (`regions`), which
kernels there are with what each of them does (`candidates`), and what runs without it (`library`). Pointwise operators,
residuals and views behind the norm are written by what all families share. Here, without a GPU, Triton's interpreter
runs the kernels; on a GPU `rewrite.optimize(model.cuda(), x)` measures them beside Inductor's and takes the faster.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

from torch import Tensor, nn
from torch.fx import Graph, Node

from codegen.triton.device import Device, Work
from codegen.triton.emission import Arguments, Ending, function, module
from codegen.triton.family import Candidate, register, unregister
from codegen.triton.interpreter import Interpreted
from codegen.triton.kernel import Kernel, layout_of
from codegen.triton.region import Region, regions
from codegen.triton.source import Source
from codegen.triton.tile import Spread, Tile
from codegen.triton.traffic import size
from codegen.triton.writer import Writer
from rewrite import optimize
from rewrite.ops import LayerNorm, value, view_as


@dataclass(frozen=True)
class Norm:
    """A layer norm over the last dimension: what a region is built around."""

    node: Node
    input: Node
    roles: dict[str, Node]
    eps: float

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.node,)

    def __str__(self) -> str:
        return "layer norm"


class LayerNorms:
    """The family."""

    name = "layer-norm"

    def mains(self, graph: Graph) -> Iterator[Norm]:
        for node in graph.nodes:
            norm = view_as(node, LayerNorm)
            if norm is not None and not self.why_not(node):
                given = {"weight": norm.weight, "bias": norm.bias}
                yield Norm(node, norm.input, {k: v for k, v in given.items() if v is not None}, norm.eps)

    def why_not(self, node: Node) -> str:
        norm = view_as(node, LayerNorm)
        if norm is None:
            return ""
        if len(norm.shape) != 1 or not value(norm.input).is_contiguous() or value(norm.input).dim() > 4:
            return "it is not over the last dimension of contiguous rows"
        return f"{norm.shape[0]} channels do not fit a program" if norm.shape[0] > 4096 else ""

    def regions(self, main: Any) -> Iterator[Region]:
        *rows, channels = (int(s) for s in value(main.node).shape)
        names = {1: ("n",), 2: ("n", "w"), 3: ("n", "h", "w")}[len(rows)]
        sizes = {"n": 1, "h": 1, "w": 1, "c": channels, **dict(zip(names, rows, strict=True))}
        found = regions(main, (*((name,) for name in names), ("c",)), sizes, sums=False)
        return (region for region in found if not region.prologue)

    def candidates(self, region: Region, device: Device, elementwise: bool = False) -> Sequence[Candidate]:
        moved = Work(bytes=size(region.operands) + size(region.outputs))
        return [Candidate(moved, (f"{rows} rows",), partial(emitted, region, rows)) for rows in (4, 1)]

    def library(self, main: Any) -> Sequence[Work]:
        return [Work(bytes=size((main.input, main.node)))]


def emitted(region: Region, rows: int) -> Kernel:
    """The kernel: so many rows at a time, all their channels side by side."""
    norm: Any = region.main
    arguments, write = Arguments(region), Writer()
    channels, count = region.sizes["c"], math.prod(region.sizes[name] for name in "nhw")
    block = arguments.constant("BLOCK", 1 << (channels - 1).bit_length())
    c, h, w = arguments.constant("C", channels), region.sizes["h"], region.sizes["w"]
    write(f"r = tl.program_id(0) * {rows} + tl.arange(0, {rows})")
    write(f"c = tl.arange(0, {block})")
    write(f"n = (r // {h * w}).to(tl.int64)")
    write(f"h = r // {w} % {h}")
    write(f"w = r % {w}")
    at = {name: Spread(name, (1,) if name == "c" else (0,)) for name in "nchw"}
    inside = {"n": Spread("n < N", (0,)), "c": Spread(f"c < {c}", (1,))}
    tile = Tile((str(rows), block), at, inside)
    ending = Ending(arguments)
    fixed = ending.fixed(write, tile)
    name = arguments.names[norm.input]
    strides = arguments.strides(name, norm.input, region.axes[norm.node], region.sizes)
    write(f"v = {tile.load(name, strides).over(tile.axes)}")
    write(f"v = tl.where({tile.mask('c', tile.axes)}, v - (tl.sum(v, axis=1) / {c})[:, None], 0.0)")
    write(f"v0 = v * tl.rsqrt(tl.sum(v * v, axis=1) / {c} + {norm.eps!r})[:, None]")
    for role, operator in (("weight", "*"), ("bias", "+")):
        if role in norm.roles:
            loaded = tile.load(arguments.names[norm.roles[role]], {"c": "1"})
            write(f"v0 = v0 {operator} {loaded.over(tile.axes)}")
    ending.write(write, tile, "v0", fixed)
    signature = arguments.signature()
    kernel = function("layer_norm", [*signature], arguments.constants, "Layer norm and what is behind it.", write.lines)
    text = module(arguments, [kernel])
    source = Source(text, "layer_norm", signature, dict(arguments.constants))
    programs = f"(N * {count // region.sizes['n']} + {rows - 1}) // {rows}"
    results = tuple(layout_of(node) for node in arguments.outputs)
    return Kernel(region, source, tuple(arguments.names), results, programs, (f"{rows} rows",))


class Feedforward(nn.Module):
    """A norm, an activation and a residual: one kernel, and a linear layer."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(nn.functional.silu(self.norm(x)) + x)


def main() -> None:
    torch.manual_seed(0)
    model, x = Feedforward(48).eval(), torch.randn(3, 10, 48)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    register(LayerNorms())
    try:
        lowering = Interpreted()
        fast = optimize(model, x, lower=lowering)
        with torch.no_grad():
            found = fast(x)
            exact = model.double()(x.double())
    finally:
        unregister(LayerNorms.name)
    print(lowering.plans[-1])
    print(fast.kernels[0].source)
    print(f"largest error against float64: {float((found.double() - exact).abs().max()):.1e}")


if __name__ == "__main__":
    main()
