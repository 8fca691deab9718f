"""TorchInductor with freezing: what is left when weights are constants and its own patterns have been applied."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

from benchmarks.peers import Contractions, convolution, product

if TYPE_CHECKING:
    from collections.abc import Iterator

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "dot")


@contextlib.contextmanager
def freezing() -> Iterator[None]:
    """Freeze what is compiled, and traced, inside.

    ``torch.compile(options={"freezing": True})`` is not enough: the option holds while Inductor runs, and by then the
    weights have been traced as inputs.
    """
    import torch._inductor.config

    with torch._inductor.config.patch(freezing=True), torch.no_grad():
        yield


def contractions(module: nn.Module, inputs: tuple[Any, ...]) -> Contractions:
    """The contractions of the frozen program."""
    import torch._inductor.freezing as pass_

    graphs: list[fx.GraphModule] = []
    freeze = pass_.freeze

    def recording(*args: Any, **kwargs: Any) -> Any:
        result = freeze(*args, **kwargs)
        graphs.append(result[0])
        return result

    torch._dynamo.reset()
    uncached = torch._inductor.config.patch(force_disable_caches=True)  # a stored result would skip the passes
    with freezing(), uncached, mock.patch.object(pass_, "freeze", recording), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compile(module, dynamic=False)(*inputs)
    return sum((_of(graph, node) for graph in graphs for node in graph.graph.nodes), Contractions())


def _of(graph: fx.GraphModule, node: fx.Node) -> Contractions:
    result = _shape(graph, node)
    if node.op != "call_function" or result is None:
        return Contractions()
    # what has been fused is a function around its match; its text names the operator
    name = node.target._opname if isinstance(node.target, torch._ops.OpOverload) else str(node.target)
    operands = [shape for shape in (_shape(graph, argument) for argument in node.args) if shape is not None]
    if "convolution" in name and "backward" not in name:
        transposed = "transpose" in name or (name == "convolution" and bool(node.args[6]))
        return convolution(operands[0], operands[1], result, transposed)
    if name in _PRODUCTS or "linear" in name:
        return product(operands[1] if name in ("addmm", "baddbmm") else operands[0], result)
    return Contractions()


def _shape(graph: fx.GraphModule, argument: Any) -> tuple[int, ...] | None:
    if not isinstance(argument, fx.Node):
        return None
    value = argument.meta.get("val")
    if not isinstance(value, Tensor) and argument.op == "get_attr":
        value = getattr(graph, str(argument.target), None)
    return tuple(int(n) for n in value.shape) if isinstance(value, Tensor) else None
