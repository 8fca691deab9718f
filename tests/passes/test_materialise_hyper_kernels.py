"""Kernels from networks of coordinates are folded; what depends on the input, the batch or chance is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.models.hyper_zzw import Block, ChannelInteraction, GlobalBranch, LocalBranch
from rewrite import CaptureError, optimize
from tests.passes.materialising import (
    assert_folds,
    assert_follows,
    assert_holds,
    assert_same,
    fold,
    operators,
    run,
    seeded,
)
from tests.passes.rewriting import scatter
from tests.programs import same_bits

SIZE = 6
X = torch.randn(3, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_global_kernels_are_folded_to_the_bit() -> None:
    left = ["mul", "conv2d", "instance_norm", "matmul"]
    assert_folds(lambda: GlobalBranch(4, SIZE), X, left=left, warm=True)


def test_kernels_over_channels_are_folded_to_the_bit() -> None:
    left = ["adaptive_avg_pool2d", "mul", "mul", "sigmoid", "mul"]
    assert_folds(lambda: ChannelInteraction(4), X, left=left, warm=True)


def test_global_kernels_follow_their_network() -> None:
    assert_follows(lambda: GlobalBranch(4, SIZE), X, warm=True)


def test_before_the_first_call_the_model_is_refused_and_left_alone() -> None:
    model = seeded(lambda: Block(4, 5, SIZE, local=True), 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CaptureError, match=r"'context\.kernel\.output\.weight'.*call the model once"):
        fold(model, X)
    assert same_bits([*model.state_dict().values()], [*before.values()])
    run(model, X)
    assert_same(fold(model, X), model, X)


# -- a kernel that depends on the input -------------------------------------------------------------------------------


def test_a_kernel_from_the_input_stays_and_what_it_is_made_of_is_folded() -> None:
    model = seeded(lambda: LocalBranch(4, 3), 0, X)
    fast = fold(model, X)
    found = operators(fast)
    assert found.count("mean") == 2  # over the batch, once for each layer: the pools are no weight code
    assert {"linspace", "meshgrid", "sin"}.isdisjoint(found)
    assert assert_same(fast, model, X)
    other = 2 * X.flip(0) + 1
    assert_same(fast, model, other)
    # the last product is the convolution with the kernel, whose weight no buffer holds
    convolutions = [node for node in fast.graph_module.graph.nodes if "conv2d" in str(node.target)]
    assert sum(node.args[1].op == "call_function" for node in convolutions) == 1


def test_one_image_changes_another_and_the_result_does_the_same() -> None:
    model = seeded(lambda: LocalBranch(4, 3), 0, X)
    fast = assert_holds(model, X)
    for each in (model, fast):
        together, alone = run(each, X)[0][:1], run(each, X[:1])[0]
        assert (together - alone).abs().max() > 1e-2
    for batch in (1, 2, 5):
        x = torch.randn(batch, 4, SIZE, SIZE)
        torch.testing.assert_close(run(fast, x)[0], run(model, x)[0], rtol=1e-4, atol=1e-5)


def test_a_norm_over_the_batch_is_not_folded() -> None:
    model = seeded(lambda: LocalBranch(4, 3), 0, X)
    fast = assert_holds(model, X)
    assert "the norm keeps no running statistics" in {refused.reason for refused in fast.report.refusals()}


# -- what no constant may hold ----------------------------------------------------------------------------------------


class Kernel(nn.Module):
    """A depthwise convolution whose kernel ``generate(self, x)`` makes of ``weight`` and ``state``."""

    def __init__(self, generate: Callable[[Kernel, Tensor], Tensor]) -> None:
        super().__init__()
        self.generate = generate
        self.weight = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.register_buffer("state", torch.randn(4, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.generate(self, x), padding=1, groups=4)


def moved(self: Kernel, x: Tensor) -> Tensor:
    self.state.mul_(0.5).add_(self.weight.detach())
    return self.weight.tanh() * self.state.exp()


STAYS: dict[str, tuple[Callable[[Kernel, Tensor], Tensor], str]] = {
    "noise": (lambda self, x: self.weight.tanh() + torch.randn_like(self.weight), "randn_like"),
    "dropout": (lambda self, x: F.dropout(self.weight.tanh(), 0.5, True), "dropout"),
    "state that forward writes": (moved, "exp"),
    "the input": (lambda self, x: self.weight.tanh() * x.mean((0, 2, 3)).view(4, 1, 1, 1), "mean"),
    "the batch": (lambda self, x: self.weight.tanh() / x.shape[0], "div"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_else_a_kernel_depends_on_stays(name: str) -> None:
    generate, operator = STAYS[name]
    model = seeded(lambda: Kernel(generate), 0)
    fast = fold(model, X)
    found = operators(fast)
    assert any(operator in each for each in found)
    assert "tanh" not in found  # and the part that depends on weights alone is folded
    for x in (X, X[:1], X * 2):
        torch.manual_seed(7)
        a = run(fast, x)
        torch.manual_seed(7)
        if name != "state that forward writes":
            assert same_bits(a, run(model, x))


def test_state_that_forward_writes_moves_at_each_call() -> None:
    model, twin = seeded(lambda: Kernel(moved), 0), seeded(lambda: Kernel(moved), 0)
    fast = fold(model, X)
    for _ in range(3):
        assert_same(fast, twin, X)
    assert same_bits([model.state], [seeded(lambda: Kernel(moved), 0).state])


def test_dropout_in_evaluation_is_no_chance() -> None:
    make = lambda: Kernel(lambda self, x: F.dropout(self.weight.tanh(), 0.5, self.training))  # noqa: E731
    assert_folds(make, X, left=["conv2d"])


def test_a_kernel_that_grows_too_much_stays_and_says_how_large_it_is() -> None:
    def spread(self: Kernel, x: Tensor) -> Tensor:
        return (self.weight.tanh() * torch.ones(4, 1, 3, 3)).repeat(1, 1, 85, 85)

    class Wide(Kernel):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.generate(self, x), padding=127, groups=4)

    model = seeded(lambda: Wide(spread), 0)
    fast = fold(model, X, pipeline="fold-constants{growth=4, floor=0.1}")
    assert "repeat" in operators(fast)
    (refused,) = [refused for refused in fast.report.refusals() if "MiB" in refused.reason]
    assert refused.reason == "would take 1.0 MiB, 7225.0 times the 0.0 MiB of its weights"
    assert refused.remedy == "fold-constants{floor=1} folds it"
    assert_same(fast, model, X)
    assert operators(fold(model, X, pipeline="fold-constants{floor=1}")) == ["conv2d"]


class Normed(nn.Module):
    """A kernel from layers that the rewrites would change if they were run at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.before = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.after, self.scale = nn.BatchNorm2d(4), nn.Parameter(torch.rand(4) + 1)

    def forward(self, x: Tensor) -> Tensor:
        axis = torch.linspace(-1, 1, 3)
        y = self.enter(torch.stack(torch.meshgrid(axis, axis, indexing="ij"))[None]).sin()
        y = self.before(y)
        y = self.after(self.left(y) + self.right(y)) * self.scale[:, None, None]
        return F.conv2d(x, y.transpose(0, 1), padding=1, groups=4)


def test_layers_of_a_generator_are_run_as_they_are_written() -> None:
    torch.manual_seed(0)
    model = scatter(Normed())
    fast = fold(model, X, pipeline="reparameterize, fold-constants")
    assert operators(fast) == ["conv2d"]
    assert_same(fast, model, X)
    assert not fast.report.refusals()


class Listed(nn.Module):
    """Keeps factors of its kernel in a list, where no module sees them, as published code does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.alphas = [nn.Parameter(torch.rand(4, 1, 1, 1) + 1) for _ in range(2)]

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight
        for alpha in self.alphas:
            kernel = torch.sin(alpha * kernel)
        return F.conv2d(x, kernel, padding=1, groups=4)


def test_factors_in_a_list_are_constants_of_the_program_and_told() -> None:
    model = seeded(Listed, 0)
    fast = fold(model, X)
    assert operators(fast) == ["conv2d"]
    assert_same(fast, model, X)
    told = [note for note in fast.report.notes if "'alphas[" in note]
    assert len(told) == 2
    assert all("changes are not followed; register it" in note for note in told)
    with torch.no_grad():
        model.weight.mul_(2.0)
    assert_same(fast, model, X)


def test_half_precision_runs_the_generator_in_half_precision() -> None:
    model = seeded(lambda: GlobalBranch(4, SIZE), 0, X).to(torch.bfloat16)
    x = X.to(torch.bfloat16)
    fast = optimize(model, x, pipeline="fold-constants", lower="eager")
    assert_same(fast, model, x)
