"""Parallel branches of two layers as one wide branch, against the eager model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import MergeWide
from rewrite import cost
from rewrite.trace import capture
from tests.passes.blocks import Block
from tests.passes.rewriting import apply, assert_exact, folded_graph, rewrite

ROWS, IMAGE = (3, 5, 8), (3, 4, 7, 6)


def mlp(hidden: int, act: Callable[[], nn.Module] = nn.GELU, **options: Any) -> nn.Module:
    first, second = options.pop("first", True), options.pop("second", True)
    return nn.Sequential(nn.Linear(8, hidden, bias=first), act(), nn.Linear(hidden, 8, bias=second))


def convs(hidden: int, kernel: int = 3, last: int = 1, act: Callable[[], nn.Module] = nn.SiLU) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, hidden, kernel, padding=kernel // 2), act(), nn.Conv2d(hidden, 4, last, padding=last // 2)
    )


def block(forward: Callable[..., Tensor], **parts: nn.Module | Tensor) -> Block:
    return Block(forward, **parts).eval()


MERGED: dict[str, tuple[Block, tuple[int, ...], int]] = {
    # model, input, additions that stay
    "two": (block(lambda self, x: self.a(x) + self.b(x), a=mlp(12), b=mlp(5)), ROWS, 0),
    "residual": (block(lambda self, x: x + self.a(x) + self.b(x) + self.c(x), a=mlp(12), b=mlp(5), c=mlp(7)), ROWS, 1),
    "biases mixed": (
        block(lambda self, x: self.a(x) + self.b(x), a=mlp(3, first=False), b=mlp(5, second=False)),
        ROWS,
        0,
    ),
    "no biases": (
        block(lambda self, x: self.a(x) + self.b(x), a=mlp(3, first=False, second=False),
              b=mlp(5, first=False, second=False)),
        ROWS,
        0,
    ),
    "one hidden unit each": (block(lambda self, x: self.a(x) + self.b(x), a=mlp(1), b=mlp(1)), ROWS, 0),
    "subtracted and scaled": (
        block(lambda self, x: x - self.a(x) + torch.add(x.square(), self.b(x), alpha=-2.5), a=mlp(12), b=mlp(5)),
        ROWS,
        2,
    ),
    "f(0) is not zero": (
        block(lambda self, x: self.a(x) + self.b(x) + 2, a=mlp(3, nn.Sigmoid), b=mlp(5, nn.Sigmoid)), ROWS, 1,
    ),
    "two functions": (
        block(lambda self, x: self.c(F.relu(self.a(x)).square()) + self.d(F.relu(self.b(x)).square()),
              a=nn.Linear(8, 3), b=nn.Linear(8, 5), c=nn.Linear(3, 8), d=nn.Linear(5, 8)),
        ROWS,
        0,
    ),
    "kernels": (block(lambda self, x: x + self.a(x) + self.b(x), a=convs(3, 3, 3), b=convs(5, 3, 3)), IMAGE, 1),
    "strides": (
        block(lambda self, x: self.c(self.a(x).relu()) + self.d(self.b(x).relu()),
              a=nn.Conv2d(4, 3, 3, 2), b=nn.Conv2d(4, 5, 3, 2), c=nn.Conv2d(3, 2, 1), d=nn.Conv2d(5, 2, 1)),
        IMAGE,
        0,
    ),
    "transposed": (
        block(lambda self, x: self.c(self.a(x).relu()) + self.d(self.b(x).relu()),
              a=nn.Conv2d(4, 3, 2), b=nn.Conv2d(4, 5, 2), c=nn.ConvTranspose2d(3, 4, 2), d=nn.ConvTranspose2d(5, 4, 2)),
        IMAGE,
        0,
    ),
    "matrices": (
        block(lambda self, x: torch.mm(x.mm(self.a).tanh(), self.c) + torch.mm(x.mm(self.b).tanh(), self.d),
              a=torch.randn(8, 3), b=torch.randn(8, 5), c=torch.randn(3, 4), d=torch.randn(5, 4)),
        (3, 8),
        0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGED)
def test_branches_become_one(name: str):
    model, shape, additions = MERGED[name]
    x = torch.randn(shape)
    graph = capture(model, (x,)).graph
    before = cost.count(graph)
    result = apply(graph, MergeWide())
    assert len(result.record.commits) == 1
    assert len(result.layers) == 2
    assert result.operators.count("add") == additions
    assert_exact(result, model, x)
    for batch in (1, 4):
        assert_exact(result, model, torch.randn(batch, *shape[1:]))
    after = cost.count(folded_graph(result))
    assert after.flops <= before.flops
    assert after.operators < before.operators


def test_an_empty_batch_runs():
    model, _, _ = MERGED["residual"]
    result = rewrite(model, MergeWide(), torch.randn(ROWS))
    assert result.graph.to_module()(torch.randn(0, 5, 8)).shape == (0, 5, 8)


def test_branches_of_each_function_find_together():
    model = block(lambda self, x: self.a(x) + self.b(x) + self.c(x) + self.d(x),
                  a=mlp(3), b=mlp(4, nn.ReLU), c=mlp(5), d=mlp(6, nn.ReLU))  # fmt: skip
    x = torch.randn(ROWS)
    result = rewrite(model, MergeWide(), x)
    assert len(result.record.commits) == 2
    assert len(result.layers) == 4
    assert_exact(result, model, x)


def test_branches_over_each_input_find_together():
    model = block(lambda self, x: (y := x.tanh()) + self.a(x) + self.b(x) + self.c(y) + self.d(y),
                  a=mlp(3), b=mlp(4), c=mlp(5), d=mlp(6))  # fmt: skip
    x = torch.randn(ROWS)
    result = rewrite(model, MergeWide(), x)
    assert len(result.layers) == 4
    assert_exact(result, model, x)


def test_order_of_branches_does_not_matter():
    parts = {"a": mlp(3), "b": mlp(4), "c": mlp(5)}
    x = torch.randn(ROWS).double()
    sums = []
    for order in ("abc", "cab"):
        model = block(lambda self, x, order=order: sum(getattr(self, name)(x) for name in order), **parts)
        graph = rewrite(model, MergeWide(), x.float()).graph
        weights = {name: tensor.double() for name, tensor in graph.weights.items()}
        sums.append(graph.to_module(weights)(x))
    torch.testing.assert_close(*sums)


# -- what is refused ---------------------------------------------------------------------------------------------------


class Erfc(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.erfc()


REFUSED: dict[str, tuple[nn.Module, nn.Module, nn.Module, str, str]] = {
    # two branches, the second one mended as the remedy says, reason, remedy
    "activations": (
        mlp(12), mlp(5, nn.ReLU), mlp(5),
        "the branches have different activations, gelu and relu",
        "give both gelu with the same parameters",
    ),
    "parameters": (
        mlp(12), mlp(5, lambda: nn.GELU(approximate="tanh")), mlp(5),
        "the branches have different activations, gelu and gelu",
        "give both gelu with the same parameters",
    ),
    "norm over hidden units": (
        mlp(12), nn.Sequential(nn.Linear(8, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 8)), mlp(5),
        "layer_norm stands between the layers of a branch, which is no function of single elements",
        "take layer_norm in 'b.1' out from between the layers",
    ),
    "norm behind the function": (
        mlp(12), nn.Sequential(nn.Linear(8, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 8)), mlp(5),
        "layer_norm stands between the layers of a branch, which is no function of single elements",
        "take layer_norm in 'b.2' out from between the layers",
    ),
    "softmax over hidden units": (
        mlp(12), nn.Sequential(nn.Linear(8, 5), nn.Softmax(-1), nn.Linear(5, 8)), mlp(5),
        "softmax stands between the layers of a branch, which is no function of single elements",
        "put an activation, the same in all branches, in the place of softmax in 'b.1'",
    ),
    "slopes that are weights": (
        mlp(12, nn.ReLU), mlp(5, nn.PReLU), mlp(5, nn.ReLU),
        "the slope of prelu is a weight, and each branch may have another",
        "use an activation without weights, the same in all branches",
    ),
    "a function that is not known": (
        mlp(12), mlp(5, Erfc), mlp(5),
        "erfc stands between the layers of a branch, which is not known as a function of single elements",
        "put an activation, the same in all branches, in the place of erfc in 'b.1'",
    ),
    "halves that gate each other": (
        mlp(12), nn.Sequential(nn.Linear(8, 10), nn.GLU(), nn.Linear(5, 8)), mlp(5),
        "glu stands between the layers of a branch, which is no function of single elements",
        "put an activation, the same in all branches, in the place of glu in 'b.1'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_hidden_units_is_refused_until_it_is_mended(name: str):
    first, blocked, mended, reason, remedy = REFUSED[name]

    def forward(self: Block, x: Tensor) -> Tensor:
        return x + self.a(x) + self.b(x)

    result = rewrite(block(forward, a=first, b=blocked), MergeWide(), torch.randn(ROWS))
    assert not result.record.commits
    [refused] = result.record.refused
    assert (refused.reason, refused.remedy) == (reason, remedy)
    assert rewrite(block(forward, a=first, b=mended), MergeWide(), torch.randn(ROWS)).record.commits


def test_windows_have_to_agree():
    for other in (convs(5, 1), convs(5, 3, 3)):
        model = block(lambda self, x: x + self.a(x) + self.b(x), a=convs(3, 3), b=other)
        result = rewrite(model, MergeWide(), torch.randn(IMAGE))
        assert result.reasons == ["the layers of the branches have different kernels, strides or padding"]


def test_groups_are_refused():
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.SiLU(), nn.Conv2d(4, 4, 1))
    model = block(lambda self, x: x + self.a(x) + self.b(x), a=convs(3, 3), b=grouped)
    [refused] = rewrite(model, MergeWide(), torch.randn(IMAGE)).record.refused
    assert (refused.reason, refused.remedy) == ("a layer of a branch has groups", "build conv2d in 'b.0' with groups=1")


def test_dropout_in_training_is_refused():
    model = block(lambda self, x: x + self.a(x) + self.b(x),
                  a=mlp(3), b=nn.Sequential(nn.Linear(8, 5), nn.GELU(), nn.Dropout(), nn.Linear(5, 8)))  # fmt: skip
    result = rewrite(model.train(), MergeWide(), torch.randn(ROWS), training=True)
    assert not result.record.commits
    [refused] = result.record.refused
    assert refused.reason == "dropout draws random numbers for the hidden units"
    assert refused.remedy == "call eval() on 'b.2'"


def test_hidden_units_that_others_read_are_refused():
    def forward(self: Block, x: Tensor) -> Tensor:
        hidden = self.c(x).relu()
        return x + self.a(x) + self.d(hidden) + hidden.mean()

    model = block(forward, a=mlp(3, nn.ReLU), c=nn.Linear(8, 4), d=nn.Linear(4, 8))
    result = rewrite(model, MergeWide(), torch.randn(ROWS))
    assert not result.record.commits
    assert "is also read elsewhere" in result.reasons[0]


def test_branches_that_others_read_stay_and_the_others_merge():
    def forward(self: Block, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        return x + y + self.b(x) + self.c(x), y

    model = block(forward, a=mlp(3), b=mlp(4), c=mlp(5))
    x = torch.randn(ROWS)
    result = rewrite(model, MergeWide(), x)
    assert len(result.layers) == 4
    assert_exact(result, model, x)


def test_weights_that_others_read_would_be_held_twice():
    def forward(self: Block, x: Tensor) -> Tensor:
        y = x + self.a(x) + self.b(x)
        return y + self.a(y).tanh()

    result = rewrite(block(forward, a=mlp(3), b=mlp(4)), MergeWide(), torch.randn(ROWS))
    assert not result.record.commits
    assert "others read its weights too, which would be held twice" in result.reasons


def test_second_layers_that_others_read_would_be_held_twice():
    def forward(self: Block, x: Tensor) -> Tensor:
        return x + self.a(x) + self.b(x) + self.b[2](self.c(x)).tanh()

    model = block(forward, a=mlp(3), b=mlp(4), c=nn.Linear(8, 4))
    result = rewrite(model, MergeWide(), torch.randn(ROWS))
    assert not result.record.commits
    assert result.reasons == ["others read its weights too, which would be held twice"]


def test_first_layers_that_others_read_would_be_held_twice():
    def forward(self: Block, x: Tensor) -> Tensor:
        return x + self.a(x) + self.b(x) + self.b[0](x.tanh()).mean()

    result = rewrite(block(forward, a=mlp(3), b=mlp(4)), MergeWide(), torch.randn(ROWS))
    assert not result.record.commits
    assert result.reasons == ["others read its weights too, which would be held twice"]


VARYING: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "first": lambda self, x: self.b[2](F.gelu(F.linear(x, self.b[0].weight * x.mean()))),
    "second": lambda self, x: F.linear(F.gelu(self.b[0](x)), self.b[2].weight * x.mean()),
}


@pytest.mark.parametrize("which", VARYING)
def test_a_kernel_that_depends_on_the_input_is_refused(which: str):
    model = block(lambda self, x: x + self.a(x) + VARYING[which](self, x), a=mlp(3), b=mlp(4))
    result = rewrite(model, MergeWide(), torch.randn(ROWS))
    assert not result.record.commits
    assert result.reasons == ["the kernel depends on the input"]


def test_a_branch_that_is_added_twice_is_not_computed_twice():
    def forward(self: Block, x: Tensor) -> Tensor:
        y = self.a(x)
        return y + y

    result = rewrite(block(forward, a=mlp(3)), MergeWide(), torch.randn(ROWS))
    assert not result.record.commits


SILENT: dict[str, Block] = {
    "one branch": block(lambda self, x: x + self.a(x), a=mlp(3)),
    "one behind the other": block(lambda self, x: (y := x + self.a(x)) + self.b(y), a=mlp(3), b=mlp(4)),
    "gates": block(
        lambda self, x: x + self.c((y := self.a(x)) * y.sigmoid()) + self.d((z := self.b(x)) * z.sigmoid()),
        a=nn.Linear(8, 3), b=nn.Linear(8, 4), c=nn.Linear(3, 8), d=nn.Linear(4, 8),
    ),
    "single layers": block(lambda self, x: self.a(x) + self.b(x), a=nn.Linear(8, 8), b=nn.Linear(8, 8)),
    "broadcast": block(lambda self, x: x + self.a(x)[:, :1] + self.b(x)[:, :1], a=mlp(3), b=mlp(4)),
}  # fmt: skip


@pytest.mark.parametrize("name", SILENT)
def test_other_sums_stay(name: str):
    result = rewrite(SILENT[name], MergeWide(), torch.randn(ROWS))
    assert not result.record.commits
    assert not result.record.refused
