"""The kernel of a region around a depthwise mixer, one branch beside the other in a single launch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from codegen.triton import emission
from codegen.triton.depthwise.banded import Banded, BandedCode
from codegen.triton.depthwise.branch import BranchCode
from codegen.triton.depthwise.copying import Copying, CopyingCode
from codegen.triton.depthwise.mixer import Branch, Mixer, planes
from codegen.triton.depthwise.streaming import Streaming, StreamingCode
from codegen.triton.depthwise.toeplitz import Toeplitz, ToeplitzCode
from codegen.triton.emission import Arguments
from codegen.triton.kernel import Kernel, layout_of, partial_sums
from codegen.triton.source import Source
from codegen.triton.writer import Writer
from rewrite.ops import value

if TYPE_CHECKING:
    from codegen.triton.region import Region

Schedule: TypeAlias = Streaming | Banded | Toeplitz | Copying
Code: TypeAlias = StreamingCode | BandedCode | ToeplitzCode | CopyingCode


def coordinates(mixer: Mixer) -> tuple[dict[str, int], dict[str, int]]:
    """The sizes of a mixer's input and result by coordinate."""
    read, made = (planes(value(node).shape) for node in (mixer.input, mixer.node))
    return dict(zip("nchw", read, strict=True)), dict(zip("nchw", made, strict=True))


def code_of(branch: BranchCode, schedule: Schedule) -> Code:
    """The code of a branch under a schedule."""
    match schedule:
        case Streaming():
            return StreamingCode(branch, schedule)
        case Banded():
            return BandedCode(branch, schedule)
        case Toeplitz():
            return ToeplitzCode(branch, schedule)
        case Copying():
            return CopyingCode(branch, schedule)


def emitted(region: Region, schedules: Sequence[Schedule]) -> Kernel:
    """The kernel of a region with a schedule for each branch.

    Args:
        region: around a :class:`Mixer`.
        schedules: in the order of the branches.
    """
    mixer = region.main
    assert isinstance(mixer, Mixer)
    read, _ = coordinates(mixer)
    arguments = Arguments(region)
    signature = arguments.signature()
    codes = [code_of(BranchCode(arguments, branch, read), each)
             for branch, each in zip(mixer.branches, schedules, strict=True)]  # fmt: skip
    bodies = [_body(code) for code in codes]
    function = _name(mixer)
    text = _module(arguments, function, list(signature), codes, bodies)
    warps, stages = (max(getattr(each, name) for each in schedules) for name in ("warps", "stages"))
    source = Source(text, function, signature, dict(arguments.constants), warps, stages)
    slots = codes[0].slots() if isinstance(codes[0], StreamingCode) else 0
    results = [partial_sums(region.sizes, slots) if node in region.totals else layout_of(node)
               for node in arguments.outputs]  # fmt: skip
    programs = " + ".join(code.programs() for code in codes)
    operands = tuple(arguments.names)
    layouts = mixer.layouts
    return Kernel(region, source, operands, tuple(results), programs, tuple(map(str, schedules)), layouts)


def _name(mixer: Mixer) -> str:
    if len(mixer.branches) > 1:
        return "depthwise_mixer"
    return f"depthwise_{_kernel(mixer.branches[0])}"


def _kernel(branch: Branch) -> str:
    return "unchanged" if branch.weight is None else f"{branch.window.kernel[0]}x{branch.window.kernel[1]}"


def _body(code: Code) -> list[str]:
    write = Writer()
    code.write(write)
    return write.lines


def _module(
    arguments: Arguments, function: str, signature: list[str], codes: Sequence[Code], bodies: Sequence[list[str]]
) -> str:
    """The text of the module: helpers, a function for each branch where there are several, and the kernel."""
    constants, functions = arguments.constants, []
    body = bodies[0]
    if len(codes) > 1:
        calls = []
        for number, (code, lines) in enumerate(zip(codes, bodies, strict=True)):
            given, fixed = ([each for each in names if _uses(lines, each)] for names in (signature, constants))
            name = f"branch{number}_{_kernel(code.code.branch)}"
            calls.append(f"{name}({', '.join(['program', *given, *fixed])})")
            functions.append(
                emission.function(name, ["program", *given], fixed, f"{code.code.branch.channels} channels.", lines)
            )
        body = _dispatch(codes, calls)
    body = ["program = tl.program_id(0)", *body]
    functions.append(emission.function(function, signature, constants, _doc(arguments.region), body))
    return emission.module(arguments, functions)


def _uses(lines: Sequence[str], name: str) -> bool:
    pattern = re.compile(rf"\b{re.escape(name)}\b")
    return any(pattern.search(line) for line in lines)


def _dispatch(codes: Sequence[Code], calls: Sequence[str]) -> list[str]:
    """Which programs compute which branch: one branch after the other."""
    lines = []
    for number, (code, call) in enumerate(zip(codes, calls, strict=True)):
        lines.append(f"count{number} = {code.programs()}")
        lines.append(f"if (program >= 0) & (program < count{number}):")
        lines.append(f"    {call}")
        lines.append(f"program = program - count{number}")
    return lines[:-1]


def _doc(region: Region) -> str:
    """What the kernel computes, from the first operator to the last."""
    before = [_operator(node) for node in region.prologue]
    behind = [_operator(node) for node in (*region.epilogue, *region.totals)]
    mixer = region.main
    assert isinstance(mixer, Mixer)
    kinds = ", ".join(_kernel(branch) for branch in mixer.branches)
    return " -> ".join([*before, f"depthwise {kinds}", *behind]) + "."


def _operator(node: object) -> str:
    target = getattr(node, "target", node)
    return str(getattr(target, "__name__", target)).split(".")[0]
