"""One spelling for programs of every origin: reshapes that do not ask for strides, dtypes relative to a value.

An exported program has the example burned in. A ``view`` holds for its strides only, and ``zeros(dtype=float32)`` makes
the program fail in float64. After this a graph runs in another floating dtype and in another memory format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite.graph import fake_call
from rewrite.ops.view import arguments

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.graph import Graph

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten._unsafe_view.default)

# Creation that has a relative spelling: its node becomes `new(ref, size)`.
_NEW = {
    aten.zeros.default: aten.new_zeros.default, aten.ones.default: aten.new_ones.default,
    aten.empty.memory_format: aten.new_empty.default, aten.full.default: aten.new_full.default,
    aten.scalar_tensor.default: aten.new_full.default, aten.new_zeros.default: aten.new_zeros.default,
    aten.new_ones.default: aten.new_ones.default, aten.new_empty.default: aten.new_empty.default,
    aten.new_full.default: aten.new_full.default,
}  # fmt: skip

_LITERALS = ("lifted_tensor_", "_tensor_constant")
"""How export and Dynamo name the constants that code writes down."""

_CASTS = (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout)


def normalize(graph: Graph) -> Graph:
    """Normalise a graph in place and return it; recorded values stay right.

    - ``view`` and ``_unsafe_view`` become ``reshape``; a copy that was made for one is dropped.
    - ``copy``, which has no derivative, becomes a conversion of what is copied, expanded to the shape of the target.
    - The size of a dimension that several inputs share is read from the first of them.
    - What makes tensors of the compute dtype (that of most weights) makes them like a weight: ``new_zeros(ref, ...)``,
      or ``to(..., ref)`` behind the operator. ``ref`` is a weight where there is one, so that what depends on weights
      alone still does. Dtypes other than the compute dtype are what the user asked for and stay.
    """
    _batch_of_first_input(graph)
    _reshapes(graph)
    _copies(graph)
    dtype = compute_dtype(graph)
    ref = None if dtype is None else _reference(graph, dtype)
    for node in graph.calls():
        _relative(graph, node, dtype, ref)
    graph.eliminate_dead()
    graph.touch()
    return graph


def compute_dtype(graph: Graph) -> torch.dtype | None:
    """The floating dtype of most weight elements that the graph reads, else of the first floating input."""
    counts: dict[torch.dtype, int] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.op == "get_attr" and isinstance(value, Tensor) and value.is_floating_point():
            counts[value.dtype] = counts.get(value.dtype, 0) + int(value.numel())
    if counts:
        return max(counts, key=lambda dtype: counts[dtype])
    for node in graph.inputs:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.dtype
    return None


def _reference(graph: Graph, dtype: torch.dtype) -> Node | None:
    """The smallest weight of a dtype, else the first input; a small one, because the reference keeps it alive."""
    written = {mutation.target for mutation in graph.signature.mutations if mutation.kind == "weight"}
    nodes = [node for node in graph.nodes if node.op in ("get_attr", "placeholder") and _dtype(node) == dtype]
    weights = [node for node in nodes if node.op == "get_attr" and node.target not in written]
    named = [node for node in weights if not str(node.target).startswith(_LITERALS)]
    smallest = min(named or weights, key=lambda node: int(node.meta["val"].numel()), default=None)
    found = smallest or next(iter(nodes), None)
    if found is not None and str(found.target).startswith(_LITERALS):
        # it stands where the code wrote it down, which may be behind a reader of the reference
        next(iter(graph.nodes)).prepend(found)
    return found


def _dtype(node: Any) -> torch.dtype | None:
    value = node.meta.get("val") if hasattr(node, "meta") else None
    return value.dtype if isinstance(value, Tensor) else None


def _batch_of_first_input(graph: Graph) -> None:
    """Read sizes that inputs share from the first input: an input that only happens to agree must not decide."""
    first: dict[str, tuple[Node, int]] = {}
    for node in graph.inputs:
        value = node.meta.get("val")
        sizes: tuple[Any, ...] = tuple(value.shape) if isinstance(value, Tensor) else ()
        for dim, size in enumerate(sizes):
            if isinstance(size, torch.SymInt):
                first.setdefault(str(size), (node, dim))
    for node in graph.calls():
        if node.target is aten.sym_size.int and node.args[0].op == "placeholder":  # type: ignore[union-attr]
            node.args = first.get(str(node.meta["val"]), node.args)


# -- reshapes ---------------------------------------------------------------------------------------------------------


def _reshapes(graph: Graph) -> None:
    for node in graph.calls():
        if node.target not in _VIEWS:
            continue
        bound = arguments(node)
        source = bound["self"]
        # `_unsafe_view` is only made behind a copy
        if _serves_reshape(source, certain=node.target is aten._unsafe_view.default):
            source = source.args[0]
        node.target = aten.reshape.default
        node.args, node.kwargs = (source, bound["size"]), {}


def _serves_reshape(node: Node, certain: bool) -> bool:
    """Whether a copy was made because a view of its argument is impossible, by ``reshape`` or ``contiguous``.

    A copy that the user made for its own sake keeps an output apart from an input, and stays.
    """
    if node.target is not aten.clone.default or any(
        user.target not in (*_VIEWS, aten.reshape.default) for user in node.users
    ):
        return False
    source = node.args[0]
    value = source.meta["val"]  # type: ignore[union-attr]
    asked = node.kwargs.get("memory_format") is torch.contiguous_format
    return asked and (certain or not value.is_contiguous())


# -- copies -----------------------------------------------------------------------------------------------------------


def _copies(graph: Graph) -> None:
    for node in graph.calls():
        if node.target is not aten.copy.default:
            continue
        target: Any = node.args[0]
        asked = {"dtype": _dtype(target), "device": target.meta["val"].device}
        with graph.fx.inserting_before(node):
            converted = graph.fx.call_function(aten._to_copy.default, (node.args[1],), asked)
        converted.meta = {key: value for key, value in node.meta.items() if key != "val"}
        converted.meta["val"] = fake_call(graph.fake_mode, converted.target, converted.args, asked)
        node.target, node.args, node.kwargs = aten.expand_as.default, (converted, target), {}
        node.meta["val"] = fake_call(graph.fake_mode, node.target, node.args, {})


# -- dtypes -----------------------------------------------------------------------------------------------------------


def _relative(graph: Graph, node: Node, dtype: torch.dtype | None, ref: Node | None) -> None:
    """Make the dtype of one node relative to ``ref`` if it is the compute dtype, else explicit."""
    target = node.target
    if target is aten.type_as.default:
        node.target, node.kwargs = aten.to.other, {}
        return
    if not isinstance(target, torch._ops.OpOverload) or not any(a.name == "dtype" for a in target._schema.arguments):
        return
    bound = arguments(node)
    asked = bound.get("dtype")
    inputs = [arg for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), Tensor)]
    if asked is None and inputs:
        return  # relative already
    made = _dtype(node)
    if made != dtype or dtype is None or ref is None:
        if asked is None and made is not None and made.is_floating_point:
            # without a dtype the global default decides, which may change
            node.kwargs = {**node.kwargs, "dtype": made}
        return
    if target in _CASTS:
        _cast(node, bound, ref)
    elif target in _NEW:
        value = [bound[name] for name in ("s", "fill_value") if name in bound]
        node.target, node.args, node.kwargs = _NEW[target], (ref, bound.get("size", []), *value), {}
    elif inputs and all(_dtype(arg) == dtype for arg in inputs):
        _drop_dtype(node)
    elif not node.users or any(user.target is not aten.to.other for user in node.users):
        _convert_behind(graph, node, dtype, ref)


def _cast(node: Node, bound: dict[str, Any], ref: Node) -> None:
    layout = bound.get("memory_format")
    format_ = {} if layout in (None, torch.preserve_format) else {"memory_format": layout}
    if _dtype(bound["self"]) == _dtype(node):
        # a conversion to the dtype that it has already: a copy
        node.target, node.args, node.kwargs = aten.clone.default, (bound["self"],), format_
    else:
        node.target, node.args, node.kwargs = aten.to.other, (bound["self"], ref), format_


def _drop_dtype(node: Node) -> None:
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    position = names.index("dtype")
    if position < len(node.args):
        node.update_arg(position, None)
    else:
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "dtype"}


def _convert_behind(graph: Graph, node: Node, dtype: torch.dtype, ref: Node) -> None:
    """Follow an operator that makes ``dtype`` by a conversion to the dtype of ``ref``."""
    node.kwargs = {**node.kwargs, "dtype": dtype} if "dtype" not in node.kwargs and _keyword(node) else node.kwargs
    with graph.fx.inserting_after(node):
        converted = graph.fx.call_function(aten.to.other, (node, ref))
    converted.meta = {key: value for key, value in node.meta.items() if key != "val"}
    converted.meta["val"] = fake_call(graph.fake_mode, converted.target, (node, ref), {})
    node.replace_all_uses_with(converted, delete_user_cb=lambda user: user is not converted)


def _keyword(node: Node) -> bool:
    assert isinstance(node.target, torch._ops.OpOverload)
    return any(argument.name == "dtype" and argument.kwarg_only for argument in node.target._schema.arguments)
