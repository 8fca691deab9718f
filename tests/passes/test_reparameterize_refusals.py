"""What does not merge, with the reason and the culprit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import Reparameterize
from rewrite.driver import Refused
from tests.passes.blocks import Block, Branches, conv, conv_norm, merged
from tests.passes.rewriting import assert_exact, rewrite, scatter


def reasons(model: nn.Module, *inputs: Tensor, **options: int) -> list[str]:
    """Why nothing merges; norms may fold."""
    scatter(model)
    result = rewrite(model, Reparameterize(**options), *inputs)
    assert not any(commit.rule == "merge-branches" for commit in result.record.commits)
    assert_exact(result, model, *inputs)
    missed = [refused for refused in result.record.refused if refused.rule == "merge-branches"]
    assert all(refused.culprit for refused in missed)
    return [refused.reason for refused in missed]


IMAGE = (2, 4, 6, 5)


def test_other_strides_are_refused():
    model = Branches([conv(4, 4, 1, stride=2), conv(4, 4, 1, stride=(3, 2))])
    assert "the branches have different strides, (2, 2) and (3, 2)" in reasons(model, torch.randn(2, 4, 4, 4))


def test_mixed_extensions_are_refused():
    model = Branches([conv(4, 4, 3, padding=1, padding_mode="reflect"), conv(4, 4, 3, padding=1), nn.Identity()])
    result = rewrite(scatter(model), Reparameterize(), torch.randn(IMAGE))
    assert any("extend the input differently, with reflect and zeros" in reason for reason in result.reasons)
    assert_exact(result, model, torch.randn(IMAGE))
    assert len(result.layers) == 2


def test_an_operator_between_is_refused():
    def forward(self: Block, x: Tensor) -> Tensor:
        x = x.clone()
        y = self.a(x)
        return y + self.b(x.relu_())

    found = reasons(Block(forward, a=conv(4, 4, 3, padding=1), b=conv(4, 4, 1)), torch.randn(IMAGE))
    assert any("the branches read different inputs" in reason for reason in found)


def test_a_branch_that_is_read_elsewhere_is_refused():
    def forward(self: Block, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        return y + self.b(x), y

    found = reasons(Block(forward, a=conv(4, 4, 3, padding=1), b=conv(4, 4, 1)), torch.randn(IMAGE))
    assert any("is also read elsewhere" in reason for reason in found)


def test_batch_statistics_are_refused():
    parts = [conv(4, 4, 3, padding=1), nn.Sequential(conv(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))]
    assert "the norm keeps no running statistics" in reasons(Branches(parts), torch.randn(IMAGE))


def test_training_is_refused():
    model = Branches([conv_norm(4, 3), conv_norm(4, 1)]).train()
    result = rewrite(model, Reparameterize(), torch.randn(IMAGE), training=True)
    assert not result.record.commits
    assert "the norm uses batch statistics" in result.reasons


def test_a_kernel_that_depends_on_the_input_is_refused():
    def forward(self: Block, x: Tensor, w: Tensor) -> Tensor:
        return self.a(x) + F.conv2d(x, w)

    found = reasons(Block(forward, a=conv(4, 4, 3, padding=1)), torch.randn(IMAGE), torch.randn(4, 4, 1, 1))
    assert "the kernel depends on the input" in found


def test_transposed_convolutions_are_refused():
    parts = [conv(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 3, padding=1)]
    assert "the convolution is transposed" in reasons(Branches(parts), torch.randn(IMAGE))


@pytest.mark.parametrize(
    ("pool", "size", "reason"),
    [
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), 6, "divides a window at the border"),
        (nn.AvgPool2d(2, 2, ceil_mode=True), 7, "hang over the end"),
    ],
    ids=["uncounted padding", "overhang"],
)
def test_pools_with_uneven_windows_are_refused(pool: nn.AvgPool2d, size: int, reason: str):
    stride = pool.stride
    layer = conv(4, 4, 3, padding=1, stride=stride)
    assert any(reason in found for found in reasons(Branches([layer, pool]), torch.randn(2, 4, size, size)))


def test_a_merge_that_costs_too_much_is_refused():
    found = reasons(Branches([conv(16, 16, 7, padding=3, groups=16), conv(16, 16, 1)]), torch.randn(2, 16, 8, 8))
    assert any("merging would cost" in reason and "times the multiply-accumulates" in reason for reason in found)


def test_sparse_taps_far_apart_are_refused():
    parts = [conv(4, 4, 3, padding=1, groups=4), conv(4, 4, 3, padding=5, dilation=5, groups=4)]
    assert any(
        "times the multiply-accumulates" in reason for reason in reasons(Branches(parts), torch.randn(2, 4, 12, 12))
    )


def test_max_kernel_bounds_the_merged_kernel():
    parts = [conv_norm(3, 13, groups=3), conv_norm(3, 5, groups=3)]
    assert any(
        "would span 13, more than max_kernel=11" in r
        for r in reasons(Branches(parts), torch.randn(2, 3, 9, 9), max_kernel=11)
    )
    merged(Branches(parts), torch.randn(2, 3, 9, 9), max_kernel=13)


def test_pools_and_identities_alone_are_not_a_convolution():
    assert not reasons(Branches([nn.AvgPool2d(3, 1, 1), nn.Identity()]), torch.randn(IMAGE))


# -- the culprit, and where nobody would expect a merge ---------------------------------------------------------------


def misses(model: nn.Module, *inputs: Tensor, training: bool = False) -> list[Refused]:
    result = rewrite(model if training else scatter(model), Reparameterize(), *inputs, training=training)
    return [refused for refused in result.record.refused if refused.rule == "merge-branches"]


def test_the_reader_outside_of_the_sum_is_the_culprit():
    def forward(self: Block, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        return y + self.b(x), y.sigmoid(), y.tanh()

    [found] = misses(Block(forward, a=conv(4, 4, 3, padding=1), b=conv(4, 4, 1)), torch.randn(IMAGE))
    assert found.culprit_line.split(" = ")[1].startswith("aten.sigmoid(")
    assert found.remedy.startswith("let sigmoid (")
    matched = [line.split(" = ")[1].partition("(")[0] for line in found.matched]
    assert matched == ["aten.conv2d", "aten.conv2d", "aten.add"]


QUIET: dict[str, tuple[Callable[..., Tensor], int]] = {
    "unrelated inputs": (lambda self, x, y: self.a(x) + self.b(y), 2),
    "a layer between": (lambda self, x: self.a(self.b(x).relu()) + self.c(x), 1),
    "one branch and its input": (lambda self, x: self.a(x).relu() + x, 1),
    "a gate on one branch and its input": (lambda self, x: self.a(x) * x.mean((2, 3), keepdim=True) + x, 1),
}


@pytest.mark.parametrize("name", QUIET)
def test_sums_that_nobody_would_merge_are_no_misses(name: str):
    forward, count = QUIET[name]
    model = Block(forward, **{part: conv(4, 4, 3, padding=1) for part in "abc"})
    assert not misses(model, *(torch.randn(IMAGE) for _ in range(count)))


NEAR: dict[str, tuple[Callable[..., Tensor], str, str]] = {
    "gate": (
        lambda self, x: self.a(x) * x.mean((2, 3), keepdim=True) + self.b(x),
        "the factor of a branch depends on the input", "compute it from parameters",
    ),
    "factor of columns": (
        lambda self, x: self.a(x) * self.columns + self.b(x),
        "the factor of a branch is not one for each channel", "give it the shape [4, 1, 1]",
    ),
    "quotient": (
        lambda self, x: self.scale / self.a(x) + self.b(x),
        "a factor is divided by a branch", "divide the branch by it",
    ),
    "other dtype": (
        lambda self, x: self.a(x).double() + self.b(x),
        "a conversion from float32 to float64 stands between the layer and the sum",
        "compute conv2d in 'a' in float64, weights and input; compute conv2d in 'b' in float64",
    ),
    "rectified norm": (
        lambda self, x: self.norm(self.a(x)).relu() + self.b(x).relu(),
        "relu stands between the layer and the sum", "add up before relu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_near_misses_name_what_is_in_the_way(name: str):
    forward, reason, remedy = NEAR[name]
    model = Block(forward, a=conv(4, 4, 3, padding=1), b=conv(4, 4, 1), norm=nn.BatchNorm2d(4),
                  scale=torch.rand(4, 1, 1) + 1, columns=torch.randn(5))  # fmt: skip
    [found] = misses(model, torch.randn(IMAGE))
    assert found.reason == reason
    assert remedy in found.remedy
    assert found.culprit


def test_a_branch_of_another_dtype_is_a_miss():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x.bfloat16())

    model = Block(forward, a=conv(4, 4, 3, padding=1), b=conv(4, 4, 1).bfloat16())
    [found] = misses(model, torch.randn(IMAGE))
    assert found.reason == "a branch is torch.bfloat16 and the sum torch.float32"
    assert found.remedy == "compute conv2d in 'b' in float32, weights and input"


def test_every_branch_that_is_in_the_way_has_its_remedy():
    model = Branches([conv_norm(4, 3), conv_norm(4, 1), nn.ConvTranspose2d(4, 4, 3, padding=1)]).train()
    [found] = misses(model, torch.randn(IMAGE), training=True)
    assert found.reason == "the norm uses batch statistics"
    assert found.remedy == (
        "call eval() on 'parts.0.1'; call eval() on 'parts.1.1'; "
        "write conv_transpose2d in 'parts.2' as a plain convolution, with its kernel flipped"
    )
    assert len(found.matched) == 9


def test_branches_of_one_shape_before_the_culprit_share_a_remedy():
    def forward(self: Block, x: Tensor) -> Tensor:
        return F.max_pool2d(self.a(x), 2) + F.max_pool2d(self.b(x), 2)

    model = Block(forward, a=conv(4, 4, 3, padding=1), b=conv(4, 4, 1))
    [found] = misses(model, torch.randn(IMAGE))
    assert found.remedy.startswith("add up before max_pool2d (test_reparameterize_refusals.py:")
    assert found.remedy.endswith("), with all branches in one shape")
    assert found.remedy.count("add up") == 1

    def mended(self: Block, x: Tensor) -> Tensor:
        return F.max_pool2d(self.a(x) + self.b(x), 2)

    merged(Block(mended, a=conv(4, 4, 3, padding=1), b=conv(4, 4, 1)), torch.randn(IMAGE))


def test_a_reader_within_the_sum_cannot_read_the_sum():
    def forward(self: Block, x: Tensor) -> Tensor:
        y = self.a(x)
        return y + y.sigmoid() + self.b(x)

    parts = {"a": conv(4, 4, 3, padding=1), "b": conv(4, 4, 1), "own": conv(4, 4, 3, padding=1)}
    found = misses(Block(forward, **parts), torch.randn(IMAGE))
    assert {refused.reason for refused in found} == {"conv2d in 'a' is also read elsewhere"}
    for refused in found:
        assert refused.remedy.startswith("let sigmoid (")
        assert refused.remedy.endswith(") read the value of a module of its own")

    def mended(self: Block, x: Tensor) -> Tensor:
        return self.a(x) + self.own(x).sigmoid() + self.b(x)

    result = rewrite(scatter(Block(mended, **parts)), Reparameterize(), torch.randn(IMAGE))
    assert [commit.rule for commit in result.record.commits] == ["merge-branches"]
    assert len(result.layers) == 2


def test_a_pool_that_the_sum_reads_again_has_no_remedy():
    def forward(self: Block, x: Tensor) -> Tensor:
        y = F.avg_pool2d(x, 3, 1, 1)
        return y + y.sigmoid() + self.a(x)

    found = misses(Block(forward, a=conv(4, 4, 3, padding=1)), torch.randn(IMAGE))
    assert {(refused.reason.partition(" (")[0], refused.remedy) for refused in found} == {("avg_pool2d", "")}


def test_one_layer_on_two_ways_to_the_sum_is_no_miss():
    def forward(self: Block, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.norm(y) + y.sigmoid()

    assert not misses(Block(forward, a=conv(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4)), torch.randn(IMAGE))

    def twice(self: Block, x: Tensor) -> Tensor:
        y = self.a(x)
        return y.tanh() + y.sigmoid()

    assert not misses(Block(twice, a=conv(4, 4, 3, padding=1)), torch.randn(IMAGE))


def test_a_training_norm_of_another_input_is_no_miss():
    def forward(self: Block, x: Tensor) -> Tensor:
        return self.a(self.b(x).relu()) + self.c(x)

    model = Block(forward, a=conv_norm(4, 3), b=conv_norm(4, 3), c=conv_norm(4, 1)).train()
    assert not misses(model, torch.randn(IMAGE), training=True)
