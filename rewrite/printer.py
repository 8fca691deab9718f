"""Programs as text: one line for each operator, weights by their names, sources at the right."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.fx import Node

from rewrite.provenance import location, module_path, origin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rewrite.graph import Graph

WEIGHTS_ONLY = "weights only"
"""What :func:`line` says of the weight algebra of rules: it does not depend on the inputs of a call."""

_SHORT = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.complex64: "c64", torch.complex128: "c128", torch.int64: "i64", torch.int32: "i32", torch.bool: "b8",
}  # fmt: skip


def type_text(value: Any) -> str:
    """A recorded value as ``f32[N, 64, 56, 56]``, where N is the batch size, the one symbol of a captured graph."""
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(re.sub(r"\bs\d+\b", "N", str(size)) for size in value.shape)
        return f"{_SHORT.get(value.dtype, str(value.dtype).removeprefix('torch.'))}[{sizes}]"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(type_text(item) for item in value)})"
    return type(value).__name__


def target_text(node: Node) -> str:
    """An operator as ``aten.conv2d``; the overload is shown only where it is not the default or ``Tensor``."""
    if isinstance(node.target, torch._ops.OpOverload):
        text = str(node.target)
        return re.sub(r"\.(default|Tensor)$", "", text)
    name = getattr(node.target, "__name__", None)
    return name or str(node.target)


def argument_text(argument: Any) -> str:
    """An argument: nodes by name, weights by qualified name."""
    if isinstance(argument, Node):
        return str(argument.target) if argument.op == "get_attr" else argument.name
    if isinstance(argument, (tuple, list)):
        return f"[{', '.join(argument_text(item) for item in argument)}]"
    if isinstance(argument, torch.dtype):
        return str(argument).removeprefix("torch.")
    return repr(argument) if isinstance(argument, str) else str(argument)


def line(node: Node, source: bool = True) -> str:
    """One node as a line of the program; with ``source``, the module path and the user's line behind it."""
    parts = [argument_text(argument) for argument in node.args]
    parts += [f"{key}={argument_text(argument)}" for key, argument in node.kwargs.items()]
    text = f"{node.name}: {type_text(node.meta.get('val'))} = {target_text(node)}({', '.join(parts)})"
    if node.op in ("placeholder", "get_attr"):
        kind = "input" if node.op == "placeholder" else "weight"
        text = f"{argument_text(node)}: {type_text(node.meta.get('val'))} = {kind}"
    if node.op == "output":
        text = f"return {argument_text(node.args[0])}"
    if not source:
        return text
    made = origin(node)
    where = [str(part) for part in (module_path(node), location(node)) if part]
    if made is not None:
        where.append(f"by {made.rule} #{made.match}")
        if made.algebra:
            where.append(WEIGHTS_ONLY)
    return f"{text}  # {', '.join(where)}" if where else text


def program(nodes: Iterable[Node], source: bool = True) -> list[str]:
    """The lines of a program, without lines for weights."""
    return [line(node, source) for node in nodes if node.op != "get_attr"]


def fingerprint(nodes: Iterable[Node]) -> str:
    """A digest of a program that does not depend on node names: equal for equal operators on equal operands.

    It is the same in every process.
    """
    number: dict[Node, int] = {}
    hashed = hashlib.sha256()
    for node in nodes:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda operand: f"%{number[operand]}")
        target = "" if node.op == "placeholder" else _identity(node.target)
        hashed.update(f"{node.op} {target} {args!r} {kwargs!r}\n".encode())
        number[node] = len(number)
    return hashed.hexdigest()


def _identity(target: Any) -> str:
    """What tells operators apart in every process; the text of a Python function holds an address."""
    if isinstance(target, (str, torch._ops.OpOverload)):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', target)}"


def digest(graph: Graph) -> str:
    """The fingerprint of a whole graph with the dtypes and sizes of its inputs and weights, and what it writes."""
    leaves = [type_text(node.meta.get("val")) for node in graph.nodes if node.op in ("placeholder", "get_attr")]
    written = [f"{mutation.kind} {mutation.target}" for mutation in graph.signature.mutations]
    return hashlib.sha256("\n".join((fingerprint(graph.nodes), *leaves, *written)).encode()).hexdigest()
