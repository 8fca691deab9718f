"""Running nodes on real tensors, in the recorded dtypes or lifted to float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from rewrite import compat, toeplitz

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

_LIFTED = {
    torch.float16: torch.float64, torch.bfloat16: torch.float64, torch.float32: torch.float64,
    torch.complex32: torch.complex128, torch.complex64: torch.complex128,
}  # fmt: skip


def lift_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the float64 reference: double for every floating dtype, others as they are."""
    return _LIFTED.get(dtype, dtype)


def lift(value: Any) -> Any:
    """A value with all floating tensors in double precision."""
    if isinstance(value, Tensor):
        return value.to(lift_dtype(value.dtype))
    return value


def call(node: Node, args: Any, kwargs: Any, double: bool = False) -> Any:
    """The value of one operator node on given arguments.

    With ``double`` dtypes among the arguments are lifted, and operators that create tensors make doubles.
    """
    target: Any = node.target
    if double:
        args, kwargs = compat.tree_map(_lift_argument, (args, dict(kwargs)))
        if creates_floats(node):
            kwargs["dtype"] = lift_dtype(node.meta["val"].dtype)
        if target in toeplitz.SUBSTITUTES:
            return toeplitz.conv(target, *args, **kwargs)
    return target(*args, **kwargs)


def _lift_argument(argument: Any) -> Any:
    return lift_dtype(argument) if isinstance(argument, torch.dtype) else lift(argument)


def creates_floats(node: Node) -> bool:
    """Whether an operator makes a floating tensor of a dtype that can be chosen, from no tensor."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or any(_is_tensor(arg) for arg in node.all_input_nodes):
        return False
    value = node.meta.get("val")
    takes_dtype = any(argument.name == "dtype" for argument in target._schema.arguments)
    return takes_dtype and isinstance(value, Tensor) and value.dtype in _LIFTED


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def run(nodes: Iterable[Node], env: MutableMapping[Node, Any], double: bool = False) -> None:
    """Evaluate operator nodes in order into ``env``, which already holds every value that comes from outside."""
    for node in nodes:
        if node.op == "call_function" and node not in env:
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = call(node, args, kwargs, double)
