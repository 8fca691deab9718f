"""A captured graph runs in float64, in another memory format and on another device."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewrite.trace import Capture, capture, normalize, retarget
from tests.trace.support import assert_captures, assert_equal, module, targets

aten = torch.ops.aten


def assert_runs_in_double(model: nn.Module, captured: Capture, *args: Any) -> None:
    """The graph in float64 agrees with the model in float64, up to constants that the model makes in float32."""
    weights = {k: t.double() if t.is_floating_point() else t for k, t in captured.graph.weights.items()}
    run = captured.graph.to_module(weights)
    lifted = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    with torch.no_grad():
        found = run(*lifted)
        assert_equal(found, copy.deepcopy(model).double()(*lifted), rtol=1e-6, atol=1e-6)
    for leaf in torch.utils._pytree.tree_leaves(found):
        assert leaf.dtype == torch.float64


CREATION = {
    "zeros": lambda x: torch.zeros(x.shape[0], 4),
    "ones": lambda x: torch.ones(4, dtype=torch.float32),
    "empty": lambda x: torch.empty(4).fill_(0.25),
    "full": lambda x: torch.full((4,), 0.5),
    "arange": lambda x: torch.arange(0, 1, 0.25),
    "arange of int": lambda x: torch.arange(4).float(),
    "arange in dtype": lambda x: torch.arange(4, dtype=torch.float32),
    "linspace": lambda x: torch.linspace(0, 1, 4),
    "logspace": lambda x: torch.logspace(0, 1, 4),
    "eye": lambda x: torch.eye(4)[1],
    "triangle": lambda x: torch.tril(torch.ones(4, 4))[2],
    "window": lambda x: torch.hann_window(4),
    "mask": lambda x: (x > 0).float(),
    "mask cast": lambda x: (x > 0).to(x.dtype),
    "one hot": lambda x: F.one_hot(torch.arange(4), 4).to(torch.float32)[0],
    "scalar tensor": lambda x: torch.scalar_tensor(0.5),
    "tensor": lambda x: torch.tensor([0.5, 1, 2, 4]),
    "where": lambda x: torch.where(x > 0, 1.0, x),
    "like": lambda x: torch.ones_like(x) + torch.full_like(x, 0.5),
    "like of int": lambda x: torch.ones_like(torch.arange(4), dtype=torch.float32),
    "new": lambda x: x.new_ones(4) + x.new_full((4,), 0.5) + torch.arange(4).new_zeros(4, dtype=torch.float32),
    "softmax with dtype": lambda x: F.softmax(x, -1, dtype=torch.float32),
    "sum with dtype": lambda x: x.sum(1, dtype=torch.float32, keepdim=True),
    "sum of mask": lambda x: (x > 0).sum(1, keepdim=True, dtype=torch.float32),
    "type": lambda x: (x > 0).type(torch.float32) + (x > 0).type_as(x),
    "copy to own dtype": lambda x: x.to(torch.float32, copy=True),
}


@pytest.mark.parametrize("kind", CREATION)
def test_dtypes_are_relative(kind: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        # a product of matrices does not promote: a float32 left over fails
        made = CREATION[kind](x)
        return self.linear(made.expand(x.shape[0], 4)) + F.linear(x, self.linear.weight)

    model = module(forward, linear=nn.Linear(4, 4))
    x = torch.randn(3, 4)
    captured = assert_captures(model, x)
    captured.graph.check()
    reference = model(x)
    assert torch.allclose(captured.graph.to_module()(x), reference, atol=1e-6)
    weights = {k: t.double() for k, t in captured.graph.weights.items()}
    with torch.no_grad():
        double = captured.graph.to_module(weights)(x.double())
    assert double.dtype == torch.float64
    assert_equal(double.float(), reference.detach(), atol=1e-5)


def test_random_numbers_are_relative() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.linear(torch.randn(x.shape[0], 4)) + self.linear(torch.bernoulli(torch.full((4,), 0.5)))

    captured = capture(module(forward, linear=nn.Linear(4, 4)), (torch.randn(3, 4),))
    weights = {k: t.double() for k, t in captured.graph.weights.items()}
    assert captured.graph.to_module(weights)(torch.randn(3, 4).double()).dtype == torch.float64


def test_what_depends_on_weights_alone_still_does() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        filters = torch.sin(torch.linspace(0, 1, 8)[:, None] * self.frequency) @ torch.eye(4)
        return x @ filters.t() + torch.zeros(8)

    graph = capture(module(forward, frequency=nn.Parameter(torch.randn(4))), (torch.randn(3, 4),)).graph
    (matmul,) = [node for node in graph.calls() if node.target is aten.matmul.default and graph.inputs[0] in node.args]
    assert graph.is_constant(matmul.args[1])


def test_other_dtypes_are_what_the_user_asked_for() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        coarse = self.linear(x).to(torch.bfloat16)
        return coarse, coarse.float() + x, torch.zeros(4, dtype=torch.float64), torch.arange(4), x.double()

    captured = assert_captures(module(forward, linear=nn.Linear(4, 4)), torch.randn(3, 4))
    dtypes = [node.meta["val"].dtype for node in captured.graph.outputs]
    assert dtypes == [torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.float64]
    weights = {k: t.double() for k, t in captured.graph.weights.items()}
    out = captured.graph.to_module(weights)(torch.randn(3, 4).double())
    assert [t.dtype for t in out] == [torch.bfloat16, torch.float64, torch.float64, torch.int64, torch.float64]


def test_compute_dtype_is_that_of_the_weights() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        wide = F.layer_norm(self.linear(x).float(), (4,))
        return wide.to(torch.bfloat16) + torch.zeros(4, dtype=torch.bfloat16)

    model = module(forward, linear=nn.Linear(4, 4)).bfloat16()
    captured = capture(model, (torch.randn(3, 4, dtype=torch.bfloat16),))
    assert "aten.new_zeros.default" in targets(captured)
    casts = [n for n in captured.graph.calls() if n.target is aten._to_copy.default]
    assert [n.kwargs["dtype"] for n in casts] == [torch.float32]


def test_default_dtype_at_run_time_does_not_matter() -> None:
    captured = capture(module(lambda self, n: torch.zeros(4) + torch.linspace(0, 1, 4) + n), (torch.arange(4),))
    run = captured.graph.to_module()
    torch.set_default_dtype(torch.float64)
    try:
        assert run(torch.arange(4)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


# -- memory formats ---------------------------------------------------------------------------------------------------


def layouts() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.conv(x)
        b, c, h, w = y.shape
        tokens = y.flatten(2).transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2).contiguous().view(b, -1)
        return (
            y.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w),
            tokens,
            y.flatten(1),
            y.mean((2, 3)).view(b, c),
        )

    return module(forward, conv=nn.Conv2d(3, 4, 3, padding=1))


@pytest.mark.parametrize("example", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("call", [torch.contiguous_format, torch.channels_last])
def test_views_fit_every_memory_format(example: torch.memory_format, call: torch.memory_format) -> None:
    model = layouts()
    x = torch.randn(2, 3, 6, 6)
    captured = capture(model, (x.to(memory_format=example),))
    assert not {"aten.view.default", "aten._unsafe_view.default"} & set(targets(captured))
    with torch.no_grad():
        weights = {"conv.weight": model.conv.weight.to(memory_format=call), "conv.bias": model.conv.bias}
        assert_equal(captured.graph.to_module(weights)(x.to(memory_format=call)), model(x))


def test_copies_for_reshapes_are_dropped() -> None:
    captured = assert_captures(
        module(lambda self, x: (x * 2).permute(0, 2, 3, 1).contiguous().view(2, -1) + x.transpose(1, 2).reshape(2, -1)),
        torch.randn(2, 3, 4, 4),
    )
    assert "aten.clone.default" not in targets(captured)


def test_dropout_in_evaluation_is_left_for_a_pass() -> None:
    captured = assert_captures(nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4)).eval(), torch.randn(3, 4))
    assert targets(captured) == ["aten.linear.default", "aten.clone.default", "aten.linear.default"]


def test_assertions_are_dropped() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x.double().float() + x.half()

    assert not [name for name in targets(assert_captures(module(forward), torch.randn(3, 4))) if "assert" in name]


def test_normalizing_again_changes_nothing() -> None:
    for function in CREATION.values():
        graph = capture(module(lambda self, x, f=function: f(x) + self.w, w=torch.ones(4)), (torch.randn(3, 4),)).graph
        before = str(graph.fx)
        assert str(normalize(graph).fx) == before


# -- devices ----------------------------------------------------------------------------------------------------------


def test_graph_on_another_device() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        index = torch.arange(4, device=x.device)
        return self.linear(x)[:, index] + torch.linspace(0, 1, 4, device=x.device), torch.randn(3, device=x.device)

    captured = capture(module(forward, linear=nn.Linear(4, 4)), (torch.randn(1, 4),))
    moved = retarget(captured.graph, "meta")
    assert str(next(iter(captured.graph.calls())).meta["val"].device) == "cpu"
    devices = {str(n.meta["val"].device) for n in moved.nodes if isinstance(n.meta.get("val"), Tensor)}
    assert devices == {"meta"}
    moved.check()
    run = moved.to_module({name: t.to("meta") for name, t in moved.weights.items()})
    out, drawn = run(torch.randn(5, 4, device="meta"))
    assert out.shape == (5, 4)
    assert out.device.type == drawn.device.type == "meta"
    # the original still runs where it was
    assert captured.graph.to_module()(torch.randn(5, 4))[0].device.type == "cpu"
