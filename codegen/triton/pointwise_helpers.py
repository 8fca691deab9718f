"""Functions that generated kernels call by name, as text, and what expressions cost.

They are made of Triton's own functions alone, which its interpreter has too, and keep NaN, infinities and signed zeros
as PyTorch does. All of them take and give float32, unless they say otherwise.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TEXT = '''
@triton.jit
def maximum(x, y):
    """The larger one, of any type; NaN where one of them is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    """The smaller one, of any type; NaN where one of them is."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clamp(x, low, high):
    """Of any type; `high` where the bounds cross."""
    larger = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(larger, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_tanh(x):
    """`x * (1 + tanh(u)) / 2` is `x * sigmoid(2 * u)`."""
    return x / (1.0 + tl.exp(x * (-1.5957691216057308 - 0.07135481627260025 * x * x)))


@triton.jit
def hardsigmoid(x):
    return clamp(x + 3.0, 0.0, 6.0) * 0.16666666666666666


@triton.jit
def hardswish(x):
    return x * hardsigmoid(x)


@triton.jit
def leaky_relu(x, slope):
    return tl.where(x > 0, x, x * slope)


@triton.jit
def tanh(x):
    """By the exponential, which would lose digits near 0, where a series is."""
    size = tl.abs(x)
    y = x * x
    near = -0.0537397155531 + y * (0.0206390887954 - y * 0.00570498872745)
    near = x * (1.0 + y * (-0.333332819422 + y * (0.133314422036 + y * near)))
    far = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * size))
    return tl.where(size < 0.625, near, tl.where(x < 0, far * -1.0, far))


@triton.jit
def expm1(x):
    """`exp(x) - 1`, which would lose digits near 0, where a series is."""
    near = 1.0 / 120 + x * (1.0 / 720 + x * (1.0 / 5040 + x * (1.0 / 40320)))
    near = x * (1.0 + x * (1.0 / 2 + x * (1.0 / 6 + x * (1.0 / 24 + x * near))))
    return tl.where(tl.abs(x) < 0.5, near, tl.exp(x) - 1.0)


@triton.jit
def log1p(x):
    """`log(1 + x)`, times what the rounding of the sum has changed."""
    y = 1.0 + x
    added = y - 1.0
    return tl.where((added == 0) | (x == float("inf")), x, tl.log(y) * (x / added))


@triton.jit
def elu(x, alpha, scale, input_scale):
    return tl.where(x > 0, x * scale, expm1(x * input_scale) * (alpha * scale))


@triton.jit
def softplus(x, beta, threshold):
    return tl.where(x * beta > threshold, x, log1p(tl.exp(x * beta)) * (1.0 / beta))


@triton.jit
def log_sigmoid(x):
    return minimum(x, 0.0) - log1p(tl.exp(-tl.abs(x)))


@triton.jit
def mish(x):
    """`tanh(log(1 + y))` is a fraction of polynomials of `y = exp(x)`, and 1 long before they overflow."""
    y = tl.exp(minimum(x, 20.0))
    y = y * (y + 2.0)
    return x * (y / (y + 2.0))


@triton.jit
def softshrink(x, lambd):
    return tl.where(x > lambd, x - lambd, tl.where(x < -lambd, x + lambd, x * 0.0))


@triton.jit
def truncated(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def rounded(x):
    """To the nearest integer, halves to the even one: floats beyond 2 ** 23 have no room for fractions."""
    size = tl.abs(x)
    whole = (size + 8388608.0) - 8388608.0
    whole = tl.where(size < 8388608.0, whole, size)
    return tl.where(whole == 0, x * 0.0, tl.where(x < 0, whole * -1.0, whole))


@triton.jit
def floor_divided(x, y):
    """The quotient rounded down, for a number `y` that is exact in float32; that of an infinity is NaN."""
    quotient = tl.floor(x.to(tl.float64) / y).to(tl.float32)
    return tl.where(tl.abs(x) == float("inf"), float("nan"), quotient)


@triton.jit
def floor_divided_integer(x, y):
    """The quotient of integers rounded down, where Triton rounds to zero."""
    quotient = x // y
    rest = x % y
    return tl.where((rest != 0) & ((rest ^ y) < 0), quotient - 1, quotient)


@triton.jit
def remainder_integer(x, y):
    """The remainder of integers with the sign of `y`, where Triton's has that of `x`."""
    rest = x % y
    return tl.where((rest != 0) & ((rest ^ y) < 0), rest + y, rest)


@triton.jit
def lerp(x, end, weight):
    """From the end that is nearer."""
    way = end - x
    return tl.where(tl.abs(weight) < 0.5, x + weight * way, end - way * (1.0 - weight))


@triton.jit
def power(x, y):
    """`x ** y`, by logarithms in float64, since a large exponent multiplies their error."""
    size = tl.exp2(tl.log2(tl.abs(x).to(tl.float64)) * y).to(tl.float32)
    size = tl.where((y == 0) | (tl.abs(x) == 1), 1.0, size)
    is_whole = tl.floor(y) == y
    is_odd = is_whole & (tl.floor(y * 0.5) != y * 0.5)
    signed = tl.where(is_odd, tl.where(x.to(tl.int32, bitcast=True) < 0, size * -1.0, size), size)
    return tl.where(is_whole, signed, tl.where((x < 0) & (x > float("-inf")), float("nan"), size))


@triton.jit
def exponential(x, rate):
    """`2 ** (rate * x)` in float64, since a large `x` multiplies the error of the rate."""
    return tl.exp2(x.to(tl.float64) * rate).to(tl.float32)


@triton.jit
def finite(x, nan, high, low):
    """`x`, but numbers in the place of NaN and of the infinities."""
    found = tl.where(x == float("inf"), high, tl.where(x == float("-inf"), low, x))
    return tl.where(x != x, nan, found)
'''


@dataclass(frozen=True)
class Cost:
    """Instructions for one element.

    Attributes:
        arithmetic: plain ones: an addition, a product, both at once, a comparison, a choice.
        special: those of the units for special functions: exponentials, reciprocals, square roots.
    """

    arithmetic: int = 0
    special: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.arithmetic + other.arithmetic, self.special + other.special)


_ONE, _FREE = Cost(1), Cost()

_OPERATORS: Mapping[type[ast.AST], Cost] = {ast.Div: Cost(1, 1), ast.FloorDiv: Cost(16, 1), ast.Mod: Cost(16, 1)}
_BUILTINS: Mapping[str, Cost] = {
    "exp": Cost(1, 1), "exp2": Cost(0, 1), "log": Cost(22), "log2": Cost(23), "sin": Cost(24), "cos": Cost(24),
    "erf": Cost(14, 1), "sqrt_rn": Cost(8, 1), "rsqrt": Cost(0, 1), "div_rn": Cost(8, 1),
}  # fmt: skip
"""What is more or less than one plain instruction, as Triton compiles it for NVIDIA's GPUs."""

_IN_DOUBLE: Mapping[str, Cost] = {"power": Cost(200, 2), "exponential": Cost(100, 1), "floor_divided": Cost(40, 1)}
"""Functions that compute in float64, of which no instruction is cheap."""


def _functions() -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(_TEXT).body if isinstance(node, ast.FunctionDef)}


_FUNCTIONS = _functions()
_LINES = _TEXT.splitlines()


def _text(function: ast.FunctionDef) -> str:
    return "\n".join(_LINES[function.lineno - 2 : function.end_lineno])


HELPERS: Mapping[str, str] = MappingProxyType({name: _text(node) for name, node in _FUNCTIONS.items()})
"""The functions by name, each with its decorator and without an empty line around."""


def called(expression: str) -> tuple[str, ...]:
    """The names of the functions of :data:`HELPERS` that it takes to evaluate an expression, callees first."""
    found: dict[str, None] = {}

    def visit(tree: ast.AST) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
                visit(_FUNCTIONS[node.func.id])
                found.setdefault(node.func.id)

    visit(ast.parse(expression))
    return tuple(found)


def cost_of(expression: str) -> Cost:
    """What it costs to evaluate an expression for one element, operands being there."""
    return _cost(ast.parse(expression, mode="eval").body)


@functools.cache
def _cost_of_function(name: str) -> Cost:
    return _IN_DOUBLE.get(name) or _sum(map(_cost, _FUNCTIONS[name].body))


def _sum(costs: Iterable[Cost]) -> Cost:
    return functools.reduce(Cost.__add__, costs, _FREE)


def _cost(node: ast.AST) -> Cost:
    """Of one node of a syntax tree and of all below it."""
    if _is_number(node):
        return _FREE
    below = _sum(map(_cost, ast.iter_child_nodes(node)))
    if isinstance(node, ast.Call):
        return below + _cost_of_call(node.func)
    if isinstance(node, ast.BinOp):
        return below if _is_fused(node) else below + _OPERATORS.get(type(node.op), _ONE)
    return below + _ONE if isinstance(node, (ast.Compare, ast.UnaryOp)) else below


def _cost_of_call(function: ast.expr) -> Cost:
    if isinstance(function, ast.Attribute):
        return _BUILTINS.get(function.attr, _ONE)
    assert isinstance(function, ast.Name)
    return _cost_of_function(function.id)


def _is_fused(node: ast.BinOp) -> bool:
    """Whether a sum has a product as a term, which is one instruction with it."""
    terms = (node.left, node.right)
    is_sum = isinstance(node.op, (ast.Add, ast.Sub))
    return is_sum and any(isinstance(term, ast.BinOp) and isinstance(term.op, ast.Mult) for term in terms)


def _is_number(node: ast.AST) -> bool:
    """Whether an expression is computed while compiling."""
    if isinstance(node, ast.BinOp):
        return _is_number(node.left) and _is_number(node.right)
    if isinstance(node, ast.UnaryOp):
        return _is_number(node.operand)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "float"
    return isinstance(node, ast.Constant)
