"""Flat modules of small models, and the kernels of their regions, run by the interpreter.

Whatever a kernel reads and writes lies between numbers that are none, and so does what is not written.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from codegen.triton import launching
from codegen.triton.binding import bind
from codegen.triton.depthwise import Depthwise
from codegen.triton.depthwise.banded import Banded
from codegen.triton.depthwise.branch import BranchCode
from codegen.triton.depthwise.emitting import Schedule, code_of, coordinates, emitted
from codegen.triton.depthwise.mixer import Mixer
from codegen.triton.depthwise.schedules import schedules
from codegen.triton.depthwise.streaming import Streaming
from codegen.triton.depthwise.toeplitz import Toeplitz
from codegen.triton.emission import Arguments
from codegen.triton.kernel import Kernel
from codegen.triton.launching import interpreted, interprets
from codegen.triton.region import Region
from rewrite.lowering import flat_module, record, weight_order
from rewrite.trace import capture

FAMILY = Depthwise()
MARGIN = 8192
"""Elements beside a tensor that nobody is to read or write."""

SCHEDULES = {
    "streaming": Streaming(8, 8, 3, False), "streaming last": Streaming(8, 4, 5, True),
    "banded": Banded(16, 16, 2, False), "banded whole": Banded(16, 16, 4, True),
    "toeplitz": Toeplitz(16, 16, 1, False), "toeplitz whole": Toeplitz(32, 16, 1, True),
    "toeplitz below": Toeplitz(16, 16, 1, True, below=2), "toeplitz channels": Toeplitz(16, 16, 2, False),
}  # fmt: skip
"""One of each kind, for small images."""

needs_interpreter = pytest.mark.skipif(not interprets(), reason="runs kernels in Triton's interpreter")


class Net(nn.Module):
    """A function of inputs and of layers."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module | Tensor):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, nn.Parameter(layer) if isinstance(layer, Tensor) else layer)
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_()

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def depthwise(channels: int, kernel: int | tuple[int, ...], **settings: Any) -> nn.Module:
    """A convolution of single channels; of sequences where the kernel is a tuple of one. It keeps sizes by default."""
    taps = (kernel, kernel) if isinstance(kernel, int) else kernel
    settings.setdefault("padding", tuple(size // 2 for size in taps))
    kind = nn.Conv1d if len(taps) == 1 else nn.Conv2d
    return kind(channels, channels, taps, groups=channels, **settings)


def last(x: Tensor) -> Tensor:
    """The same values with channels next to one another."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def module_of(model: nn.Module, *inputs: Tensor) -> GraphModule:
    """The flat module of a model with its weights as attributes, and recorded values."""
    graph = capture(model.eval(), inputs).graph
    weights = {name: graph.weights[name].detach() for name in weight_order(graph)}
    module = flat_module(graph, (), weights)
    record(module, inputs)
    return module


def regions_of(module: GraphModule) -> list[Region]:
    """The regions around the first mixer of a module, the largest last."""
    return list(FAMILY.regions(next(iter(FAMILY.mains(module.graph)))))


def run(
    module: GraphModule, region: Region, schedules: Sequence[Schedule], *inputs: Tensor
) -> tuple[Kernel, list[Tensor]]:
    """A module's outputs where a region of it runs as a kernel in the interpreter, by one launch."""
    kernel = emitted(region, schedules)
    bind(module, [kernel], interpreted, "CPU")
    assert region.main.node not in module.graph.nodes
    for node in module.graph.find_nodes(op="get_attr"):
        path, _, name = str(node.target).rpartition(".")
        owner = module.get_submodule(path)
        weight = operator.attrgetter(name)(owner)
        delattr(owner, name)
        owner.register_buffer(name, surrounded(weight.detach()))
    with watched() as launches, torch.no_grad():
        found = list(module(*map(surrounded, inputs)))
    assert len(launches) == 1
    return kernel, found


def surrounded(x: Tensor) -> Tensor:
    """The same values and strides, with memory on both sides of them that holds none, or the largest integers."""
    span = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True)) + 1
    memory = torch.full((span + 2 * MARGIN,), nothing(x.dtype), dtype=x.dtype)
    return memory.as_strided(x.shape, x.stride(), MARGIN).copy_(x)


def nothing(dtype: torch.dtype) -> Any:
    """What stands in memory that nobody has written."""
    return float("nan") if dtype.is_floating_point else True if dtype == torch.bool else torch.iinfo(dtype).max


@contextlib.contextmanager
def watched() -> Iterator[list[Sequence[Any]]]:
    """A list of the launches within, each as what it gives, whose memory holds nothing before and beside it.

    Indices are not tried for overflow, which takes as long as everything else.
    """
    from triton.runtime.interpreter import interpreter_builder

    launches: list[Sequence[Any]] = []
    memories: list[Tensor] = []

    def empty(results: Sequence[Any], device: torch.device) -> list[Tensor]:
        launches.append(results)
        found = []
        for each in results:
            span = sum((size - 1) * step for size, step in zip(each.shape, each.stride, strict=True)) + 1
            memory = torch.full((span + 2 * MARGIN,), nothing(each.dtype), dtype=each.dtype, device=device)
            memories.append(memory)
            found.append(memory.as_strided(each.shape, each.stride, MARGIN))
        return found

    options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)
    with mock.patch.object(launching, "empty", empty), mock.patch.object(interpreter_builder, "options", options):
        yield launches
    for memory in memories:
        beside = torch.cat([memory[:MARGIN], memory[-MARGIN:]])
        kept = beside.isnan() if beside.is_floating_point() else beside == nothing(beside.dtype)
        assert kept.all(), "a kernel writes beside its results"


def kind_of(schedule: Schedule) -> str:
    """The kind of a schedule, in words."""
    name = type(schedule).__name__.lower()
    several = [field for field in ("below", "channels") if getattr(schedule, field, 1) > 1]
    return " ".join([name, *several, *(["last"] if getattr(schedule, "last", False) else [])])


def choices(region: Region) -> dict[str, list[tuple[Schedule, ...]]]:
    """The schedules of a region by the kind that they have of it, those of several branches in step."""
    found: dict[str, list[tuple[Schedule, ...]]] = {}
    for warps in (4, 8):
        branches = schedules(region, warps)
        for i in range(max(map(len, branches)) if all(branches) else 0):
            chosen = tuple(each[i % len(each)] for each in branches)
            found.setdefault(" + ".join(dict.fromkeys(map(kind_of, chosen))), []).append(chosen)
    return found


def effort(region: Region, chosen: Sequence[Schedule]) -> int:
    """About how many operations the interpreter takes for the sums of a kernel."""
    mixer = region.main
    assert isinstance(mixer, Mixer)
    read, total = coordinates(mixer)[0], 0
    for branch, schedule in zip(mixer.branches, chosen, strict=True):
        (rows, columns), (step, _) = branch.window.kernel, branch.window.stride
        match schedule:
            case Streaming():
                each = (schedule.rows + rows // step) * step * columns * (10 + 3 * -(-rows // step))
            case Banded():
                each = (schedule.rows + rows // step) * step * (15 + 3 * rows)
            case Toeplitz():
                each = (rows + schedule.below) * (12 + 8 * schedule.below)
            case _:
                each = 20
        programs = code_of(BranchCode(Arguments(region), branch, read), schedule).programs()
        total += each * int(eval(programs, {}, {"N": region.sizes["n"]}))
    return total


SAME = {"to": "cast", "_to_copy": "cast", "view": "reshape", "flatten": "reshape"}
"""Operators that releases of torch write in several ways."""


def words(nodes: Sequence[Node]) -> str:
    """The operators of nodes."""
    names = [str(getattr(node.target, "__name__", node.target)).split(".")[0] for node in nodes]
    return " ".join(SAME.get(name, name) for name in names)


def doubled(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """What a model gives in float64."""
    wide = [x.double() if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        return listed(copy.deepcopy(model).double()(*wide))


def listed(found: Any) -> list[Tensor]:
    """The outputs of a model."""
    return [found] if isinstance(found, Tensor) else list(found)


def facts(x: Tensor) -> tuple[Any, ...]:
    """Dtype, sizes and strides, as far as they say where an element is."""
    return x.dtype, x.shape, [step for size, step in zip(x.shape, x.stride(), strict=True) if size > 1]


def check(model: nn.Module, inputs: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    """Compare outputs with the model in float64, and their dtypes and strides with the model itself.

    Errors may be as large as some units in the last place of an output's largest element, or twice torch's own.
    """
    with torch.no_grad():
        own = listed(model(*inputs))
    exact = doubled(model, *inputs)
    assert len(found) == len(own)
    for mine, theirs, wanted in zip(found, own, exact, strict=True):
        assert facts(mine) == facts(theirs)
        if not mine.is_floating_point():
            assert torch.equal(mine, theirs)
            continue
        scale = wanted.abs().max().clamp(min=1)
        units = 32 if mine.dtype == torch.float32 else 4
        allowed = max(units * torch.finfo(mine.dtype).eps * scale, 2 * (theirs.double() - wanted).abs().max())
        error = (mine.double() - wanted).abs().max()
        assert error <= allowed, f"{float(error):.2e} is more than {float(allowed):.2e}"
