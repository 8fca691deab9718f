"""Pointwise operators as Triton expressions: what kernels of them give, against PyTorch in float64."""

from __future__ import annotations

import functools
import itertools
import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from codegen.triton.pointwise import HELPERS, Cost, computing, cost, helpers, printable, printed
from rewrite.trace import capture
from tests.codegen.triton.pointwise_cases import (
    BINARY,
    INF,
    INTEGERS,
    NAN,
    TERNARY,
    TINY,
    UNARY,
    Case,
    Kernel,
    aten,
    errors,
    module,
    node_of,
    of,
    run,
    wrong_signs,
)
from tests.corpus import CORPUS, input_for, load

pytest.importorskip("triton")

EDGES = (
    NAN, INF, -INF, 0.0, -0.0, 1e-40, -1e-40, TINY, -TINY, 3e38, -3e38, 1e20, -1e20, 1e-8, -1e-8, 1.0, -1.0, 0.5, -0.5,
    1.5, -1.5, 2.5, -2.5, 0.49999997, -0.49999997, 3.0, -3.0, 6.0, 0.625, -0.625, 20.0, 20.5, 88.0, 89.5, -87.0, -88.0,
    -104.0, 8388607.5, -8388607.5, 8388609.0, -8388609.0, 0.1, -0.1, 1e-3, -1e-3,
)  # fmt: skip
FEW = (NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 2.5, 3.0, -1e-30, 1e30, 7.25)
ALL = (*UNARY, *BINARY, *TERNARY)


def combinations(values, count: int) -> list[Tensor]:
    return [torch.tensor(column) for column in zip(*itertools.product(values, repeat=count), strict=True)]


def spread() -> Tensor:
    """Numbers of every size and sign, more of them near 0 and 1."""
    size = torch.cat([torch.linspace(0, 12, 300), torch.logspace(-38, 38, 130), 1 + torch.linspace(-1, 1, 60) / 100])
    return torch.cat([torch.tensor(EDGES), size, -size])


NUMBERS = {0: [torch.zeros(8)], 1: [spread()], 2: combinations(FEW, 2), 3: combinations(FEW[:10], 3)}


def tensors_for(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    floats = [name for name in case.letters if name in "xyz"]
    columns = NUMBERS[len(floats)]
    found = {name: column.to(dtype) for name, column in zip(floats, columns, strict=bool(floats))}
    if "mask" in case.letters:
        found["mask"] = torch.arange(len(columns[0])) % 3 == 0
    return found


def whole(dtype: torch.dtype) -> dict[str, Tensor]:
    """Integers in all combinations, beside floats and conditions; none divides by zero."""
    limits = torch.iinfo(dtype)
    some = [each for each in (0, 1, -1, 2, -3, 7, 64, 100, 127, -128, 200, 255) if limits.min <= each <= limits.max]
    first, second = torch.tensor(list(itertools.product(some, some[1:])), dtype=dtype).T.contiguous()
    return {"n": first, "k": second, "x": second.float() / 3, "mask": torch.arange(len(first)) % 3 == 0}


def check(case: Case, tensors: dict[str, Tensor], found: Tensor) -> None:
    off, signs = errors(case, tensors, found), wrong_signs(case, tensors, found)
    worst, wrong = int(off.argmax()), int(signs.long().argmax())

    def said(i: int) -> str:
        given = {name: tensor[i].item() if tensor.dim() else tensor.item() for name, tensor in tensors.items()}
        return f"{case} of {given} is {found[i].item()}"

    assert off[worst] <= case.ulps, f"{said(worst)}, off by {float(off[worst])} units in the last place"
    assert not signs[wrong], f"{said(wrong)}, which has the other sign"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_numbers(case, dtype):
    tensors = tensors_for(case, dtype)
    check(case, tensors, run(case, tensors))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integers(dtype):
    tensors = whole(dtype)
    kernel = Kernel([node_of(case, tensors) for case in INTEGERS], len(tensors["n"]))
    for case, found in zip(INTEGERS, kernel(tensors), strict=True):
        check(case, case.taken(tensors), found)


SIZE = 16
DRAWN = st.one_of(st.sampled_from(FEW), st.floats(-200, 200, width=32, allow_subnormal=False))


@functools.cache
def kernel_of_all() -> Kernel:
    return Kernel([node_of(case, tensors_for(case, torch.float32)) for case in ALL], SIZE)


# a failure names the operator and its arguments already, and shrinking them runs all operators each time
@settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(*[st.lists(DRAWN, min_size=SIZE, max_size=SIZE)] * 3)
def test_drawn_numbers(x, y, z):
    tensors = {"x": torch.tensor(x), "y": torch.tensor(y), "z": torch.tensor(z), "mask": torch.arange(SIZE) % 2 == 0}
    for case, found in zip(ALL, kernel_of_all()(tensors), strict=True):
        check(case, case.taken(tensors), found)


@pytest.mark.parametrize("case", [
    of("mul.Tensor", "x", "y"), of("where.self", "mask", "x", "y"), of("masked_fill.Tensor", "x", "mask", "y"),
    of("eq.Tensor", "x", "y"), of("maximum", "x", "y", signed=False), of("prelu", "x", "y"),
], ids=str)  # fmt: skip
def test_a_tensor_of_one_number(case):
    tensors = {"x": spread(), "y": torch.tensor(0.5), "mask": torch.arange(len(spread())) % 3 == 0}
    tensors = case.taken(tensors)
    check(case, tensors, run(case, tensors))


COMPILE = """
import sys, triton
from pathlib import Path
from triton.backends.compiler import GPUTarget
from codegen.triton.source import Source

source = Source(Path(sys.argv[1]).read_text(), "kernel", {})
kernel = source.kernel()
signature = dict(pair.split("=") for pair in sys.argv[3:])
made = triton.compile(triton.compiler.ASTSource(fn=kernel, signature=signature), target=GPUTarget("cuda", 90, 32))
Path(sys.argv[2]).write_text(made.asm["ptx"])
"""


def test_kernels_compile_for_a_gpu(tmp_path):
    """In another process, where Triton does not interpret its own functions."""
    nodes = [node_of(case, tensors_for(case, torch.bfloat16)) for case in ALL]
    nodes += [node_of(case, whole(dtype)) for case in INTEGERS for dtype in (torch.int8, torch.int64)]
    assert {name for node in nodes for name in helpers(node)} == HELPERS.keys()
    source = module(nodes, 32)
    (tmp_path / "kernel.py").write_text(source.text)
    environment = {name: said for name, said in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    signature = [f"{name}={kind}" for name, kind in source.signature.items()]
    command = [sys.executable, "-c", COMPILE, str(tmp_path / "kernel.py"), str(tmp_path / "ptx"), *signature]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ptx = (tmp_path / "ptx").read_text()
    # the interpreter cannot tell: its maximum keeps NaN whatever it is asked for
    assert "max.NaN.f32" in ptx
    assert not re.search(r"\b(max|min)\.(ftz\.)?f32", ptx)


REFUSED = {
    "the quotient of floats may have more digits than either": [
        of("remainder.Tensor", "x", "y"), of("fmod.Scalar", "x", 3.0), of("floor_divide", "x", "y"),
        of("div.Tensor_mode", "x", "y", rounding_mode="floor"), of("div.Tensor_mode", "x", 0.1, rounding_mode="floor"),
    ],
    "Triton has no such function": [of(name) for name in ("erfc", "atan", "sinh", "lgamma", "digamma")],
    "Triton has no such literal": [of("mul.Tensor", "x", 1e-40), of("celu", "x", 1e39), of("clamp_min", "x", -0.0)],
    "float64": [of("_to_copy", dtype=torch.float64), of("add.Tensor", "wide", 1), of("gt.Scalar", "wide", 1),
                of("masked_fill.Scalar", "wide", "mask", 1)],
    "complex numbers": [of("abs", "complex"), of("mul.Tensor", "x", "complex")],
    "integers": [
        of("floor", "n"), of("div.Tensor_mode", "n", 0, rounding_mode="floor"), of("pow.Tensor_Scalar", "n", 5),
    ],
    "conditions": [of("add.Tensor", "mask", "mask"), of("maximum", "mask", "mask"), of("mul.Tensor", "mask", "mask")],
    "numbers out of range": [of("round.decimals", decimals=2), of("pow.Scalar", -2.0, "x"), of("pow.Scalar", 1, "x")],
    "no function of its arguments alone": [of("dropout", "x", 0.5, True), of("_to_copy", device="meta")],
    "not elementwise": [of("sum"), of("sort"), of("softmax.int", "x", 0), of("prelu", "picture", "x")],
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_infinities_become_the_largest_numbers_of_the_dtype(dtype):
    x = torch.tensor([NAN, INF, -INF, 1.5], dtype=dtype)
    assert torch.equal(run(of("nan_to_num"), {"x": x}), x.nan_to_num())


@pytest.mark.parametrize(("reason", "case"), [(reason, case) for reason, cases in REFUSED.items() for case in cases],
                         ids=str)  # fmt: skip
def test_what_is_not_printed(reason, case):
    tensors = {
        "x": torch.ones(3), "y": torch.ones(3), "n": torch.ones(3, dtype=torch.int32), "mask": torch.ones(3) > 0,
        "wide": torch.ones(3).double(), "complex": torch.ones(3) * 1j, "picture": torch.ones(2, 3, 4, 4),
    }  # fmt: skip
    node = node_of(case, tensors)
    assert not printable(node), reason
    with pytest.raises(ValueError, match=r"\w"):
        printed(node, {operand: operand.name for operand in node.all_input_nodes})


def test_sizes_and_inputs_are_not_printed():
    node = node_of(of("add.Tensor", "x", "y"), {"x": torch.ones(3), "y": torch.ones(3)})
    assert printable(node)
    assert not printable(node.all_input_nodes[0])
    compared = node_of(of("eq.Tensor", "x", "y"), {"x": torch.ones(3), "y": torch.ones(3)})
    for each in (node, compared):
        each.all_input_nodes[1].meta["val"] = 3  # as of a size
        assert not printable(each)


@pytest.mark.parametrize(("case", "dtype", "text", "expected"), [
    (of("add.Tensor", "x", "y"), torch.float16, "x + y", Cost(1)),
    (of("add.Tensor", "x", "y", alpha=2), torch.float32, "x + 2.0 * y", Cost(1)),
    (of("addcmul", "x", "y", "z"), torch.float32, "x + y * z", Cost(1)),
    (of("div.Tensor", "x", 4), torch.float32, "x * 0.25", Cost(1)),
    (of("div.Tensor", "x", 2e38), torch.float32, "x / 2e+38", Cost(1, 1)),
    (of("div.Tensor", "x", "y"), torch.float32, "x / y", Cost(1, 1)),
    (of("relu"), torch.bfloat16, "relu(x)", Cost(1)),
    (of("relu6"), torch.float32, "clamp(x, 0.0, 6.0)", Cost(2)),
    (of("gelu", approximate="tanh"), torch.float32, "gelu_tanh(x)", Cost(6, 2)),
    (of("exp"), torch.float32, "tl.exp(x)", Cost(1, 1)),
    (of("hardswish"), torch.float32, "hardswish(x)", Cost(5)),
    (of("masked_fill.Scalar", "x", "mask", -INF), torch.float32, 'tl.where(mask, float("-inf"), x)', Cost(1)),
    (of("mul.Tensor", "mask", "x"), torch.float32, "mask.to(tl.float32) * x", Cost(2)),
    (of("gt.Scalar", "x", 0.1), torch.float16, "x > 0.0999755859375", Cost(1)),
    (of("_to_copy", dtype=torch.float16), torch.float32, "x", Cost()),
    (of("_to_copy", dtype=torch.int8), torch.float32, "x.to(tl.int32).to(tl.int8).to(tl.int32)", Cost(3)),
], ids=str)  # fmt: skip
def test_expressions_and_their_cost(case, dtype, text, expected):
    tensors = dict.fromkeys("xyz", torch.ones(3, dtype=dtype)) | {"mask": torch.ones(3) > 0}
    node = node_of(case, tensors)
    assert printed(node, {operand: operand.name for operand in node.all_input_nodes}) == text
    assert cost(node) == expected


def test_types():
    assert computing(torch.bfloat16) == computing(torch.float16) == computing(torch.float32) == "tl.float32"
    assert computing(torch.bool) == "tl.int1"
    assert computing(torch.uint8) == computing(torch.int32) == "tl.int32"
    assert computing(torch.int64) == "tl.int64"
    assert computing(torch.float64) is computing(torch.complex64) is None


def test_helpers_come_after_those_that_they_call():
    node = node_of(of("hardswish"), {"x": torch.ones(3)})
    assert helpers(node) == ("clamp", "hardsigmoid", "hardswish")


QUICK = ("convnextv2_atto", "mobilenetv3_small_050")
NOT_TAGGED = {aten.hardswish.default, aten.to.other, aten.to.dtype, aten._to_copy.default, aten.log_sigmoid.default}


@pytest.mark.corpus
@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CORPUS
])  # fmt: skip
def test_all_pointwise_operators_of_networks_are_printed(name):
    model = load(name)
    nodes = [node for node in capture(model, (input_for(model, batch=1),)).graph.calls()
             if node.target in NOT_TAGGED or torch.Tag.pointwise in getattr(node.target, "tags", ())]  # fmt: skip
    assert nodes
    assert [node.format_node() for node in nodes if not printable(node)] == []
