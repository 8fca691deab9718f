"""The graphs of Dynamo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def dynamo_source(node: torch.fx.Node) -> str:
    """Where Dynamo found the value of a placeholder: ``L['self']._modules['conv']._parameters['weight']``, or ''."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def functional_graph(module: torch.fx.GraphModule, examples: Sequence[Any]) -> tuple[torch.fx.GraphModule, Any]:
    """A graph of Dynamo as a functional one of high-level ATen, and its signature.

    The placeholders are the module's own parameters and buffers, then its inputs; the outputs are the values of
    mutations, then those of the module. ``examples`` are recorded values.
    """
    from torch._functorch.aot_autograd import aot_export_module
    from torch.fx.experimental import proxy_tensor

    try:
        made: Any = aot_export_module(module, examples, trace_joint=False, pre_dispatch=True, decompositions={})
    finally:
        # which would keep the module and its weights alive until the next trace
        getattr(proxy_tensor, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", {}).clear()
    return made[0], made[1]


def float_symbol(node: torch.fx.Node) -> str | None:
    """For a placeholder of Dynamo that is a Python float, taken for a tensor of which the graph reads the item: the
    name of its symbol; None for any other."""
    memo = getattr(node.meta.get("example_value"), "item_memo", None)
    reads_item = any(user.op == "call_method" and user.target == "item" for user in node.users)
    return getattr(getattr(getattr(memo, "node", None), "_expr", None), "name", None) if reads_item else None


def is_static_by_default() -> bool:
    """Whether Dynamo takes a size or a number for a constant until it changes: without ``dynamic=True``."""
    from torch._dynamo import config

    return bool(config.assume_static_by_default)


def specialize_floats(symbols: Collection[str]) -> None:
    """Let Dynamo trace again, with Python floats as constants: raises its own request to begin anew.

    Args:
        symbols: of the floats; those that were asked for before are no reason to begin anew.
    """
    from torch._dynamo.exc import TensorifyScalarRestartAnalysis
    from torch._dynamo.symbolic_convert import TensorifyState

    fresh = [symbol for symbol in symbols if not TensorifyState.should_specialize(symbol)]
    for symbol in fresh:
        TensorifyState.specialize(symbol)
    if fresh:
        raise TensorifyScalarRestartAnalysis


def dynamo_requests() -> tuple[type[Exception], ...]:
    """What a backend raises, or lets pass, to make Dynamo do something else: no failures."""
    from torch._dynamo import exc

    return (exc.TensorifyScalarRestartAnalysis, exc.SkipFrame)


def graph_number() -> str:
    """Dynamo's number of the graph that it compiles: that of the frame, and that of its compilation; '' outside."""
    from torch._guards import CompileContext

    number = CompileContext.current_compile_id()
    return "" if number is None else str(number)
