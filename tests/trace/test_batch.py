"""The batch stays open where forward allows it, and is fixed with a note where it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewrite.trace import capture
from tests.trace.support import assert_equal, module


def assert_runs(model: nn.Module, captured: Any, *batches: tuple[Any, ...]) -> None:
    run = captured.graph.to_module()
    with torch.no_grad():
        for args in batches:
            assert_equal(run(*args), model(*args))


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 5)).eval()  # fmt: skip


@pytest.mark.parametrize("example", [1, 2, 5])
def test_any_batch_runs(example: int) -> None:
    model = net()
    captured = capture(model, (torch.randn(example, 3, 8, 8),))
    assert captured.notes == ()
    assert captured.batch is not None
    assert str(captured.graph.outputs[0].meta["val"].shape[0]) == captured.batch
    assert_runs(model, captured, *((torch.randn(n, 3, 8, 8),) for n in (1, 2, 7)))


def test_batch_that_forward_uses_as_a_number() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        pieces = x.reshape(b, 2, c // 2, -1).transpose(1, 2).reshape(b, c, -1)
        return torch.cat([self.token.expand(b, -1, -1), pieces], dim=1) + torch.zeros(b, 1, 1) + torch.ones(b, c + 1, 1)

    model = module(forward, token=torch.randn(1, 1, 16))
    captured = capture(model, (torch.randn(1, 4, 4, 4),))
    assert captured.batch is not None
    assert_runs(model, captured, *((torch.randn(n, 4, 4, 4),) for n in (1, 2, 7)))


def test_several_inputs_share_the_batch() -> None:
    model = module(lambda self, x, y, table, scale: x * y["y"] @ table + scale)
    rest = (torch.randn(4, 4), torch.tensor(2.0))
    captured = capture(model, (torch.randn(1, 4), {"y": torch.randn(1, 4)}, *rest))
    assert captured.batch is not None
    assert isinstance(captured.graph.inputs[2].meta["val"].shape[0], int)
    assert_runs(model, captured, *((torch.randn(n, 4), {"y": torch.randn(n, 4)}, *rest) for n in (1, 2, 7)))


def test_input_that_only_happens_to_agree_does_not_decide() -> None:
    def forward(self: Any, x: Tensor, spare: Any = None, options: Any = None) -> Tensor:
        return x.reshape(x.shape[0], 2, -1) * torch.ones(x.shape[0], 1, 2)

    model = module(forward)
    captured = capture(model, (torch.randn(1, 4), torch.ones(1)), {"options": {"z": torch.ones(1, 3)}})
    run = captured.graph.to_module()
    for n in (1, 2, 7):
        x = torch.randn(n, 4)
        assert_equal(run(x, torch.ones(1), options={"z": torch.ones(1, 3)}), model(x))


@pytest.mark.parametrize("example", [1, 3])
def test_one_tensor_given_twice(example: int) -> None:
    model = module(lambda self, x, y: x @ y.t())
    x = torch.randn(example, 4)
    captured = capture(model, (x, x))
    assert_runs(model, captured, *((torch.randn(n, 4), torch.randn(n, 4)) for n in (1, 2, 7)))


def test_table_with_as_many_rows_as_the_batch() -> None:
    def forward(self: Any, x: Tensor, table: Tensor) -> Tensor:
        return x @ table.view(3, 4).t()

    model = module(forward)
    captured = capture(model, (torch.randn(3, 4), torch.randn(3, 4)))
    assert captured.batch is not None
    assert isinstance(captured.graph.inputs[1].meta["val"].shape[0], int)
    assert_runs(model, captured, *((torch.randn(n, 4), torch.randn(3, 4)) for n in (1, 2, 7)))


def test_mask_for_one_that_serves_all() -> None:
    model = module(lambda self, x, mask: (x * mask).reshape(x.shape[0], -1) + torch.zeros(x.shape[0], 1))
    captured = capture(model, (torch.randn(1, 4, 4), torch.ones(1, 4, 4)))
    assert_runs(model, captured, *((torch.randn(n, 4, 4), torch.ones(1, 4, 4)) for n in (1, 2, 7)))


def test_branch_on_the_batch_fixes_it_with_a_note() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 2 else x + 1

    model = module(forward)
    captured = capture(model, (torch.randn(3, 4),))
    assert captured.batch is None
    assert captured.notes == ("the batch size is fixed at 3: forward depends on it (3 <= batch)",)
    assert_runs(model, captured, (torch.randn(3, 4),))


def test_constant_batch_fixes_it_with_a_note() -> None:
    captured = capture(module(lambda self, x: x.view(3, -1)), (torch.randn(3, 2, 2),))
    assert captured.batch is None
    assert captured.notes == ("the batch size is fixed at 3: forward uses it as a constant",)


def test_batch_of_one_that_means_something() -> None:

    def squeezes(self: Any, x: Tensor) -> Tensor:
        return x.squeeze() * 2

    def counts(self: Any, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] == 1 else x * 3

    for model in (module(squeezes), module(lambda self, x: x.squeeze(0) + 1), module(counts)):
        captured = capture(model, (torch.randn(1, 4),))
        assert captured.batch is None
        assert captured.notes[0].startswith("the batch size is fixed at 1: ")
        assert_runs(model, captured, (torch.randn(1, 4),))


def test_squeeze_of_another_dimension_or_of_a_larger_batch() -> None:
    for model in (
        module(lambda self, x: x.squeeze(1) + 1),
        module(lambda self, x: x.mean((2, 3), keepdim=True).squeeze()),
    ):
        captured = capture(model, (torch.randn(3, 1, 4, 4),))
        assert captured.batch is not None
        assert_runs(model, captured, *((torch.randn(n, 1, 4, 4),) for n in (1, 2, 7)))


def test_inputs_without_a_batch() -> None:
    model = module(lambda self, x: x * 2)
    captured = capture(model, (torch.tensor(3.0),))
    assert captured.batch is None
    assert captured.notes == ()
    assert_runs(model, captured, (torch.tensor(4.0),))


def test_constant_arguments_only() -> None:
    model = module(lambda self, n: self.table * n, table=torch.randn(4))
    captured = capture(model, (3,))
    assert_runs(model, captured, (3,))


def test_model_without_arguments() -> None:
    model = module(lambda self: self.table * 2, table=torch.randn(4))
    assert_runs(model, capture(model, ()), ())


def test_empty_batch_example() -> None:
    captured = capture(net(), (torch.randn(0, 3, 8, 8),))
    assert captured.graph.to_module()(torch.randn(0, 3, 8, 8)).shape == (0, 5)


def test_flat_inputs_are_the_example() -> None:
    x, scale = torch.randn(1, 4), torch.tensor(2.0)
    captured = capture(module(lambda self, x, *, scale: x * scale), (x,), {"scale": scale})
    assert captured.flat_inputs[0] is x
    assert captured.flat_inputs[1] is scale


def test_example_with_gradient_and_memory_format() -> None:
    x = torch.randn(1, 3, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    captured = capture(net(), (x,))
    value = captured.graph.inputs[0].meta["val"]
    assert value.requires_grad
    assert value.stride()[1] == 1
