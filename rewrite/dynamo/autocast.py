"""Autocast, around a graph of Dynamo and in regions of it, written into the program as conversions.

A rewrite moves and replaces operators, so afterwards each must mean the same wherever it stands.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from rewrite import compat
from rewrite.dynamo.decline import Declined
from rewrite.graph import fake_call
from rewrite.provenance import location
from rewrite.trace.errors import place

if TYPE_CHECKING:
    from collections.abc import Iterator

aten = torch.ops.aten

_ENTER = torch.amp.autocast_mode._enter_autocast
_EXIT = torch.amp.autocast_mode._exit_autocast
_CASTS = (aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.other)


@dataclass(frozen=True)
class _Setting:
    """The dtypes that autocast converts to, by kind of device; a kind that is off is missing."""

    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    def entered(self, kind: str, dtype: torch.dtype | None, enabled: bool) -> _Setting:
        others = {other: known for other, known in self.dtypes.items() if other != kind}
        return _Setting({**others, kind: dtype or torch.get_autocast_dtype(kind)} if enabled else others)


@contextlib.contextmanager
def effective_autocast(module: GraphModule) -> Iterator[GraphModule]:
    """A graph of Dynamo whose calls that switch autocast do so while it is traced, where they would only be recorded.

    Otherwise a conversion to the dtype that a value has without autocast (``y.float()``) is traced as none.
    """
    if not module.graph.find_nodes(op="call_function", target=_ENTER):
        yield module
        return
    entered: list[Any] = []

    def enter(*args: Any) -> None:
        entered.append(torch.amp.autocast(*args))
        entered[-1].__enter__()

    def leave(_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    nodes = fx.Graph()
    mapping: dict[Node, Node] = {}
    for node in module.graph.nodes:
        copied = mapping[node] = nodes.node_copy(node, mapping.__getitem__)
        copied.target = {_ENTER: enter, _EXIT: leave}.get(node.target, node.target)
    try:
        yield GraphModule(module, nodes)
    finally:
        while entered:
            leave(None)


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
