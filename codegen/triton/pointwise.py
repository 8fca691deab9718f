"""Pointwise operators as Triton expressions, one for each node of a graph.

Values of a kernel have one of four types: those of every floating dtype are float32 and are not rounded in between,
integers are as in memory or wider, and wrap where their dtype does. There is no code where the result would not be that
of PyTorch: float64, remainders of numbers with fractions, functions that Triton does not have. On a GPU, where
divisions and exponentials may be off by some units in the last place, numbers below ``2 ** -126`` may count as zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from codegen.triton.pointwise_helpers import HELPERS, Cost, called, cost_of
from rewrite import compat
from rewrite.ops import arguments, is_tensor, value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.fx import Node

__all__ = ["HELPERS", "Cost", "computing", "cost", "helpers", "printable", "printed"]

aten = torch.ops.aten

_FLOATING = frozenset({torch.float16, torch.bfloat16, torch.float32})
_NARROW = {torch.int8: "tl.int8", torch.uint8: "tl.uint8", torch.int16: "tl.int16"}
_COMPUTING = {
    **dict.fromkeys(_FLOATING, "tl.float32"), **dict.fromkeys(_NARROW, "tl.int32"),
    torch.int32: "tl.int32", torch.int64: "tl.int64", torch.bool: "tl.int1",
}  # fmt: skip
_LEAST, _LARGEST = 2.0**-126, torch.finfo(torch.float32).max

_FOR_NUMBERS = {
    aten.add.Tensor: "{self} + {alpha} * {other}", aten.add.Scalar: "{self} + {alpha} * {other}",
    aten.sub.Tensor: "{self} - {alpha} * {other}", aten.sub.Scalar: "{self} - {alpha} * {other}",
    aten.rsub.Tensor: "{other} - {alpha} * {self}", aten.rsub.Scalar: "{other} - {alpha} * {self}",
    aten.mul.Tensor: "{self} * {other}", aten.mul.Scalar: "{self} * {other}",
    aten.addcmul.default: "{self} + {value} * {tensor1} * {tensor2}",
    aten.square.default: "{self} * {self}", aten.abs.default: "tl.abs({self})",
    aten.sign.default: "({self} > 0).to({type}) - ({self} < 0).to({type})",
    aten.maximum.default: "maximum({self}, {other})", aten.minimum.default: "minimum({self}, {other})",
    aten.max.other: "maximum({self}, {other})", aten.min.other: "minimum({self}, {other})",
    aten.clamp_min.default: "maximum({self}, {min})", aten.clamp_min.Tensor: "maximum({self}, {min})",
    aten.clamp_max.default: "minimum({self}, {max})", aten.clamp_max.Tensor: "minimum({self}, {max})",
}  # fmt: skip
"""Results with or without fractions. Factors ``alpha`` and ``value`` of one are left out."""

_FOR_FLOATS = {
    aten.neg.default: "{self} * -1.0", aten.reciprocal.default: "1.0 / {self}",
    aten.sqrt.default: "tl.sqrt_rn({self})", aten.rsqrt.default: "tl.rsqrt({self})",
    aten.exp.default: "tl.exp({self})", aten.exp2.default: "tl.exp2({self})", aten.expm1.default: "expm1({self})",
    aten.log.default: "tl.log({self})", aten.log2.default: "tl.log2({self})", aten.log1p.default: "log1p({self})",
    aten.log10.default: f"tl.log({{self}}) * {1 / math.log(10)!r}",
    aten.sin.default: "tl.sin({self})", aten.cos.default: "tl.cos({self})", aten.tanh.default: "tanh({self})",
    aten.erf.default: "tl.erf({self})", aten.floor.default: "tl.floor({self})", aten.ceil.default: "tl.ceil({self})",
    aten.trunc.default: "truncated({self})", aten.round.default: "rounded({self})",
    aten.sigmoid.default: "sigmoid({self})", aten.log_sigmoid.default: "log_sigmoid({self})",
    aten.silu.default: "silu({self})", aten.mish.default: "mish({self})", aten.relu.default: "relu({self})",
    aten.relu6.default: "clamp({self}, 0.0, 6.0)", aten.hardtanh.default: "clamp({self}, {min_val}, {max_val})",
    aten.hardsigmoid.default: "hardsigmoid({self})", aten.hardswish.default: "hardswish({self})",
    aten.leaky_relu.default: "leaky_relu({self}, {negative_slope})",
    aten._prelu_kernel.default: "leaky_relu({self}, {weight})",
    aten.elu.default: "elu({self}, {alpha}, {scale}, {input_scale})",
    aten.selu.default: "elu({self}, 1.6732632423543772, 1.0507009873554805, 1.0)",
    aten.softplus.default: "softplus({self}, {beta}, {threshold})",
    aten.softshrink.default: "softshrink({self}, {lambd})",
    aten.hardshrink.default: "tl.where(tl.abs({self}) <= {lambd}, 0.0, {self})",
    aten.threshold.default: "tl.where({self} <= {threshold}, {value}, {self})",
    aten.addcdiv.default: "{self} + {value} * ({tensor1} / {tensor2})",
    aten.lerp.Scalar: "lerp({self}, {end}, {weight})", aten.lerp.Tensor: "lerp({self}, {end}, {weight})",
    aten.pow.Tensor_Tensor: "power({self}, {exponent})",
    aten.fmax.default: "tl.where(({self} > {other}) | ({other} != {other}), {self}, {other})",
    aten.fmin.default: "tl.where(({self} < {other}) | ({other} != {other}), {self}, {other})",
}  # fmt: skip

_FOR_INTEGERS = {
    aten.neg.default: "0 - {self}", aten.relu.default: "maximum({self}, 0)",
    aten.bitwise_and.Tensor: "{self} & {other}", aten.bitwise_and.Scalar: "{self} & {other}",
    aten.bitwise_or.Tensor: "{self} | {other}", aten.bitwise_or.Scalar: "{self} | {other}",
    aten.bitwise_xor.Tensor: "{self} ^ {other}", aten.bitwise_xor.Scalar: "{self} ^ {other}",
    aten.bitwise_not.default: "~{self}",
    aten.remainder.Tensor: "remainder_integer({self}, {other})",
    aten.remainder.Scalar: "remainder_integer({self}, {other})",
    aten.fmod.Tensor: "{self} % {other}", aten.fmod.Scalar: "{self} % {other}",
}  # fmt: skip

_FOR_ALL = {
    aten.where.self: "tl.where({condition}, {self}, {other})",
    aten.where.ScalarSelf: "tl.where({condition}, {self}, {other})",
    aten.where.ScalarOther: "tl.where({condition}, {self}, {other})",
    aten.masked_fill.Scalar: "tl.where({mask}, {value}, {self})",
    aten.masked_fill.Tensor: "tl.where({mask}, {value}, {self})",
}  # fmt: skip

_CONDITIONS = frozenset({"condition", "mask"})
"""Arguments of the above that are of bool whatever the result is of."""

_COMPARISONS = {
    aten.eq.Tensor: "{self} == {other}", aten.eq.Scalar: "{self} == {other}",
    aten.ne.Tensor: "{self} != {other}", aten.ne.Scalar: "{self} != {other}",
    aten.lt.Tensor: "{self} < {other}", aten.lt.Scalar: "{self} < {other}",
    aten.le.Tensor: "{self} <= {other}", aten.le.Scalar: "{self} <= {other}",
    aten.gt.Tensor: "{self} > {other}", aten.gt.Scalar: "{self} > {other}",
    aten.ge.Tensor: "{self} >= {other}", aten.ge.Scalar: "{self} >= {other}",
    aten.isnan.default: "{self} != {self}", aten.isinf.default: 'tl.abs({self}) == float("inf")',
    aten.isfinite.default: 'tl.abs({self}) < float("inf")',
}  # fmt: skip
"""They compare in the dtype that their arguments have in common."""

_TRUTHS = {
    aten.logical_and.default: "{self} & {other}", aten.logical_or.default: "{self} | {other}",
    aten.logical_xor.default: "{self} ^ {other}", aten.logical_not.default: "~{self}",
    aten.bitwise_and.Tensor: "{self} & {other}", aten.bitwise_or.Tensor: "{self} | {other}",
    aten.bitwise_xor.Tensor: "{self} ^ {other}", aten.bitwise_not.default: "~{self}",
}  # fmt: skip
"""They ask whether their arguments are other than zero."""


class _Unprintable(ValueError):
    """There is no code for an operator with its arguments."""


def printable(node: Node) -> bool:
    """Whether there is code for a pointwise operator with these arguments."""
    try:
        _expression(node)
    except _Unprintable:
        return False
    return True


def printed(node: Node, operands: Mapping[Node, str]) -> str:
    """The result as a Triton expression, in the type in which values of its dtype are held in a kernel.

    Args:
        node: a pointwise operator.
        operands: for each tensor argument the name of a Triton value, of the type in which its dtype is held; or an
            expression that binds as tightly, such as ``x[:, None]``.

    Raises:
        ValueError: there is no code for it.
    """
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or not is_tensor(node):
        raise _Unprintable(f"'{node.name}' is not an operator with a tensor as its result")
    call = _Call(node, arguments(node), operands)
    _type(call.dtype)
    if node.target in _printers:
        return _printers[node.target](call)
    if node.target in _FOR_ALL:
        return call.filled(_FOR_ALL[node.target])
    if call.dtype != torch.bool:
        table = _FOR_FLOATS if call.is_floating else _FOR_INTEGERS
        return call.computed(table.get(node.target) or _FOR_NUMBERS.get(node.target))
    if node.target in _COMPARISONS:
        return call.compared(_COMPARISONS[node.target])
    return call.filled(_TRUTHS.get(node.target))


def helpers(node: Node) -> tuple[str, ...]:
    """The names of the functions of :data:`HELPERS` that the module of the expression has to contain, callees first."""
    return called(_expression(node))


def cost(node: Node) -> Cost:
    """What a printable operator costs for each element."""
    return cost_of(_expression(node))


def computing(dtype: torch.dtype) -> str | None:
    """The type in which values of a dtype are held in a kernel; None where it holds none of the dtype."""
    return _COMPUTING.get(dtype)


def _expression(node: Node) -> str:
    return printed(node, dict.fromkeys(node.all_input_nodes, "x"))


@dataclass(frozen=True)
class _Call:
    """An operator with its arguments by schema name, which are printed as values of a dtype."""

    node: Node
    arguments: Mapping[str, Any]
    operands: Mapping[Node, str]

    @property
    def dtype(self) -> torch.dtype:
        """Of the result."""
        return value(self.node).dtype

    @property
    def is_floating(self) -> bool:
        """Whether the result is."""
        return self.dtype in _FLOATING

    def number(self, name: str) -> float | None:
        """An argument that is a plain number, None for others."""
        argument = self.arguments[name]
        return argument if isinstance(argument, (int, float)) else None

    def term(self, name: str, dtype: torch.dtype) -> str:
        """An argument as a value of a dtype."""
        argument = self.arguments[name]
        if isinstance(argument, (int, float)):
            return _literal(argument, dtype)
        if not is_tensor(argument):
            raise _Unprintable(f"the argument {name} of '{self.node.name}' is neither a tensor nor a number")
        return _converted(self.operands[argument], value(argument).dtype, dtype)

    def filled(self, template: str | None, dtype: torch.dtype | None = None) -> str:
        """A template with arguments in the places of their names, as values of a dtype, by default of the result's."""
        if template is None:
            raise _Unprintable(f"there is no code for {self.node.target} of {self.dtype}")
        return template.format_map(_Terms(self, self.dtype if dtype is None else dtype))

    def computed(self, template: str | None) -> str:
        """A template for arithmetic, which wraps where the dtype does."""
        for factor in ("alpha", "value"):
            if template is not None and self.arguments.get(factor) == 1:
                template = template.replace(f"{{{factor}}} * ", "")
        text = self.filled(template)
        return _wrapped(f"({text})", self.dtype) if self.dtype in _NARROW else text

    def compared(self, template: str) -> str:
        """A template for comparisons, in the dtype that the arguments have in common and to which numbers round."""
        first = value(self.arguments["self"])
        other = self.arguments.get("other", self.arguments["self"])
        if is_tensor(other):
            return self.filled(template, torch.result_type(first, value(other)))
        number = self.number("other")
        if number is None:
            raise _Unprintable(f"'{self.node.name}' compares with neither a tensor nor a number")
        common = torch.result_type(first, number)
        if common in _FLOATING:
            number = torch.tensor(number, dtype=common).item()
        return replace(self, arguments={**self.arguments, "other": number}).filled(template, common)


@dataclass(frozen=True)
class _Terms:
    """What :meth:`str.format_map` asks for the names in a template."""

    call: _Call
    dtype: torch.dtype

    def __getitem__(self, name: str) -> str:
        if name == "type":
            return _type(self.dtype)
        return self.call.term(name, torch.bool if name in _CONDITIONS else self.dtype)


def _type(dtype: torch.dtype) -> str:
    if dtype not in _COMPUTING:
        raise _Unprintable(f"kernels hold no values of {dtype}")
    return _COMPUTING[dtype]


def _converted(text: str, source: torch.dtype, target: torch.dtype) -> str:
    """A value of a dtype as one of another dtype that has all its numbers, or of bool."""
    held, wanted = _type(source), _type(target)
    if held == wanted:
        return text
    return f"({text} != 0)" if target == torch.bool else f"{text}.to({wanted})"


def _wrapped(text: str, dtype: torch.dtype) -> str:
    """An integer without the bits for which a dtype has no room."""
    return f"{text}.to({_NARROW[dtype]}).to(tl.int32)"


def _literal(number: float, dtype: torch.dtype) -> str:
    """A number as Triton reads it, which forgets the sign of zero and takes numbers for float64 that are not normal."""
    if dtype in _FLOATING:
        number = float(number)
        if not math.isfinite(number):
            return f'float("{number}")'
        if (number == 0 and math.copysign(1, number) > 0) or _LEAST <= abs(number) <= _LARGEST:
            return repr(number)
    elif dtype == torch.bool:
        return repr(bool(number))
    elif isinstance(number, int) and torch.iinfo(dtype).min <= number <= torch.iinfo(dtype).max:
        return repr(int(number))
    raise _Unprintable(f"{number} is no literal of {dtype}")


_printers: dict[Any, Callable[[_Call], str]] = {}


def _prints(*targets: Any) -> Callable[[Callable[[_Call], str]], Callable[[_Call], str]]:
    """Register what prints operators whose text depends on more than the kind of the result."""

    def register(printer: Callable[[_Call], str]) -> Callable[[_Call], str]:
        _printers.update(dict.fromkeys(targets, printer))
        return printer

    return register


@_prints(
    aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten.clone.default,
    aten.alias.default, aten.detach.default, aten.contiguous.default, aten.positive.default,
)  # fmt: skip
def _copied(call: _Call) -> str:
    """Between floating dtypes nothing is rounded."""
    operand = call.arguments["self"]
    if not is_tensor(operand) or value(operand).device != value(call.node).device:
        raise _Unprintable(f"'{call.node.name}' moves a tensor to another device")
    text = call.term("self", call.dtype)
    if call.dtype not in _NARROW or _has_room(call.dtype, value(operand).dtype):
        return text
    return _wrapped(text, call.dtype)


def _has_room(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether an integer dtype has all values of another dtype."""
    if other == torch.bool:
        return True
    if other in _FLOATING:
        return False
    mine, others = torch.iinfo(dtype), torch.iinfo(other)
    return mine.min <= others.min and others.max <= mine.max


@_prints(aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
def _dropout(call: _Call) -> str:
    if call.arguments["train"]:
        raise _Unprintable("random numbers")
    return call.term("input", call.dtype)


@_prints(aten.gelu.default)
def _gelu(call: _Call) -> str:
    return _floats(call, "gelu({self})" if call.arguments["approximate"] == "none" else "gelu_tanh({self})")


@_prints(aten.clamp.default, aten.clamp.Tensor, aten.clip.default, aten.clip.Tensor)
def _clamp(call: _Call) -> str:
    if call.arguments["min"] is None:
        return call.computed("minimum({self}, {max})")
    if call.arguments["max"] is None:
        return call.computed("maximum({self}, {min})")
    return call.computed("clamp({self}, {min}, {max})")


@_prints(
    aten.div.Tensor, aten.div.Scalar, aten.div.Tensor_mode, aten.div.Scalar_mode, aten.true_divide.Tensor,
    aten.floor_divide.default, aten.floor_divide.Scalar,
)  # fmt: skip
def _quotient(call: _Call) -> str:
    is_floor = call.node.target in (aten.floor_divide.default, aten.floor_divide.Scalar)
    mode = "floor" if is_floor else call.arguments.get("rounding_mode")
    by = call.number("other")
    if call.dtype not in _FLOATING:
        if by == 0:
            raise _Unprintable("no integer is divided by zero")
        return call.computed("{self} // {other}" if mode == "trunc" else "floor_divided_integer({self}, {other})")
    if mode == "trunc":
        return call.filled("truncated(tl.div_rn({self}, {other}))")
    if mode == "floor":
        return _rounded_down(call)
    if by and _LEAST <= abs(1 / by) <= _LARGEST:
        return call.filled(f"{{self}} * {1 / by!r}")
    return call.filled("{self} / {other}")


def _rounded_down(call: _Call) -> str:
    """The quotient of floats rounded down, by a number that they have, so that it is known where it is whole."""
    by = call.number("other")
    if not by or torch.tensor(by, dtype=torch.float32).item() != by:
        raise _Unprintable("quotients of any two floats are not rounded down exactly")
    return call.filled("floor_divided({self}, {other})")


@_prints(aten.prelu.default)
def _prelu(call: _Call) -> str:
    """Where the weight is of one number, or of the last dimension, it is spread as in any other operator."""
    weight = call.arguments["weight"]
    if value(call.node).dim() != 2 and not compat.statically_known_true(value(weight).numel() == 1):
        raise _Unprintable(f"the weight of '{call.node.name}' is not spread along the last dimension")
    return _floats(call, "leaky_relu({self}, {weight})")


@_prints(aten.celu.default)
def _celu(call: _Call) -> str:
    alpha = call.number("alpha")
    if not alpha:
        raise _Unprintable("celu divides by zero")
    return _floats(call, f"elu({{self}}, {{alpha}}, 1.0, {_literal(1 / alpha, call.dtype)})")


@_prints(aten.round.decimals)
def _round(call: _Call) -> str:
    if call.arguments["decimals"] != 0:
        raise _Unprintable("decimals are rounded to integers only")
    return _floats(call, "rounded({self})")


_POWERS = {
    1: "{self}", 2: "{self} * {self}", 3: "{self} * {self} * {self}", 4: "({self} * {self}) * ({self} * {self})",
    -1: "1.0 / {self}", -2: "1.0 / ({self} * {self})", 0.5: "tl.sqrt_rn({self})", -0.5: "tl.rsqrt({self})",
}  # fmt: skip


@_prints(aten.pow.Tensor_Scalar)
def _power(call: _Call) -> str:
    exponent = call.number("exponent")
    known = None if exponent is None else _POWERS.get(exponent)
    if call.is_floating:
        return call.filled(known or "power({self}, {exponent})")
    return call.computed(None if exponent is None or exponent < 0 else known)


@_prints(aten.pow.Scalar)
def _exponential(call: _Call) -> str:
    base = call.number("self")
    if base is None or not 0 < base < math.inf or base == 1:
        raise _Unprintable(f"powers of {base}")
    if base == 2:
        return _floats(call, "tl.exp2({exponent})")
    return _floats(call, f"exponential({{exponent}}, {math.log2(base)!r})")


@_prints(aten.nan_to_num.default)
def _finite(call: _Call) -> str:
    """In the place of infinities are the largest numbers of the dtype by default."""
    limits = torch.finfo(call.dtype) if call.is_floating else torch.finfo(torch.float32)
    defaults = {"nan": 0.0, "posinf": limits.max, "neginf": limits.min}
    given = {name: number for name, number in call.arguments.items() if number is not None}
    call = replace(call, arguments={**defaults, **given})
    return _floats(call, "finite({self}, {nan}, {posinf}, {neginf})")


def _floats(call: _Call, template: str) -> str:
    return call.filled(template if call.is_floating else None)
