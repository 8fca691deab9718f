"""The text of kernels, one of each kind, as files that a change shows in.

After an intended change: ``UPDATE_GOLDEN=1 python -m pytest tests/codegen/triton/test_sources.py``, then read what git
says.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegen.triton.depthwise.banded import Banded
from codegen.triton.depthwise.copying import Copying
from codegen.triton.depthwise.emitting import Schedule, emitted
from codegen.triton.depthwise.streaming import Streaming
from codegen.triton.depthwise.toeplitz import Toeplitz
from codegen.triton.kernel import Kernel
from examples.models.inception_next import InceptionDepthwise
from tests.codegen.triton.kernels import Net, check, depthwise, last, module_of, needs_interpreter, regions_of, run
from tests.golden.run import UPDATE

GOLDEN = Path(__file__).parents[2] / "golden" / "kernels"


def convnext() -> tuple[nn.Module, Sequence[Tensor]]:
    """A wide convolution and a norm over channels, which lie next to one another."""
    model = Net(lambda n, x: n.norm(n.a(x).permute(0, 2, 3, 1)), a=depthwise(12, 7), norm=nn.LayerNorm(12))
    return model, [last(torch.randn(2, 12, 9, 10))]


def layer(function: Callable[..., Any], kernel: Any, channels: int = 5, is_last: bool = False, size: Any = (9, 20),
          more: bool = False, **settings: Any) -> tuple[nn.Module, Sequence[Tensor]]:  # fmt: skip
    """A function of one convolution."""
    inputs = [torch.randn(2, channels, *size) for _ in range(1 + more)]
    return Net(function, a=depthwise(channels, kernel, **settings)), [last(x) if is_last else x for x in inputs]


def excited(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """An activation and its average."""
    y = F.silu(net.a(x))
    return y, y.mean((2, 3), keepdim=True)


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, Sequence[Tensor]]], list[Schedule]]] = {
    "streaming_last_norm": (convnext, [Streaming(4, 16, 5, True, warps=4)]),
    "streaming_planes_gelu": (lambda: layer(lambda n, x: F.gelu(n.a(x)), 3), [Streaming(16, 8, 9, False, warps=8)]),
    "streaming_strided": (
        lambda: layer(lambda n, x: F.relu6(n.a(F.relu6(x + 1))), 3, stride=2), [Streaming(8, 4, 5, False)]
    ),
    "streaming_causal_gate": (
        lambda: layer(lambda n, x, z: F.silu(n.a(x)[..., :21]) * z, (4,), 6, True, (21,), True, padding=3),
        [Streaming(16, 8, 1, True)],
    ),
    "streaming_sums": (lambda: layer(excited, 5, is_last=True), [Streaming(8, 8, 5, True)]),
    "streaming_dilated": (
        lambda: layer(lambda n, x: n.a(x), 3, padding=2, dilation=2, bias=False), [Streaming(32, 4, 3, False)]
    ),
    "banded_k7": (lambda: layer(lambda n, x: F.relu(n.a(x)), 7), [Banded(16, 16, 5, False)]),
    "toeplitz_k31": (
        lambda: layer(lambda n, x: n.a(x) + x, 31, size=(18, 18)), [Toeplitz(32, 32, 1, True, below=2, warps=8)]
    ),
    "toeplitz_last": (lambda: layer(lambda n, x: F.gelu(n.a(x)), 13, is_last=True), [Toeplitz(16, 16, 8, False)]),
    "mixer": (
        lambda: (Net(lambda n, x: F.gelu(n.mix(x)), mix=InceptionDepthwise(18)), [torch.randn(2, 18, 12, 18)]),
        [Copying(256, 4, False), Streaming(32, 4, 12, False), Toeplitz(16, 32, 1, True), Streaming(32, 4, 12, False)],
    ),
}  # fmt: skip
"""A model with inputs, and the schedules of its branches."""


def kernel_of(name: str) -> tuple[Kernel, nn.Module, Sequence[Tensor], list[Tensor]]:
    """The kernel of a case, its model and inputs, and what it gives."""
    make, schedules = CASES[name]
    model, inputs = make()
    module = module_of(model, *inputs)
    region = regions_of(module)[-1]
    return emitted(region, schedules), model, inputs, run(module, region, schedules, *inputs)[1]


def written(kernel: Kernel) -> str:
    """All that compiling and launching a kernel takes."""
    source = kernel.source
    facts = {
        "signature": dict(source.signature), "constants": dict(source.constants), "warps": source.warps,
        "stages": source.stages, "programs": kernel.programs,
        "results": [(each.shape, each.stride, str(each.dtype)) for each in kernel.results],
    }  # fmt: skip
    return source.text + "\n" + "".join(f"# {name}: {fact}\n" for name, fact in facts.items())


@needs_interpreter
@pytest.mark.parametrize("name", CASES)
def test_source_is_as_before(name):
    """And what it gives is right."""
    kernel, model, inputs, found = kernel_of(name)
    check(model, inputs, found)
    path, text = GOLDEN / f"{name}.txt", written(kernel)
    if UPDATE:
        path.write_text(text)
    assert text.splitlines() == path.read_text().splitlines()


def test_files_are_those_of_the_cases():
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_sources_read_the_tensors_that_they_take(name):
    """Each of them, in functions whose arguments have names of their own, and that say what they compute."""
    tree = ast.parse((GOLDEN / f"{name}.txt").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        taken = [argument.arg for argument in function.args.args]
        read = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        assert len(set(taken)) == len(taken)
        assert {each for each in taken if each != "N" and each.islower()} <= read
    assert ast.get_docstring(functions[-1])
