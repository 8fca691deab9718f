"""Modes inside a traced graph: regions without gradients, and regions of autocast, written into the program itself.

Dynamo leaves calls that switch a mode between the operators. A rewrite moves and replaces operators, so afterwards each
operator must mean the same wherever it stands: what a region without gradients gives is detached, and the conversions
that autocast makes become operators.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from rewrite import compat
from rewrite.dynamo.decline import Declined
from rewrite.graph import fake_call
from rewrite.provenance import location
from rewrite.trace.errors import place

aten = torch.ops.aten

_SET_GRAD = torch._C._set_grad_enabled
_ENTER = torch.amp.autocast_mode._enter_autocast
_EXIT = torch.amp.autocast_mode._exit_autocast
_CASTS = (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.other)


# -- gradients --------------------------------------------------------------------------------------------------------


def detach_regions(graph: fx.Graph, differentiate: bool) -> None:
    """Detach what regions without gradients compute, where it leaves them, and drop the calls that switch the mode.

    Args:
        graph: changed in place.
        differentiate: whether gradients are on at its beginning.

    Raises:
        Declined: gradients are switched on inside a graph that begins without them.
    """
    enabled = differentiate
    inside: set[Node] = set()
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is _SET_GRAD:
            enabled = bool(node.args[0])
            if enabled and not differentiate:
                raise Declined(f"gradients are switched on{place(location(node))} inside a call without them")
            graph.erase_node(node)
        elif node.op == "call_function" and differentiate and not enabled:
            inside.add(node)
    for node in inside:
        leaving = [user for user in node.users if user not in inside and user.op != "placeholder"]
        if leaving and isinstance(node.meta.get("val"), Tensor):
            _detach(graph, node, leaving)


def _detach(graph: fx.Graph, node: Node, readers: list[Node]) -> None:
    with graph.inserting_after(node):
        detached = graph.call_function(aten.detach.default, (node,))
    detached.meta = dict(node.meta)
    for reader in readers:
        reader.replace_input_with(node, detached)


# -- autocast ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Setting:
    """The dtypes that autocast converts to, by kind of device; a kind that is off is missing."""

    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    def entered(self, kind: str, dtype: torch.dtype | None, enabled: bool) -> _Setting:
        others = {other: known for other, known in self.dtypes.items() if other != kind}
        return _Setting({**others, kind: dtype or torch.get_autocast_dtype(kind)} if enabled else others)


def explicit_autocast(graph: fx.Graph, mode: compat.FakeTensorMode) -> None:
    """Write the conversions that autocast makes into the graph, and drop the calls that switch it.

    Autocast that is on around the call is meant too: afterwards the graph has to run without any.

    Args:
        graph: changed in place.
        mode: of the recorded values, which are those under autocast.

    Raises:
        Declined: an operator whose conversions cannot be seen from outside.
    """
    setting = _ambient()
    stack: list[_Setting] = []
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is _ENTER:
            kind, dtype, enabled, *_ = node.args
            stack.append(setting)
            setting = setting.entered(str(kind), dtype, bool(enabled))
        elif node.target is _EXIT:
            setting = stack.pop()
        elif setting.dtypes and isinstance(node.target, torch._ops.OpOverload) and node.target not in _CASTS:
            _convert(graph, node, setting, mode)
    for node in reversed(graph.find_nodes(op="call_function", target=_EXIT)):
        graph.erase_node(node)
    for node in reversed(graph.find_nodes(op="call_function", target=_ENTER)):
        graph.erase_node(node)


def _ambient() -> _Setting:
    kinds = [kind for kind in compat.device_kinds() if torch.is_autocast_enabled(kind)]
    return _Setting({kind: torch.get_autocast_dtype(kind) for kind in kinds})


class _Conversions(compat.TorchDispatchMode):
    """Sees which of an operator's arguments are converted before it runs."""

    def __init__(self, tensors: list[Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        self._waiting = {id(tensor) for tensor in tensors}
        self.dtypes: dict[int, torch.dtype] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default and id(args[0]) in self._waiting and set(kwargs) == {"dtype"}:
            self._waiting.discard(id(args[0]))
            self.dtypes[id(args[0])] = kwargs["dtype"]
        return func(*args, **kwargs)


def _convert(graph: fx.Graph, node: Node, setting: _Setting, mode: compat.FakeTensorMode) -> None:
    """Put the conversions of one operator before it."""
    sources = [source for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor)]
    recorder = _Conversions([source.meta["val"] for source in sources])
    with compat.autocast(setting.dtypes), recorder:
        wanted = fake_call(mode, node.target, node.args, node.kwargs)
    converted = {
        source: recorder.dtypes[id(source.meta["val"])] for source in sources
        if id(source.meta["val"]) in recorder.dtypes
    }  # fmt: skip
    for source, dtype in converted.items():
        with graph.inserting_before(node):
            cast = graph.call_function(aten._to_copy.default, (source,), {"dtype": dtype})
        cast.meta = {key: node.meta[key] for key in ("stack_trace", "nn_module_stack") if key in node.meta}
        with compat.without_autocast():
            cast.meta["val"] = fake_call(mode, cast.target, cast.args, cast.kwargs)
        node.replace_input_with(source, cast)
    with compat.without_autocast():
        if not _same_dtypes(fake_call(mode, node.target, node.args, node.kwargs), wanted):
            raise Declined(f"autocast changes '{node.target}'{place(location(node))} in a way that no operator shows")
    node.meta["val"] = wanted


def _same_dtypes(a: Any, b: Any) -> bool:
    pairs = zip(compat.tree_flatten(a)[0], compat.tree_flatten(b)[0], strict=True)
    return all(getattr(x, "dtype", None) == getattr(y, "dtype", None) for x, y in pairs)
