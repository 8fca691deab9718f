"""How large the terms are that a fragment adds up: the scale of its unavoidable rounding errors, element by element.

A convolution is evaluated on absolute values, ``conv(|x|, |w|)``; activations pass errors on times their Lipschitz
constant. So an element that is small because large terms cancel may be less accurate than one that is small because its
terms are, as it is in every order of summation (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3).
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from rewrite import compat, evaluate
from rewrite.finite import all_finite
from rewrite.ops import (
    BatchNorm,
    Cast,
    Convolution,
    Copy,
    GroupNorm,
    LayerNorm,
    Negation,
    Pad,
    Product,
    ProductSum,
    Sum,
    arguments,
    view,
)
from rewrite.rule import Fidelity
from rewrite.verify.operators import BATCH_NORMS, LIPSCHITZ, MULTILINEAR, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rewrite.fragment import Fragment

# Smooth functions of unbounded slope, with the absolute value of their derivative.
_SLOPE: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "expm1": torch.exp,
    "log": lambda v: 1 / v.abs(),
    "log1p": lambda v: 1 / (1 + v).abs(),
    "sqrt": lambda v: 0.5 * v.rsqrt(),
    "rsqrt": lambda v: 0.5 * v.abs().pow(-1.5),
    "reciprocal": lambda v: v.square().reciprocal(),
    "square": lambda v: 2 * v.abs(),
}


_NUDGE = 2.0**-26
"""The relative change of the inputs that shows how an unknown operator passes errors on."""


def environment(fragment: Fragment, values: Mapping[Node, Any]) -> dict[Node, Any]:
    """The float64 value of every node of a fragment, given those of the boundary nodes."""
    env = {node: evaluate.lift(value) for node, value in fragment.environment(values).items()}
    evaluate.run(fragment.fx.nodes, env, double=True)
    return env


def magnitudes(
    fragment: Fragment, values: Mapping[Node, Any], reference: Mapping[Node, Any], fidelity: Fidelity
) -> list[Any]:
    """The magnitude of each output of a fragment.

    Args:
        fragment: the fragment.
        values: of its boundary nodes.
        reference: its :func:`environment`.
        fidelity: ELEMENTWISE, or NORMWISE where errors may spread over all positions that convolutions read.
    """
    truths = [reference[node] for node in fragment.outputs]
    spread = fidelity is Fidelity.NORMWISE
    found = Magnitudes(fragment, reference, torch.float32, spread)
    pairs = zip(compat.tree_flatten(found.outputs)[0], compat.tree_flatten(truths)[0], strict=True)
    if not all(_covers(magnitude, truth) for magnitude, truth in pairs if isinstance(truth, Tensor)):
        found = Magnitudes(fragment, reference, torch.float64, spread)
    if not found.guessed:
        return found.outputs
    nudged = environment(fragment, {node: _nudge(value) for node, value in values.items()})
    return [
        compat.tree_map(_with_change, magnitude, truth, nudged[node])
        for node, truth, magnitude in zip(fragment.outputs, truths, found.outputs, strict=True)
    ]


def _covers(magnitude: Tensor, truth: Tensor) -> bool:
    """Whether the magnitude is finite wherever the value is; float32 may have overflowed."""
    return all_finite(magnitude) or bool((torch.isfinite(magnitude) | ~torch.isfinite(truth)).all())


def _nudge(value: Any) -> Any:
    """Double precision values changed by up and down alternating relative steps."""
    lifted = evaluate.lift(value)
    if not isinstance(lifted, Tensor) or not (lifted.is_floating_point() or lifted.is_complex()):
        return lifted
    sign = torch.ones(lifted.numel(), dtype=torch.float64, device=lifted.device)
    sign[::2] = -1
    return lifted * (1 + _NUDGE * sign.reshape(lifted.shape))


def _with_change(magnitude: Any, truth: Any, nudged: Any) -> Any:
    """A magnitude raised by how far the value moved, over the relative change of the inputs."""
    if not isinstance(truth, Tensor) or not (truth.is_floating_point() or truth.is_complex()):
        return magnitude
    return magnitude + channel_max((nudged - truth).abs().nan_to_num(0.0, 0.0, 0.0)) / _NUDGE


class Magnitudes:
    """The magnitudes of a fragment's values.

    Args:
        fragment: the fragment.
        env: its values in float64, one for each node.
        dtype: of the magnitudes; a few digits are enough.
        spread: whether errors of a convolution spread over all its positions, as those of a transform do.

    Attributes:
        guessed: whether an operator was met that is not known here; its magnitude is then taken from its result.
    """

    def __init__(self, fragment: Fragment, env: Mapping[Node, Any], dtype: torch.dtype, spread: bool = False):
        self._env = env
        self._dtype = dtype
        self._spread = spread
        self.guessed = False
        self._known: dict[Node, Any] = {}
        for node in fragment.fx.nodes:
            if node.op != "call_function":
                self._known[node] = compat.tree_map(self._absolute, env[node])
            else:
                self._known[node] = self._floor(self._magnitude(node), env[node])
        self.outputs = [self._known[node] for node in fragment.outputs]

    def _absolute(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return value
        return value.abs().to(self._dtype).nan_to_num_(nan=0.0, posinf=0.0)

    def _floor(self, magnitude: Any, value: Any) -> Any:
        """Never below the value itself."""
        if isinstance(value, Tensor) and isinstance(magnitude, Tensor) and magnitude.is_floating_point():
            return torch.maximum(magnitude.expand(value.shape), self._absolute(value))
        return magnitude

    def _value(self, argument: Any) -> Any:
        """The value of an argument, at the precision of the magnitudes."""
        value = self._env[argument] if isinstance(argument, Node) else argument
        return value.to(self._dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def _of(self, argument: Any) -> Any:
        """The magnitude of an argument: of a node, a number, or None for none."""
        if isinstance(argument, Node):
            return self._known[argument]
        return abs(argument) if isinstance(argument, (int, float)) else argument

    def _magnitude(self, node: Node) -> Any:
        value = self._env[node]
        if not _is_floating(value):
            return value
        if not any(isinstance(self._env[source], (Tensor, tuple, list)) for source in node.all_input_nodes):
            return compat.tree_map(self._absolute, value)  # a constant that the fragment makes
        if node.target is operator.getitem:
            return self._known[node.args[0]][node.args[1]]  # type: ignore[index]
        for known in (self._by_view, self._by_name):
            found = known(node)
            if found is not None:
                return found
        self.guessed = True
        return compat.tree_map(self._guess, value)

    def _guess(self, value: Any) -> Any:
        return channel_max(self._absolute(value)) if isinstance(value, Tensor) and _is_floating(value) else value

    def _by_view(self, node: Node) -> Any:
        found = view(node)
        match found:
            case Sum():
                left, right = (abs(t.coefficient) * (1 if t.node is None else self._of(t.node)) for t in found.terms)
                return left + right
            case Product(left=left, right=right, divided=False):
                return self._of(left) * self._of(right)
            case ProductSum():
                return self._of(found.base) + abs(found.coefficient) * self._of(found.left) * self._of(found.right)
            case Product(left=left, right=right):
                divisor = abs(self._value(right))
                return self._of(left) / divisor * (1 + (self._of(right) / divisor if isinstance(right, Node) else 0))
            case Negation() | Cast() | Copy():
                return self._of(found.input)
            case Pad():
                return self._padded(node, found)
            case LayerNorm():
                dims = tuple(range(-len(found.shape), 0))
                return self._normalized(found.input, dims, found.weight, found.bias, found.eps)
            case GroupNorm():
                return self._group_norm(found)
            case BatchNorm():
                return self._batch_norm(node)
            case Convolution(transposed=False, batched=True) if self._spread:
                return self._spread_convolution(found)
        return None

    def _spread_convolution(self, conv: Convolution) -> Tensor:
        """The norms of input and kernel multiplied, and added up over the input channels: one for each output channel.

        No output, at any stride, has larger terms; a transform rounds at this scale, also where an output is zero.
        """
        x, weight = (self._of(node).flatten(2).norm(dim=2) for node in (conv.input, conv.weight))
        x = x.unflatten(1, (conv.groups, -1))
        weight = weight.unflatten(0, (conv.groups, -1))
        result = torch.einsum("ngc,goc->ngo", x, weight).flatten(1)
        if conv.bias is not None:
            result = result + self._of(conv.bias)
        return result.reshape(*result.shape, *[1] * conv.dims)

    def _padded(self, node: Node, pad: Pad) -> Any:
        fill = abs(pad.fill) if abs(pad.fill) < float("inf") else 0.0
        flat = [amount for pair in reversed(pad.amounts) for amount in pair]
        if pad.mode == "constant":
            return torch.nn.functional.pad(self._of(pad.input), flat, value=fill)
        return self._same(node)

    def _by_name(self, node: Node) -> Any:
        name, args = name_of(node), node.args
        if name in MULTILINEAR:
            return self._same(node)
        if name in LIPSCHITZ:
            return LIPSCHITZ[name] * self._of(args[0])
        if name in _SLOPE:
            return _scaled(_SLOPE[name](self._value(args[0])), self._of(args[0]))
        if name in BATCH_NORMS:  # those of several results have no view of their own
            return self._batch_norm(node)
        if name == "pow" and isinstance(args[1], (int, float)):
            return _scaled(abs(args[1]) * self._value(args[0]).abs().pow(args[1] - 1), self._of(args[0]))
        if name in ("softmax", "_softmax", "log_softmax", "_log_softmax"):
            return self._softmax(node, name)
        if name in ("elu", "leaky_relu", "prelu"):
            slopes = [self._of(argument) for argument in args[1:] if not isinstance(argument, bool)]
            return self._of(args[0]) * max([1.0, *(float(s.max() if isinstance(s, Tensor) else s) for s in slopes)])
        if name in ("maximum", "minimum"):
            return torch.maximum(self._of(args[0]), self._of(args[1]))
        if name == "glu":
            dim = args[1] if len(args) > 1 else -1
            (mag_a, mag_b), (a, b) = self._of(args[0]).chunk(2, dim), self._value(args[0]).chunk(2, dim)
            return mag_a * b.sigmoid() + a.abs() * 0.25 * mag_b
        if name == "addmm" and not node.kwargs:
            return self._of(args[0]) + self._of(args[1]) @ self._of(args[2])
        return None

    def _same(self, node: Node) -> Any:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self._of)
        args, kwargs = compat.tree_map(
            lambda leaf: self._dtype if isinstance(leaf, torch.dtype) and leaf.is_floating_point else leaf,
            (args, kwargs),
        )
        return evaluate.call(node, args, kwargs)

    def _batch_norm(self, node: Node) -> Any:
        found = next((v for user in node.users if isinstance(v := view(user), BatchNorm)), view(node))
        if not isinstance(found, BatchNorm):
            return None
        if found.batch_statistics:
            dims = (0, *range(2, self._env[found.input].dim()))
            result = self._normalized(found.input, dims, found.weight, found.bias, found.eps, channels=True)
        else:
            rank = self._env[found.input].dim()
            scale = (self._value(found.var) + found.eps).rsqrt() * _or(self._of(found.weight), 1.0)
            shift = self._of(found.mean) * scale + _or(self._of(found.bias), 0.0)
            result = self._of(found.input) * _per_channel(scale, rank) + _per_channel(shift, rank)
        value = self._env[node]
        return result if isinstance(value, Tensor) else (result, *(self._absolute(v) for v in value[1:]))

    def _group_norm(self, norm: GroupNorm) -> Tensor:
        magnitude, value = self._of(norm.input), self._value(norm.input)
        # a -1 would be ambiguous for an empty batch
        groups = (value.shape[0], norm.groups, math.prod(value.shape[1:]) // norm.groups)
        result = _normalized(magnitude.reshape(groups), value.reshape(groups), (2,), norm.eps).reshape(value.shape)
        rank = value.dim()
        return (  # type: ignore[no-any-return]
            result * _per_channel(_or(self._of(norm.weight), 1.0), rank)
            + _per_channel(_or(self._of(norm.bias), 0.0), rank)
        )

    def _normalized(
        self, x: Node, dims: tuple[int, ...], weight: Any, bias: Any, eps: float, channels: bool = False
    ) -> Tensor:
        result = _normalized(self._of(x), self._value(x), dims, eps)
        scale, shift = _or(self._of(weight), 1.0), _or(self._of(bias), 0.0)
        if channels:
            scale, shift = _per_channel(scale, result.dim()), _per_channel(shift, result.dim())
        return result * scale + shift  # type: ignore[no-any-return]

    def _softmax(self, node: Node, name: str) -> Tensor:
        magnitude, dim = self._of(node.args[0]), arguments(node)["dim"]
        share = self._value(node.args[0]).softmax(dim)
        spread = magnitude + (share * magnitude).sum(dim, keepdim=True)
        return spread if "log" in name else share * (1 + spread)  # type: ignore[no-any-return]


def _normalized(magnitude: Tensor, value: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """The scale of errors in ``(x - mean) / std``, errors of the mean and of the deviation included."""
    # not var_mean, which warns of an empty batch
    mean = value.mean(dims, keepdim=True)
    variance = (value - mean).square().mean(dims, keepdim=True)
    deviation = (variance + eps).sqrt()
    spread = magnitude.square().mean(dims, keepdim=True).sqrt()
    return (magnitude + magnitude.mean(dims, keepdim=True) + ((value - mean) / deviation).abs() * spread) / deviation


def _or(value: Any, default: float) -> Any:
    return default if value is None else value


def _per_channel(value: Any, rank: int) -> Any:
    return value.reshape(-1, *[1] * (rank - 2)) if isinstance(value, Tensor) and rank > 1 else value


def _is_floating(value: Any) -> bool:
    leaves = compat.tree_flatten(value)[0]
    return any(isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()) for leaf in leaves)


def channel_max(values: Tensor) -> Tensor:
    """The largest of the values of each channel (dimension 1), in the shape of ``values``."""
    if values.dim() < 2 or values.numel() == 0:
        return values.amax().expand(values.shape) if values.numel() else values
    others = [dim for dim in range(values.dim()) if dim != 1]
    return values.amax(others, keepdim=True).expand(values.shape)


def _scaled(slope: Any, magnitude: Any) -> Any:
    """A slope times a magnitude; None where the function is infinitely steep, so that its slope bounds nothing."""
    product = slope * magnitude
    return None if isinstance(product, Tensor) and not bool(torch.isfinite(product).all()) else product
