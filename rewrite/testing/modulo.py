"""Graphs over a field: what they compute when inputs and weights are elements instead of floats."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from rewrite import compat, evaluate
from rewrite.graph import Graph, is_random
from rewrite.ops import arguments
from rewrite.testing.field import Field
from rewrite.testing.polynomials import OPERATORS, unknown
from rewrite.verify.operators import LIPSCHITZ, name_of

MOVING = frozenset(
    name
    for names in (
        "permute transpose t unsqueeze squeeze expand expand_as clone contiguous detach alias movedim dropout",
        "cat concat concatenate stack split split_with_sizes chunk tensor_split unbind flip roll pixel_shuffle",
        "pixel_unshuffle channel_shuffle reshape view _unsafe_view flatten unflatten slice select narrow rot90 index",
        "index_select gather embedding repeat tile repeat_interleave diagonal diag_embed tril triu where masked_fill",
        "select_scatter slice_scatter unfold im2col lift_fresh_copy pad constant_pad_nd",
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d",
    )
    for name in names.split()
)
"""Operators that move values, or fill some in, and compute none."""

_SIZES = ("sym_size", "sym_numel")

_FILLED = {"pad": ("value",), "constant_pad_nd": ("value",), "masked_fill": ("value",), "where": ("self", "other")}
"""Their arguments that are values when they are numbers; other numbers are sizes and positions."""


def evaluate_modulo(
    graph: Graph, field: Field, inputs: Sequence[Any], weights: Mapping[str, Any], opaque: Collection[str] = ()
) -> list[Any]:
    """The flat outputs of a graph over a field.

    Floating values are elements, held as int64; all else (indices, masks, sizes) is as it is.

    Args:
        graph: the graph.
        field: the field.
        inputs: a value for each flat input.
        weights: the values of weights by name. Those that were folded are computed from the others.
        opaque: names of elementwise operators that are taken for functions of which nothing is known.

    Raises:
        NotPolynomialError: an operator is none, or is not known here.
        ZeroDivisorError: something is divided by zero; other elements will do.
    """
    values, env = dict(weights), dict[Node, Any]()
    _run(graph.program.fx, env, values, field, opaque)
    values |= {name: env[node] for name, node in graph.program.results.items()}
    env |= dict(zip(graph.inputs, inputs, strict=True))
    _run(graph.fx, env, values, field, opaque)
    return [env[output] if isinstance(output, Node) else output for output in graph.outputs]


def _run(
    nodes: fx.Graph, env: dict[Node, Any], weights: Mapping[str, Any], field: Field, opaque: Collection[str]
) -> None:
    for node in nodes.nodes:
        if node.op == "get_attr":
            env[node] = weights[str(node.target)]
        elif node.op == "call_function":
            env[node] = _call(node, env, field, opaque)


def _call(node: Node, env: Mapping[Node, Any], field: Field, opaque: Collection[str]) -> Any:
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), env.__getitem__)
    if node.target is operator.getitem:
        return operator.getitem(*args)
    reads_elements = any(map(is_floating, node.all_input_nodes))
    name = name_of(node)
    if name in _SIZES or not (reads_elements or is_floating(node)):
        return evaluate.call(node, args, kwargs)
    if is_random(node):
        raise unknown(node, "it is random")
    if not reads_elements and not any(isinstance(env[arg], Tensor) for arg in node.all_input_nodes):
        return field.numbers(evaluate.call(node, args, kwargs, double=True))
    if name in opaque:
        return _opaque(field, node, fx.map_arg(arguments(node), env.__getitem__))
    if name in MOVING:
        return _moved(field, node, name, env)
    if name not in OPERATORS or not is_floating(node):
        raise unknown(node)
    return OPERATORS[name](field, node, fx.map_arg(arguments(node), env.__getitem__))


def is_floating(node: Node) -> bool:
    """Whether the value of a node is, or contains, a floating tensor."""
    leaves = compat.tree_flatten(node.meta.get("val"))[0]
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves)


def _opaque(field: Field, node: Node, bound: dict[str, Any]) -> Tensor:
    """A function of each element of the first argument; the other arguments belong to its name."""
    first, *others = bound.values()
    target: Any = node.target
    if not (torch.Tag.pointwise in target.tags or name_of(node) in LIPSCHITZ) or any(map(is_tensor, others)):
        raise unknown(node, "it is no function of each element of one tensor")
    return field.apply(f"{name_of(node)}{others}", first)


def _moved(field: Field, node: Node, name: str, env: Mapping[Node, Any]) -> Any:
    """The operator itself, in float64: it holds every element exactly, and not all operators take integers."""

    def read(argument: Node) -> Any:
        value = env[argument]
        return compat.tree_map(_to_double, value) if is_floating(argument) else value

    args: list[Any] = list(node.args)
    kwargs: dict[str, Any] = dict(node.kwargs)
    target: Any = node.target
    for i, argument in enumerate(target._schema.arguments):
        if argument.name in _FILLED.get(name, ()):
            if i < len(args) and isinstance(args[i], (int, float)):
                args[i] = float(field.number(args[i]))
            elif isinstance(kwargs.get(argument.name), (int, float)):
                kwargs[argument.name] = float(field.number(kwargs[argument.name]))
    args, kwargs = fx.map_arg((tuple(args), kwargs), read)  # type: ignore[assignment]
    return compat.tree_map(_to_elements, target(*args, **kwargs))


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor."""
    return isinstance(value, Tensor)


def _to_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


def _to_elements(value: Any) -> Any:
    return value.long() if isinstance(value, Tensor) and value.is_floating_point() else value
