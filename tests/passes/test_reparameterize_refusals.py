"""What does not merge, with the reason and the culprit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import Reparameterize
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
    assert "the norm uses batch statistics" in reasons(Branches(parts), torch.randn(IMAGE))


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
