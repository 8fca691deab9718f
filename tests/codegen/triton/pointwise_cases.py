"""Pointwise operators with arguments, kernels of them, and what PyTorch gives in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate, map_arg

from codegen.triton.pointwise import HELPERS, computing, helpers, printed
from codegen.triton.source import Source

aten = torch.ops.aten
NAN, INF = float("nan"), float("inf")
TINY, LARGEST = 2.0**-126, 2.0**126
LETTERS = ("complex", "k", "mask", "n", "picture", "wide", "x", "y", "z")
KINDS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.bool: "*i1", torch.int8: "*i8",
    torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An operator with its arguments, of which the strings in ``LETTERS`` stand for tensors.

    Attributes:
        ulps: how far the result may be off, in units in the last place of float32.
        beside: of the tensors in float64, numbers to whose last place the result is that exact.
        signed: whether a zero has the sign that PyTorch gives it.
        stepped: whether the result depends on roundings, so that PyTorch has to compute in float32 too.
    """

    target: Any
    arguments: tuple[Any, ...] = ("x",)
    keywords: dict[str, Any] = field(default_factory=dict)
    ulps: float = 1
    beside: Callable[..., Tensor] | None = None
    signed: bool = True
    stepped: bool = False

    def __str__(self) -> str:
        said = [*map(str, self.arguments), *(f"{name}={argument}" for name, argument in self.keywords.items())]
        return f"{str(self.target).removeprefix('aten.')}({','.join(said)})"

    @property
    def letters(self) -> list[str]:
        """The tensors that it takes."""
        given = (*self.arguments, *self.keywords.values())
        return [letter for letter in LETTERS if any(isinstance(each, str) and each == letter for each in given)]

    def taken(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of some tensors that it takes."""
        return {letter: tensors[letter] for letter in self.letters}

    def called(self, known: dict[str, Any], dtype: Callable[[torch.dtype], torch.dtype] = lambda each: each) -> Any:
        """The result for these tensors; see :func:`filled`."""
        args, kwargs = filled((self.arguments, self.keywords), known, dtype)
        return self.target(*args, **kwargs)


def filled(values: Any, known: dict[str, Any], dtype: Callable[[torch.dtype], torch.dtype] = lambda each: each) -> Any:
    """Arguments with values in the place of the letters, and dtypes in the place of others."""

    def one(each: Any) -> Any:
        if isinstance(each, torch.dtype):
            return dtype(each)
        return known.get(each, each) if isinstance(each, str) else each

    return map_aggregate(values, one)


def of(name: str, *arguments: Any, **settings: Any) -> Case:
    """A case by the name of its operator; settings that are not of the case are keywords."""
    packet, _, overload = name.partition(".")
    kept = {each: settings.pop(each) for each in ("ulps", "beside", "signed", "stepped") if each in settings}
    return Case(getattr(getattr(aten, packet), overload or "default"), arguments or ("x",), settings, **kept)


def both(x: Tensor, y: Tensor) -> Tensor:
    return x.abs() + y.abs()


def small(x: Tensor) -> Tensor:
    """What is lost where an exponential in the denominator overflows."""
    return x * 2.0**-103


UNARY = [
    *(of(name, ulps=0) for name in ("neg", "abs", "sign", "floor", "ceil", "trunc", "round", "hardshrink", "detach")),
    *(of(name, ulps=0) for name in ("positive", "clone", "alias", "isnan", "isinf", "isfinite", "logical_not")),
    *(of(name) for name in ("square", "reciprocal", "sqrt")),
    *(of(name, ulps=2) for name in ("rsqrt", "erf", "hardsigmoid", "sin", "cos")),
    *(of(name, ulps=3) for name in ("exp", "exp2", "sigmoid", "hardswish", "selu", "tanh")),
    *(of(name, ulps=4) for name in ("log", "log2", "log10", "log1p", "expm1", "elu")),
    *(of(name, ulps=0, signed=False) for name in ("relu", "relu6", "hardtanh")), of("softshrink", signed=False),
    of("log_sigmoid", ulps=5, signed=False), of("softplus", ulps=5), of("softplus", "x", 2.0, 5.0, ulps=5),
    of("silu", ulps=3, beside=small), of("mish", ulps=4, beside=small), of("gelu", ulps=2, beside=lambda x: x),
    of("gelu", approximate="tanh", ulps=2, beside=lambda x: x), of("hardtanh", "x", -0.3, 2),
    of("leaky_relu"), of("leaky_relu", "x", 0.3), of("elu", "x", 0.5, 2.0, 0.7, ulps=4), of("celu", "x", 0.7, ulps=4),
    of("threshold", "x", 0.1, -3, ulps=0, stepped=True), of("round.decimals", decimals=0),
    of("nan_to_num", "x", 3.0, 7.0, -8), of("dropout", "x", 0.5, False), of("_to_copy", dtype=torch.float32),
    of("_to_copy", dtype=torch.float16),
    of("_to_copy", dtype=torch.bool), of("to.dtype", "x", torch.float16), of("to.other", "x", "y"),
    *(of("pow.Tensor_Scalar", "x", power, ulps=3) for power in (0, 1, 2, 3, 4, 5, -1, -3, 0.5, -0.5, 1.5, 2.3, -7.25)),
    of("pow.Tensor_Scalar", "x", -2, ulps=6), *(of("pow.Scalar", base, "x", ulps=3) for base in (2, 10000.0, 0.7)),
]  # fmt: skip

BINARY = [
    of("add.Tensor", "x", "y"), of("add.Tensor", "x", 0.3, ulps=2, beside=lambda x: x), of("add.Scalar", "x", 2),
    of("add.Tensor", "x", "y", alpha=2.5, beside=lambda x, y: 2.5 * y), of("sub.Tensor", "x", "y"),
    of("sub.Tensor", "x", "y", alpha=3, beside=lambda x, y: 3 * y), of("rsub.Scalar", "x", 1),
    of("sub.Scalar", "x", -0.7, ulps=2, beside=lambda x: x), of("rsub.Tensor", "x", "y"),
    of("rsub.Tensor", "x", "y", alpha=0.1, beside=both),
    of("mul.Tensor", "x", "y"), of("mul.Scalar", "x", 0.3), of("mul.Tensor", "x", INF),
    of("div.Tensor", "x", "y"), of("div.Tensor", "x", 6), of("div.Scalar", "x", -0.3), of("div.Tensor", "x", 0),
    of("div.Tensor", "x", INF), of("true_divide.Tensor", "x", "y"),
    of("div.Tensor_mode", "x", "y", rounding_mode=None),
    of("div.Tensor_mode", "x", "y", rounding_mode="trunc", ulps=0, stepped=True),
    of("div.Scalar_mode", "x", 3, rounding_mode="trunc", ulps=0, stepped=True),
    of("div.Tensor_mode", "x", 3, rounding_mode="floor"),
    of("div.Scalar_mode", "x", -0.5, rounding_mode="floor"), of("floor_divide.Scalar", "x", 7),
    of("pow.Tensor_Tensor", "x", "y"), of("_prelu_kernel", "x", "y"),
    *(of(f"{name}.Tensor", "x", "y") for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    *(of(f"{name}.Scalar", "x", 0.1) for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    *(of(name, "x", "y") for name in ("logical_and", "logical_or", "logical_xor")),
    *(of(name, "x", "y", ulps=0, signed=False) for name in ("maximum", "minimum", "max.other", "min.other")),
    *(of(name, "x", "y", ulps=0, signed=False) for name in ("fmax", "fmin")),
    *(of(name, "x", "y", ulps=0, signed=False) for name in ("clamp_min.Tensor", "clamp_max.Tensor", "clamp.Tensor")),
    of("clamp.Tensor", "x", "y", "z", signed=False), of("clamp.Tensor", "x", None, "y", signed=False),
    of("clamp", "x", -0.5, 2), of("clamp", "x", None, 2), of("clamp", "x", 3, 2), of("clamp", "x", -0.5),
    of("clamp", "x", NAN), of("clip", "x", 0.5), of("clamp_min", "x", 1e-6), of("clamp_max", "x", 0.3),
    of("where.self", "mask", "x", "y"), of("where.ScalarSelf", "mask", -INF, "x"),
    of("where.ScalarOther", "mask", "x", 0), of("masked_fill.Scalar", "x", "mask", -INF),
    of("masked_fill.Scalar", "x", "mask", NAN), of("masked_fill.Scalar", "x", "mask", -1e4),
    of("lerp.Scalar", "x", "y", 0.3, ulps=2, beside=both), of("lerp.Scalar", "x", "y", 0.7, ulps=2, beside=both),
]  # fmt: skip

TERNARY = [
    of("clamp.Tensor", "x", "y", "z", signed=False), of("addcmul", "x", "y", "z", beside=lambda x, y, z: y * z),
    of("addcmul", "x", "y", "z", value=0.3, beside=lambda x, y, z: y * z, ulps=2),
    of("addcdiv", "x", "y", "z", beside=lambda x, y, z: y / z),
    of("addcdiv", "x", "y", "z", value=0.3, beside=lambda x, y, z: y / z, ulps=2),
    of("lerp.Tensor", "x", "y", "z", ulps=3, beside=lambda x, y, z: (x.abs() + y.abs()) * (1 + z.abs())),
]  # fmt: skip

INTEGERS = [
    *(of(name, "n") for name in ("neg", "abs", "sign", "square", "relu", "bitwise_not", "clone", "logical_not")),
    *(of(f"{name}.Tensor", "n", "k") for name in ("add", "sub", "mul", "rsub", "eq", "lt", "ge", "remainder", "fmod")),
    *(of(f"bitwise_{name}.Tensor", "n", "k") for name in ("and", "or", "xor")),
    *(of(f"bitwise_{name}.Scalar", "n", 5) for name in ("and", "or", "xor")),
    *(of(name, "n", "k") for name in ("maximum", "minimum", "logical_and", "logical_or", "logical_xor")),
    of("add.Tensor", "n", 3), of("add.Tensor", "n", "k", alpha=3), of("mul.Scalar", "n", 3), of("rsub.Scalar", "n", 1),
    of("remainder.Scalar", "n", 7), of("fmod.Scalar", "n", 7), of("floor_divide", "n", "k"),
    of("div.Tensor_mode", "n", "k", rounding_mode="trunc"), of("div.Tensor_mode", "n", 7, rounding_mode="floor"),
    of("pow.Tensor_Scalar", "n", 2), of("pow.Tensor_Scalar", "n", 3), of("addcmul", "n", "n", "k"),
    of("clamp", "n", 2, 100), of("clamp_min", "n", 2), of("clamp_max", "n", 2), of("clamp.Tensor", "n", "k"),
    of("where.self", "mask", "n", "k"), of("where.ScalarOther", "mask", "n", 3),
    of("masked_fill.Scalar", "n", "mask", 3), of("eq.Scalar", "n", 100),
    of("eq.Scalar", "n", 2.5), of("gt.Scalar", "n", 2), of("gt.Scalar", "n", 0.5),
    *(of("_to_copy", "n", dtype=dtype) for dtype in KINDS if dtype != torch.bfloat16),
    *(of("_to_copy", "x", dtype=dtype) for dtype in (torch.int8, torch.int16, torch.int32, torch.int64)),
    # with fractions
    of("add.Tensor", "n", 0.5), of("mul.Tensor", "n", "x"), of("div.Tensor", "n", "k"), of("div.Tensor", "n", 3),
    of("sqrt", "n"), of("sigmoid", "n", ulps=4), of("lt.Tensor", "n", "x"), of("maximum", "x", "n"),
    # of conditions
    of("add.Tensor", "mask", "n"), of("mul.Tensor", "mask", "x"), of("bitwise_not", "mask"), of("clone", "mask"),
    of("logical_and", "mask", "n"), of("bitwise_xor.Tensor", "mask", "mask"), of("eq.Tensor", "mask", "mask"),
    of("lt.Tensor", "mask", "n"), of("ne.Scalar", "mask", 0), of("where.self", "mask", "mask", "mask"),
    of("_to_copy", "mask", dtype=torch.float32), of("_to_copy", "mask", dtype=torch.int64),
    of("masked_fill.Scalar", "mask", "mask", 0), of("_to_copy", "mask", dtype=torch.uint8),
]  # fmt: skip


def node_of(case: Case, tensors: dict[str, Tensor]) -> Node:
    """The only operator of a graph, with recorded values."""
    graph, fake = Graph(), FakeTensorMode()
    inputs = {name: graph.placeholder(name) for name in case.letters}
    for name, node in inputs.items():
        node.meta["val"] = fake.from_tensor(tensors[name])
    arguments, keywords = filled((case.arguments, case.keywords), inputs)
    made = graph.call_function(case.target, arguments, keywords)
    args, kwargs = map_arg((made.args, made.kwargs), lambda node: node.meta["val"])
    with fake:
        made.meta["val"] = case.target(*args, **kwargs)
    return made


def module(nodes: Sequence[Node], count: int) -> Source:
    """A kernel that computes operators and stores their results, those of one dtype one after the other.

    Integers are stored as they are held, lest the store does what an operator should have done.
    """
    signature: dict[str, str] = {}
    names: dict[str, None] = {}
    lines = [f"    at = tl.arange(0, {count})"]

    def pointer(name: str, dtype: torch.dtype) -> str:
        said = f"{name}_{short(dtype)}"
        signature[f"{said}_pointer"] = KINDS[dtype]
        return said

    for i, node in enumerate(nodes):
        operands = {}
        for operand in node.all_input_nodes:
            dtype = operand.meta["val"].dtype
            operands[operand] = pointer(operand.name, dtype)
            at = " + at" if operand.meta["val"].dim() else ""
            lines.append(f"    {operands[operand]} = tl.load({operands[operand]}_pointer{at}).to({computing(dtype)})")
        names.update(dict.fromkeys(helpers(node)))
        dtype = stored(node)
        lines += [
            f"    found = {printed(node, operands)}",
            f"    tl.static_assert(found.dtype == {computing(dtype)})",
            f"    tl.store({pointer('result', dtype)}_pointer + {i * count} + at, found)",
        ]
    head = ["import triton\nimport triton.language as tl", *(HELPERS[name] for name in names)]
    kernel = f"@triton.jit\ndef kernel({', '.join(signature)}):\n" + "\n".join(lines)
    return Source("\n\n\n".join([*head, kernel]) + "\n", "kernel", signature)


def stored(node: Node) -> torch.dtype:
    """The dtype of the results in memory."""
    dtype: torch.dtype = node.meta["val"].dtype
    return torch.int32 if computing(dtype) == "tl.int32" else dtype


@dataclass
class Kernel:
    """A kernel of operators of tensors of one size, to be run any number of times.

    Attributes:
        nodes: the operators.
        size: of the tensors.
    """

    nodes: Sequence[Node]
    size: int

    def __post_init__(self) -> None:
        self.count = 1 << (self.size - 1).bit_length()
        self.source = module(self.nodes, self.count)
        self.function = self.source.kernel()

    def __call__(self, tensors: dict[str, Tensor]) -> list[Tensor]:
        """The results in order."""
        given = {f"{name}_{short(tensor.dtype)}_pointer": self._filled(tensor) for name, tensor in tensors.items()}
        dtypes = list(map(stored, self.nodes))
        results = {dtype: torch.empty(len(dtypes) * self.count, dtype=dtype) for dtype in dtypes}
        given |= {f"result_{short(dtype)}_pointer": result for dtype, result in results.items()}
        with np.errstate(all="ignore"):
            self.function[(1,)](*(given[name] for name in self.source.signature))
        return [results[dtype][i * self.count :][: self.size] for i, dtype in enumerate(dtypes)]

    def _filled(self, tensor: Tensor) -> Tensor:
        """As large as what a kernel loads."""
        return torch.cat([tensor, tensor[:1].expand(self.count - self.size)]) if tensor.dim() else tensor


def run(case: Case, tensors: dict[str, Tensor]) -> Tensor:
    """What a kernel of one operator gives."""
    (found,) = Kernel([node_of(case, tensors)], max(tensor.numel() for tensor in tensors.values()))(tensors)
    return found


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def last_place(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between numbers of a dtype that are as large as these."""
    limits = torch.finfo(dtype)
    return numbers.abs().clamp(limits.tiny, limits.max).log2().floor().exp2() * limits.eps


def wrong_signs(case: Case, tensors: dict[str, Tensor], found: Tensor) -> Tensor:
    """Where a result, or a zero, has another sign than PyTorch gives it."""
    wanted = wide(case, tensors)
    known = wanted.abs() > TINY if case.signed else wanted.abs() > 1
    if not found.is_floating_point() or case.beside is not None:
        return torch.zeros_like(known)
    return (found.signbit() != wanted.signbit()) & (known | (case.signed & ~wanted.isnan()))


def wide(case: Case, tensors: dict[str, Tensor]) -> Tensor:
    """What PyTorch gives in float64, or in float32 where it has to."""
    dtype = torch.float32 if case.stepped else torch.float64
    known = {name: each.to(dtype) if each.is_floating_point() else each for name, each in tensors.items()}
    wanted: Tensor = case.called(known, lambda each: dtype if each.is_floating_point else each)
    return wanted.double()


def errors(case: Case, tensors: dict[str, Tensor], found: Tensor) -> Tensor:
    """By how many units in the last place of float32 a result is off, beyond its own rounding; infinite if it is wrong.

    Numbers below the smallest normal one count as zero, and nothing is asked where a part of a sum may overflow.
    """
    if not found.is_floating_point():
        return torch.where(found != case.called(tensors), INF, 0.0)
    wanted = wide(case, tensors)
    doubles = {name: tensors[name].double() for name in case.letters}
    beside = torch.zeros(()) if case.beside is None else case.beside(**doubles).abs().nan_to_num(0, INF)
    size = torch.maximum(wanted.abs().nan_to_num(0), beside)
    rounding = TINY + (0 if found.dtype == torch.float32 else last_place(wanted, found.dtype) / 2)
    off = ((found.double() - wanted).abs() - rounding).clamp_min(0) / last_place(size, torch.float32)
    rounded = wanted.to(found.dtype)
    is_same = (found == rounded) | (found.isnan() & rounded.isnan())
    off = torch.where(found.isfinite() & rounded.isfinite(), off, torch.where(is_same, 0.0, INF))
    return torch.where((beside > LARGEST) & beside.isfinite(), 0.0, off)
