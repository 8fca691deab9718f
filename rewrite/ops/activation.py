"""Activations: functions of one number, applied to every element of a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops.view import View, arguments, is_tensor, value

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.fragment import Builder

aten = torch.ops.aten

_ALWAYS_MONOTONE = frozenset({
    aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default,
    aten.clamp_max.default, aten.sigmoid.default, aten.tanh.default, aten.hardsigmoid.default, aten.selu.default,
    aten.log_sigmoid.default, aten.exp.default, aten.expm1.default, aten.erf.default, aten.atan.default,
    aten.asinh.default,
})  # fmt: skip

_NOT_MONOTONE = frozenset({
    aten.gelu.default, aten.silu.default, aten.mish.default, aten.hardswish.default, aten.abs.default,
    aten.square.default, aten.sin.default, aten.cos.default,
    # it steps down where it gives way to the identity
    aten.softplus.default,
})  # fmt: skip

_BY_PARAMETERS = frozenset({
    aten.leaky_relu.default, aten.elu.default, aten.celu.default, aten.threshold.default,
    aten.pow.Tensor_Scalar,
})  # fmt: skip

_TARGETS = _ALWAYS_MONOTONE | _NOT_MONOTONE | _BY_PARAMETERS


@dataclass(frozen=True)
class Activation(View):
    """``f(input)`` for each element of a floating tensor.

    Attributes:
        input: of the same shape and dtype as the result.
        parameters: the numbers that belong to ``f``, by schema name, defaults filled in: ``negative_slope``.
    """

    input: Node
    parameters: tuple[tuple[str, Any], ...]

    @property
    def function(self) -> tuple[Any, ...]:
        """Equal for nodes that apply the same function."""
        return self.node.target, self.parameters

    @property
    def monotone(self) -> bool:
        """Whether ``x <= y`` implies ``f(x) <= f(y)``, infinities included, and only ``f`` of NaN is NaN.

        So it commutes with a maximum. A slope of zero does not: zero times minus infinity is NaN.
        """
        given = dict(self.parameters)
        target = self.node.target
        if target is aten.leaky_relu.default:
            return bool(given["negative_slope"] > 0)
        if target is aten.elu.default:
            return bool(given["alpha"] >= 0 and given["scale"] > 0 and given["input_scale"] > 0)
        if target is aten.celu.default:
            return bool(given["alpha"] > 0)
        if target is aten.threshold.default:
            return bool(given["value"] <= given["threshold"])
        if target is aten.hardtanh.default:
            return bool(given["min_val"] <= given["max_val"])
        if target is aten.clamp.default:
            low, high = given["min"], given["max"]
            return low is None or high is None or bool(low <= high)
        return target in _ALWAYS_MONOTONE

    @property
    def homogeneous(self) -> bool:
        """Whether ``f(a x) = a f(x)`` for every positive ``a``."""
        target, given = self.node.target, dict(self.parameters)
        if target in (aten.relu.default, aten.leaky_relu.default, aten.abs.default):
            return True
        if target is aten.clamp.default:
            bounds = (given["min"], given["max"])
        elif target in (aten.clamp_min.default, aten.clamp_max.default):
            bounds = (given.get("min"), given.get("max"))
        else:
            return False
        return all(bound is None or bound == 0 for bound in bounds)

    def on(self, g: Builder, x: Node) -> Node:
        """The same function of another tensor."""
        names = [argument.name for argument in self.node.target._schema.arguments]  # type: ignore[union-attr]
        given = dict(self.parameters)
        positional = [given[name] for name in names[1:] if name != "approximate"]
        keywords = {"approximate": given["approximate"]} if "approximate" in given else {}
        return g(self.node.target, x, *positional, **keywords)


def activation(node: Any) -> Activation | None:
    """The activation that a node computes, or None.

    A function and no registered view, since clamps are activations that have a view of their own.
    """
    target = getattr(node, "target", None)
    if target not in _TARGETS or not is_tensor(node):
        return None
    given = arguments(node)
    x = given.pop(node.target._schema.arguments[0].name)
    if not is_tensor(x) or not all(_is_plain(parameter) for parameter in given.values()):
        return None
    if not value(node).dtype.is_floating_point or value(x).dtype != value(node).dtype:
        return None
    return Activation(node, x, tuple(given.items()))


def _is_plain(parameter: Any) -> bool:
    return parameter is None or isinstance(parameter, (int, float, str))
