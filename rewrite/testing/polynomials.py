"""The operators that compute, over a field: each from its definition, not from torch's kernels.

Roots are functions of which nothing is known (:meth:`~rewrite.testing.field.Field.apply`), the same for ``sqrt``, for
``rsqrt``, and for the deviations of norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from rewrite.testing import taps
from rewrite.testing.field import TERMS, Field
from rewrite.verify.operators import name_of

Arguments = dict[str, Any]
Operator = Callable[[Field, Node, dict[str, Any]], Any]
OPERATORS: dict[str, Operator] = {}
"""The operators that compute, by name: functions of the field, the node and the arguments by schema name, in which
tensors hold elements and numbers are as the program writes them."""


class NotPolynomialError(Exception):
    """An operator is no polynomial or rational function of its arguments."""


def computes(*names: str) -> Callable[[Operator], Operator]:
    """Register what operators of these names compute over a field."""

    def register(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return register


def unknown(node: Node, why: str = "it is no polynomial or rational function, or not known") -> NotPolynomialError:
    """The error for an operator that cannot be evaluated."""
    return NotPolynomialError(
        f"'{node.name}', {node.target}, cannot be evaluated modulo a prime: {why}. If it is a function of each element "
        f"of which the rule knows nothing, name it: opaque={{'{name_of(node)}'}}"
    )


def element(field: Field, value: Any) -> Any:
    """A tensor of elements, masks and integers included, or the element of a number."""
    return field.reduce(value.long()) if isinstance(value, Tensor) else field.number(value)


def root(field: Field, value: Tensor) -> Tensor:
    """The square root, a function of which nothing is known."""
    return field.apply("sqrt", value)


# -- sums and products ------------------------------------------------------------------------------------------------


@computes("add", "sub", "rsub")
def _add(field: Field, node: Node, a: Arguments) -> Tensor:
    left, right = element(field, a["self"]), element(field, a["other"])
    alpha, name = field.number(a["alpha"]), node.target._opname  # type: ignore[union-attr]
    if name == "rsub":
        left, right = right, left
        return field.reduce(torch.as_tensor(left - field.multiply(right, alpha)))
    scaled = field.multiply(right, alpha)
    return field.reduce(torch.as_tensor(left + scaled if name == "add" else left - scaled))


@computes("mul", "multiply")
def _multiply(field: Field, node: Node, a: Arguments) -> Tensor:
    return field.multiply(element(field, a["self"]), element(field, a["other"]))


@computes("div", "true_divide")
def _divide(field: Field, node: Node, a: Arguments) -> Tensor:
    if a.get("rounding_mode") is not None:
        raise unknown(node)
    divisor = torch.as_tensor(element(field, a["other"]))
    return field.multiply(element(field, a["self"]), field.inverse(divisor))


@computes("neg")
def _negate(field: Field, node: Node, a: Arguments) -> Tensor:
    return field.reduce(-a["self"])


@computes("reciprocal")
def _reciprocal(field: Field, node: Node, a: Arguments) -> Tensor:
    return field.inverse(a["self"])


@computes("square")
def _square(field: Field, node: Node, a: Arguments) -> Tensor:
    return field.multiply(a["self"], a["self"])


@computes("sqrt")
def _sqrt(field: Field, node: Node, a: Arguments) -> Tensor:
    return root(field, a["self"])


@computes("rsqrt")
def _rsqrt(field: Field, node: Node, a: Arguments) -> Tensor:
    return field.inverse(root(field, a["self"]))


@computes("pow")
def _power(field: Field, node: Node, a: Arguments) -> Tensor:
    base, exponent = a["self"], a["exponent"]
    if not isinstance(base, Tensor) or not isinstance(exponent, (int, float)):
        raise unknown(node)
    if abs(exponent) == 0.5:
        base, exponent = root(field, base), int(2 * exponent)
    if exponent != int(exponent):
        raise unknown(node)
    return field.power(base if exponent >= 0 else field.inverse(base), abs(int(exponent)))


@computes("addcmul", "addcdiv")
def _add_product(field: Field, node: Node, a: Arguments) -> Tensor:
    second = a["tensor2"] if "addcmul" in str(node.target) else field.inverse(a["tensor2"])
    return field.reduce(a["self"] + field.multiply(field.multiply(a["tensor1"], second), field.number(a["value"])))


@computes("_to_copy", "to", "type_as")
def _cast(field: Field, node: Node, a: Arguments) -> Tensor:
    return element(field, a["self"])  # type: ignore[no-any-return]


@computes("zeros_like", "new_zeros", "ones_like", "new_ones", "full_like", "new_full")
def _filled(field: Field, node: Node, a: Arguments) -> Tensor:
    name = node.target._opname  # type: ignore[union-attr]
    value = 0 if "zeros" in name else 1 if "ones" in name else a["fill_value"]
    return torch.full(tuple(a.get("size", a["self"].shape)), field.number(value))


# -- reductions -------------------------------------------------------------------------------------------------------


def _dims(a: Arguments, rank: int) -> list[int]:
    dims = a.get("dim")
    chosen = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return [dim % rank for dim in chosen] if rank else []


def _total(field: Field, x: Tensor, dims: Sequence[int], keep: bool) -> tuple[Tensor, int]:
    """The sum over dimensions, and how many values it sums."""
    count = math.prod(x.shape[dim] for dim in dims)
    return field.reduce(x.sum(tuple(dims), keepdim=keep)) if dims else x, count


def _mean_of(field: Field, x: Tensor, dims: Sequence[int], keep: bool) -> Tensor:
    total, count = _total(field, x, dims, keep)
    return field.multiply(total, pow(count, -1, field.prime))


@computes("sum")
def _sum(field: Field, node: Node, a: Arguments) -> Tensor:
    return _total(field, element(field, a["self"]), _dims(a, a["self"].dim()), a.get("keepdim", False))[0]


@computes("mean")
def _mean(field: Field, node: Node, a: Arguments) -> Tensor:
    return _mean_of(field, element(field, a["self"]), _dims(a, a["self"].dim()), a.get("keepdim", False))


@computes("var")
def _variance(field: Field, node: Node, a: Arguments) -> Tensor:
    x, dims = a["self"], _dims(a, a["self"].dim())
    correction = a.get("correction", 1 if a.get("unbiased", True) else 0)
    spread = field.reduce(x - _mean_of(field, x, dims, True))
    total, count = _total(field, field.multiply(spread, spread), dims, a.get("keepdim", False))
    return field.multiply(total, pow(count - int(1 if correction is None else correction), -1, field.prime))


@computes("cumsum")
def _cumulative(field: Field, node: Node, a: Arguments) -> Tensor:
    return field.reduce(a["self"].cumsum(a["dim"]))


# -- contractions -----------------------------------------------------------------------------------------------------


@computes("mm", "bmm", "matmul", "mv", "dot")
def _matmul(field: Field, node: Node, a: Arguments) -> Tensor:
    left = a["self"]
    right = next(a[name] for name in ("mat2", "other", "vec", "tensor") if name in a)
    wide, tall = left if left.dim() > 1 else left[None], right if right.dim() > 1 else right[:, None]
    product = field.matmul(wide, tall)
    product = product if right.dim() > 1 else product.squeeze(-1)
    return product if left.dim() > 1 else product.squeeze(-2 if right.dim() > 1 else -1)


@computes("addmm", "baddbmm", "addbmm")
def _add_matmul(field: Field, node: Node, a: Arguments) -> Tensor:
    left, right = (a[name] for name in (("mat1", "mat2") if "mat1" in a else ("batch1", "batch2")))
    product = field.matmul(left, right)
    if node.target._opname == "addbmm":  # type: ignore[union-attr]
        product = field.reduce(product.sum(0))
    added = field.multiply(a["self"], field.number(a["beta"]))
    return field.reduce(added + field.multiply(product, field.number(a["alpha"])))


@computes("linear")
def _linear(field: Field, node: Node, a: Arguments) -> Tensor:
    product = field.matmul(a["input"], a["weight"].transpose(-1, -2))
    return product if a["bias"] is None else field.reduce(product + a["bias"])


@computes("einsum")
def _einsum(field: Field, node: Node, a: Arguments) -> Tensor:
    equation, operands = a["equation"].replace(" ", ""), a["tensors"]
    inputs, _, output = equation.partition("->")
    sizes = {
        letter: size
        for letters, operand in zip(inputs.split(","), operands, strict=True)
        for letter, size in zip(letters, operand.shape, strict=False)
    }
    summed = math.prod(size for letter, size in sizes.items() if letter not in output)
    if "..." in equation or "->" not in equation or len(operands) > 2 or summed > TERMS:
        raise unknown(node, f"of einsum, two operands, an explicit result and {TERMS} summands are known")
    return field.reduce(torch.einsum(equation, *operands))


@computes("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
def _convolution(field: Field, node: Node, a: Arguments) -> Tensor:
    geometry = taps.Geometry.of(a["weight"].shape[2:], a)
    transposed = a.get("transposed", "transpose" in node.target._opname)  # type: ignore[union-attr]
    kernel = taps.convolve_transposed if transposed else taps.convolve
    return kernel(field, a["input"], a["weight"], a["bias"], geometry)


@computes("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _average_pool(field: Field, node: Node, a: Arguments) -> Tensor:
    dims = int(node.target._opname[-2])  # type: ignore[union-attr]
    x = a["input"] if "input" in a else a["self"]
    kernel = taps.per_dimension(a["kernel_size"], dims)
    stride = taps.per_dimension(a["stride"] or kernel, dims)
    padding, fixed = taps.per_dimension(a["padding"], dims), a.get("divisor_override")
    settings = zip(x.shape[-dims:], kernel, stride, padding, strict=True)
    windows = [taps.pool_windows(*each, a["ceil_mode"], a["count_include_pad"]) for each in settings]
    if fixed is None:
        return taps.average(field, x, windows)
    whole = [[(start, end, 1) for start, end, _ in row] for row in windows]
    return field.multiply(taps.average(field, x, whole), pow(fixed, -1, field.prime))


@computes("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d",
          "_adaptive_avg_pool3d")  # fmt: skip
def _adaptive_pool(field: Field, node: Node, a: Arguments) -> Tensor:
    wanted, x = a["output_size"], a["self"]
    settings = zip(x.shape[-len(wanted) :], wanted, strict=True)
    return taps.average(field, x, [taps.adaptive_windows(size, outputs) for size, outputs in settings])


# -- norms ------------------------------------------------------------------------------------------------------------


@computes("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(field: Field, node: Node, a: Arguments) -> Any:
    if a.get("training", False) or a["running_mean"] is None:
        raise unknown(node, "it uses batch statistics")
    shape = (-1, *[1] * (a["input"].dim() - 2))
    deviation = root(field, field.reduce(a["running_var"] + field.number(a["eps"])))
    x = field.reduce(a["input"] - a["running_mean"].reshape(shape))
    result = field.multiply(x, field.inverse(deviation).reshape(shape))
    result = _affine(
        field, result, *(None if a[name] is None else a[name].reshape(shape) for name in ("weight", "bias"))
    )
    return result if "no_training" not in str(node.target) else (result, None, None)


def _shaped(a: Arguments, shape: tuple[int, ...]) -> list[Tensor | None]:
    """Weight and bias, one for each channel."""
    return [None if a[name] is None else a[name].reshape(shape) for name in ("weight", "bias")]


def _affine(field: Field, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else field.multiply(x, weight)
    return x if bias is None else field.reduce(x + bias)


def _standardized(field: Field, x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    spread = field.reduce(x - _mean_of(field, x, dims, True))
    variance = _mean_of(field, field.multiply(spread, spread), dims, True)
    return field.multiply(spread, field.inverse(root(field, field.reduce(variance + field.number(eps)))))


@computes("layer_norm")
def _layer_norm(field: Field, node: Node, a: Arguments) -> Tensor:
    dims = range(-len(a["normalized_shape"]), 0)
    return _affine(field, _standardized(field, a["input"], list(dims), a["eps"]), a["weight"], a["bias"])


@computes("group_norm")
def _group_norm(field: Field, node: Node, a: Arguments) -> Tensor:
    x, shape = a["input"], (-1, *[1] * (a["input"].dim() - 2))
    result = _standardized(field, x.unflatten(1, (a["num_groups"], -1)).flatten(2), [2], a["eps"]).reshape(x.shape)
    return _affine(field, result, *_shaped(a, shape))
