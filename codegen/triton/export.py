"""Kernels as files that stand alone: the source, the same in torch's operators, a check and a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from codegen.triton.reference import reference
from rewrite.lowered import Generated
from rewrite.ops import value

if TYPE_CHECKING:
    from codegen.triton.kernel import Kernel

_MAIN = '''


def operands(device):
    """Random operands like those that the kernel was written for."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape, stride, dtype in OPERANDS:
        count = 1 + sum((size - 1) * step for size, step in zip(shape, stride))
        drawn = torch.randn(count, generator=generator)
        base = (drawn if dtype.is_floating_point else drawn > 0).to(device, dtype)
        found.append(torch.as_strided(base, shape, stride))
    return found


def run(tensors, results):
    """Launch the kernel."""
    {function}[(PROGRAMS,)](*tensors, *results, SAMPLES, **CONSTANTS, num_warps={warps}, num_stages={stages})


def memory(device):
    """Memory for what the kernel gives, full of NaN where there are any."""
    made = [torch.empty_strided(shape, stride, dtype=dtype, device=device) for shape, stride, dtype in RESULTS]
    return [x.fill_(float("nan")) if x.is_floating_point() else x.zero_() for x in made]


def check(device):
    """Compare the kernel with torch's operators in float64."""
    tensors, results = operands(device), memory(device)
    run(tensors, results)
    exact = reference(*(x.double() if x.is_floating_point() else x for x in tensors), wide=torch.float64)
    for number, (found, wanted) in enumerate(zip(results, exact)):
        if PARTS[number]:  # sums over pixels come in parts
            found, wanted = found.sum(1), wanted.sum(1)
        assert torch.equal(found.isnan(), wanted.isnan()), "the kernel is wrong"
        found, wanted = found.double().nan_to_num(), wanted.double().nan_to_num()
        error = float((found - wanted).abs().max()) / max(float(wanted.abs().max()), 1e-30)
        print(f"result {{number}}: relative error {{error:.2e}}")
        assert error < {bound}, "the kernel is wrong"


def bench():
    """Time the kernel and torch's operators, one after the other."""
    from triton.testing import do_bench

    tensors, results = operands("cuda"), memory("cuda")
    print(f"kernel {{do_bench(lambda: run(tensors, results)):.4f}} ms")
    print(f"operators {{do_bench(lambda: reference(*tensors)):.4f}} ms")


if __name__ == "__main__":
    check("cpu" if INTERPRETED else "cuda")
    if not INTERPRETED:
        bench()
'''

_HEAD = '''"""{title}

{description}

Written by torch-rewrite. `python {file}` checks it, and times it where there is a GPU; without one Triton's interpreter
runs it on the CPU.
"""

import os

from math import inf, nan  # which operators below may name

import torch
from torch import device

INTERPRETED = not torch.cuda.is_available()
if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

'''


def generated(kernel: Kernel) -> Generated:
    """What is told to the user of a kernel."""
    return Generated(kernel.operator, kernel.source.text, describe(kernel), standalone(kernel))


def describe(kernel: Kernel) -> str:
    """The operators that it computes, and how it is cut into programs."""
    region = kernel.region
    names = [_name(node.target) for node in (*region.prologue, *region.main.nodes, *region.epilogue, *region.totals)]
    shape = "x".join(str(int(size)) for size in value(region.main.node).shape)
    return f"{' -> '.join(names)}, {shape}; {', '.join(kernel.schedules)}"


def standalone(kernel: Kernel) -> str:
    """A module that defines the kernel and checks it."""
    source = kernel.source
    file = f"{kernel.operator}.py"
    head = _HEAD.format(title=f"{source.function}: {describe(kernel)}.", description=_operators(kernel), file=file)
    operands, results = ([(x.shape, x.stride, x.dtype) for x in found] for found in (kernel.reads, kernel.results))
    parts = [node in kernel.region.totals for node in kernel.region.outputs]
    half = any(r.dtype.itemsize == 2 for r in kernel.results)
    facts = [
        f"OPERANDS = {_listed(operands)}", f"RESULTS = {_listed(results)}", f"PARTS = {parts}",
        f"SAMPLES = {kernel.samples}", f"PROGRAMS = {kernel.launchable.programs}",
        f"CONSTANTS = {dict(source.constants)}",
    ]  # fmt: skip
    main = _MAIN.format(function=source.function, warps=source.warps, stages=source.stages,
                        bound="2e-2" if half else "1e-4")  # fmt: skip
    return head + source.text + "\n\n" + "\n".join(facts) + "\n\n\n" + _reference(kernel) + main


def _operators(kernel: Kernel) -> str:
    names = ", ".join(node.name for node in kernel.region.nodes)
    return f"It computes {names}."


def _listed(facts: Sequence[tuple[object, ...]]) -> str:
    lines = [f"    {fact!r}," for fact in facts]
    return "\n".join(["[", *lines, "]"])


def _reference(kernel: Kernel) -> str:
    """The operators as a function, from the code that torch.fx writes; ``wide`` is what it converts to of float32."""
    code = reference(kernel).code.strip().splitlines()
    body = [line.split(";")[0].rstrip() for line in code if line.strip() and not line.startswith("def ")]
    head = next(line for line in code if line.startswith("def "))
    head = head.replace("def forward(self, ", "def reference(").replace("):", ", wide=torch.float32):")
    body = [line.replace("dtype = torch.float32", "dtype = wide") for line in body]
    return "\n".join([head, '    """The same in torch\'s operators."""', *body])


def _name(target: object) -> str:
    return str(getattr(target, "__name__", target)).split(".")[0]
