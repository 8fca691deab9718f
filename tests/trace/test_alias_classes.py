"""Static alias analysis, against what eager tensors share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewrite.aliases import alias_classes
from rewrite.graph import Graph
from rewrite.trace import capture
from tests.trace.support import module

VIEWS = {
    "itself": lambda x: x,
    "view": lambda x: x.view(-1),
    "reshape": lambda x: x.reshape(-1, 2),
    "row": lambda x: x[0],
    "slice": lambda x: x[:, 1:3],
    "transposed": lambda x: x.t(),
    "permuted": lambda x: x.permute(1, 0),
    "split": lambda x: x.split(2, dim=1)[1],
    "chunk": lambda x: x.chunk(2, dim=1)[0],
    "unbind": lambda x: x.unbind(1)[2],
    "expanded": lambda x: x.unsqueeze(0).expand(5, -1, -1),
    "detached": lambda x: x.detach(),
    "diagonal": lambda x: x.diagonal(),
    "windows": lambda x: x.unfold(1, 2, 1),
    "squeezed": lambda x: x.unsqueeze(1).squeeze(1),
    "einsum": lambda x: torch.einsum("ij->ji", x),
    "broadcast": lambda x: torch.broadcast_tensors(x, x[0])[1],
    "real": lambda x: torch.view_as_complex(x.view(-1, 2, 2)).real,
    "same dtype": lambda x: x.to(torch.float32),
    "narrow of view": lambda x: x.view(2, -1).narrow(1, 0, 3).t(),
}
COPIES = {
    "sum": lambda x: x + 1,
    "clone": lambda x: x.clone(),
    "clone as view": lambda x: x.clone().view(-1),
    "other dtype": lambda x: x.double(),
    "gathered": lambda x: x[torch.tensor([0, 1])],
    "cat": lambda x: torch.cat([x, x]),
    "pad": lambda x: torch.nn.functional.pad(x, (1, 1)),
    "product": lambda x: x @ x.t(),
    "masked": lambda x: torch.where(x > 0, x, 0.0),
}


def graph_of(function: Any, **attributes: Any) -> Graph:
    return capture(module(function, **attributes), (torch.randn(4, 4),)).graph


def shares(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


@pytest.mark.parametrize("kind", VIEWS)
def test_views_are_seen(kind: str) -> None:
    x = torch.randn(4, 4)
    assert shares(VIEWS[kind](x), x)
    graph = graph_of(lambda self, x: VIEWS[kind](x))
    assert alias_classes(graph) == (frozenset({"output 0", f"input {graph.inputs[0].target}"}),)


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_not(kind: str) -> None:
    x = torch.randn(4, 4)
    assert not shares(COPIES[kind](x), x)
    assert alias_classes(graph_of(lambda self, x: COPIES[kind](x))) == ()


def test_outputs_weights_and_written_state() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = x * 2
        self.state.copy_(y[0])
        return y, y.t(), self.table.view(-1), self.table, x + 1

    graph = graph_of(forward, table=torch.ones(2, 2), state=torch.zeros(4))
    assert alias_classes(graph) == (
        frozenset({"output 0", "output 1"}),
        frozenset({"output 2", "output 3", "weight table"}),
    )


def test_what_may_copy_counts_as_a_view_whatever_the_strides() -> None:
    graph = graph_of(lambda self, x: x.t().reshape(-1))
    assert alias_classes(graph) == (frozenset({"output 0", f"input {graph.inputs[0].target}"}),)


def test_a_value_of_two_sources_joins_their_classes() -> None:
    def forward(self: Any, x: Tensor, y: Tensor) -> Any:
        return torch.broadcast_tensors(x, y), x.view(-1)

    graph = capture(module(forward), (torch.randn(4, 4), torch.randn(4))).graph
    (group,) = alias_classes(graph)
    assert {"output 0", "output 1", "output 2"} <= group


def test_results_of_one_operator_lie_apart() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        values, indices = x.topk(2)
        return values, indices, values.t()

    assert alias_classes(graph_of(forward)) == (frozenset({"output 0", "output 2"}),)


def test_answer_is_stable() -> None:
    graph = graph_of(lambda self, x: (x, x.t(), x + 1, x[0]))
    assert alias_classes(graph) == alias_classes(graph) == alias_classes(graph.copy())


def test_plain_outputs_are_no_members() -> None:
    assert alias_classes(graph_of(lambda self, x: (None, 3, x.shape[0], nn.functional.relu(x)))) == ()
