"""Python may decide on flags and counters that the model holds; on what a call computes or writes it may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewrite.errors import CaptureError
from rewrite.trace import capture
from tests.trace.support import Picture, assert_captures, module, targets

X = torch.randn(3, 4)


def either(flag: Any, x: Tensor) -> Tensor:
    return x.exp() if flag else x.sin()


def counted(self: nn.Module, x: Tensor) -> Tensor:
    for _ in range(int(self.count)):
        x = x.sin()
    return x


def within_a_region(self: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = 2.0 if self.flags[0] else 3.0
    return x * scale


DECISIONS: dict[str, tuple[Callable[..., Any], dict[str, Tensor], list[str]]] = {
    "flag": (lambda self, x: either(self.flag, x), {"flag": torch.tensor(True)}, ["flag"]),
    "negated": (lambda self, x: either(not self.flag, x), {"flag": torch.tensor(False)}, ["flag"]),
    "one of several": (lambda self, x: either(self.flags[1], x), {"flags": torch.tensor([False, True])}, ["flags"]),
    "compared": (lambda self, x: either(self.bits == 8, x), {"bits": torch.tensor(8)}, ["bits"]),
    "two of three": (
        lambda self, x: either(self.a & self.b, x) + self.c,
        {"a": torch.tensor(True), "b": torch.tensor(True), "c": torch.tensor(5)},
        ["a", "b"],
    ),
    "a size from a mask": (
        lambda self, x: either(self.flag, x) + self.mask.nonzero().shape[0],
        {"flag": torch.tensor(True), "mask": torch.tensor([True])},
        ["flag", "mask"],
    ),
    "number of rounds": (counted, {"count": torch.tensor(3)}, ["count"]),
    "in a region without gradients": (within_a_region, {"flags": torch.tensor([True])}, ["flags"]),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_the_branch_is_that_of_the_present_value(name: str) -> None:
    forward, buffers, decided = DECISIONS[name]
    captured = assert_captures(module(forward, **buffers), X)
    assert list(captured.decided) == decided
    for each, value in captured.decided.items():
        assert torch.equal(value, buffers[each])
        assert value.data_ptr() != buffers[each].data_ptr()
        assert any(note.startswith(f"forward decides on the value of '{each}'") for note in captured.notes)


def test_only_what_is_left_of_the_branch_is_in_the_graph() -> None:
    captured = capture(module(lambda self, x: either(self.flag, x), flag=torch.tensor(False)), (X,))
    assert targets(captured) == ["aten.sin.default"]
    assert list(captured.graph.weights) == []


def test_decisions_leave_the_batch_free() -> None:
    captured = assert_captures(module(counted, count=torch.tensor(2)), X)
    assert captured.batch is not None


def test_models_that_decide_nothing_have_no_decisions() -> None:
    assert not capture(module(lambda self, x: x + self.flag, flag=torch.tensor(True)), (X,)).decided


def counting(self: nn.Module, x: Tensor) -> Tensor:
    y = either(self.count < 2, x)
    self.count += 1
    return y


def touching(self: nn.Module, x: Tensor) -> Tensor:
    self.flag.fill_(True)
    return either(self.flag, x)


def through_a_view(self: nn.Module, x: Tensor) -> Tensor:
    self.flags.logical_not_()
    return either(self.first, x)


FLAGS = torch.tensor([True, False])

REFUSED: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "the input": (lambda self, x: either(x.sum() > 0, x), {"flag": torch.tensor(True)}),
    "the input and a flag": (lambda self, x: either((x.sum() > 0) & self.flag, x), {"flag": torch.tensor(True)}),
    "a counter that forward moves": (counting, {"count": torch.tensor(5)}),
    "a flag that forward writes": (touching, {"flag": torch.tensor(True)}),
    "memory that forward writes": (through_a_view, {"flags": FLAGS, "first": FLAGS[:1]}),
    "a parameter": (lambda self, x: either(self.scale > 0, x), {"scale": nn.Parameter(torch.tensor(1.0))}),
    "statistics": (lambda self, x: either(self.mean > 0, x), {"mean": torch.tensor(1.0)}),
    "a large table": (lambda self, x: either(self.table[3], x), {"table": torch.ones(65, dtype=torch.bool)}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_values_decide_nothing(name: str) -> None:
    forward, attributes = REFUSED[name]
    model = module(forward, **attributes)
    picture = Picture(model)
    with pytest.raises(CaptureError, match="decides on the value of"):
        capture(model, (X,))
    picture.assert_same()


def test_a_flag_that_the_first_call_sets_is_refused_before_it_and_decides_after_it() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if not self.ready:
            with torch.no_grad():
                self.norm.copy_(x.norm())
                self.ready.fill_(True)
        return x / self.norm

    model = module(forward, ready=torch.tensor(False), norm=torch.tensor(1.0))
    picture = Picture(model)
    with pytest.raises(CaptureError, match=r"initializes itself on its first call.*call the model once"):
        capture(model, (X,))
    picture.assert_same()
    model(X)
    assert list(assert_captures(model, X).decided) == ["ready"]


# -- tensors that have no name of their own ---------------------------------------------------------------------------


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(4))
        self.alphas = [nn.Parameter(torch.randn(4)), self.own, torch.randn(4)]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.alphas[0] + self.alphas[1]


def test_tensors_in_containers_are_told() -> None:
    (note,) = [note for note in capture(Listed().eval(), (X,)).notes if "alphas" in note]
    assert note == (
        "forward reads the tensor 'alphas[0]', which no module holds under a name of its own, so its changes are not "
        "followed; register it, in an nn.ParameterList or as a buffer"
    )


def test_a_parameter_that_is_also_in_a_list_is_called_by_its_name() -> None:
    model = Listed().eval()
    graph = assert_captures(model, X).graph
    assert graph.weights["own"] is model.own


def test_a_trained_tensor_in_a_list_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"'alphas\[0\]', which no module holds.*would lose its gradient"):
        capture(Listed(), (X,), training=True)
