"""Graphs of Dynamo that write where autograd does not see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from rewrite import compat
from rewrite.dynamo.decline import Declined
from rewrite.provenance import location
from rewrite.trace.errors import place
from rewrite.trace.hidden import HiddenWriteError, without_hidden_writes

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


def decline_hidden_writes(module: GraphModule) -> None:
    """Raise :class:`Declined` where a graph, called with gradients on, writes so that autograd cannot know.

    The graph runs once on recorded values, whose aliases are those of real ones.
    """
    recorded = [node.meta["example_value"] for node in module.graph.find_nodes(op="placeholder")]
    mode = next((value.fake_mode for value in recorded if isinstance(value, compat.FakeTensor)), None)
    if mode is None:
        return
    run = _Run(module, mode)
    with compat.without_fresh_symbols(mode), mode:
        copies = [_copy(value) if isinstance(value, Tensor) else value for value in recorded]
        try:
            with without_hidden_writes():
                run.run(*copies)
        except HiddenWriteError as error:
            where = "" if run.node is None else place(location(run.node))
            raise Declined(
                f"'{error.operator}'{where} writes to a value with gradients, where autograd does not see it"
            ) from error


def _copy(value: Tensor) -> Tensor:
    """A copy that may be written, with gradients where the value has them."""
    copied = value.detach().clone()
    # a leaf must not be written in place, and the result of an operator may
    return copied.requires_grad_().clone() if value.requires_grad else copied


class _Run(fx.Interpreter):
    """Runs a graph on recorded values.

    Attributes:
        node: the one that runs.
    """

    def __init__(self, module: GraphModule, mode: compat.FakeTensorMode):
        super().__init__(module)
        self.node: Node | None = None
        self._mode = mode

    def run_node(self, n: Node) -> Any:
        self.node = n
        return super().run_node(n)

    def fetch_attr(self, target: str) -> Any:
        return self._mode.from_tensor(super().fetch_attr(target), static_shapes=True)
