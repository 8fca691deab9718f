"""Where taps go: rectangular, even, dilated, strided and grouped kernels, and every way to extend the input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from passes import Reparameterize
from passes.reparameterize import build, embed
from passes.reparameterize.kernels import Taps
from rewrite.driver import Driver
from rewrite.ops import Pad
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.passes.blocks import NORMS, Branches, conv, merged


def test_rectangular_kernels_keep_their_sides_apart():
    model = Branches(
        [conv(4, 4, (3, 7), padding=(1, 3)), conv(4, 4, (1, 5), padding=(0, 2)), conv(4, 4, (3, 1), padding=(1, 0))]
    )
    result = merged(model, torch.randn(2, 4, 9, 8))
    assert result.layers[0].kernel == (3, 7)


def test_even_kernels_align_by_their_first_tap():
    model = Branches([conv(4, 4, 8, padding="same"), conv(4, 4, 5, padding="same"), conv(4, 4, 4, padding="same")])
    result = merged(model, torch.randn(2, 4, 9, 11))
    assert result.operators == ["conv2d"]
    assert result.layers[0].kernel == (8, 8)
    assert result.layers[0].padding == ((3, 4), (3, 4))


def test_unequal_padding_is_padded_first():
    parts = [nn.Sequential(nn.ZeroPad2d((2, 0, 1, 3)), conv(4, 4, (5, 3))), conv(4, 4, 3, padding=1)]
    result = merged(Branches(parts), torch.randn(2, 4, 9, 8))
    assert result.operators == ["constant_pad_nd", "conv2d"]
    assert result.layers[0].kernel == (5, 4)


def test_branches_dilated_alike_stay_dilated():
    model = Branches([conv(4, 4, 5, padding=4, dilation=2), conv(4, 4, 3, padding=2, dilation=2), conv(4, 4, 1)])
    result = merged(model, torch.randn(2, 4, 9, 8))
    assert result.layers[0].kernel == (5, 5)
    assert result.layers[0].dilation == (2, 2)


def test_a_dilated_branch_larger_than_the_kernel_makes_it_grow():
    model = Branches(
        [
            conv(4, 4, 7, padding=3),
            conv(4, 4, 5, padding=4, dilation=2),
            conv(4, 4, (7, 5), padding=(3, 4), dilation=(1, 2)),
        ]
    )
    result = merged(model, torch.randn(2, 4, 9, 8), layers=1)
    assert result.layers[0].kernel == (9, 9)


def test_groups_are_joined_where_a_dense_branch_asks_for_it():
    model = Branches(
        [conv(8, 8, 3, padding=1), conv(8, 8, 3, padding=1, groups=4), conv(8, 8, 1, groups=8), nn.Identity()]
    )
    assert merged(model, torch.randn(2, 8, 5, 6)).layers[0].groups == 1


def test_groups_are_joined_only_as_far_as_needed():
    model = Branches([conv(12, 24, 3, padding=1, groups=2), conv(12, 24, 1, groups=4), conv(12, 24, 1, groups=12)])
    assert merged(model, torch.randn(2, 12, 5, 6)).layers[0].groups == 2


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims: int):
    kind = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    model = Branches([kind(4, 4, 3, padding=1), NORMS[dims](4), kind(4, 4, 2, padding="same"), nn.Identity()])
    assert len(merged(model, torch.randn(2, 4, *(5, 6, 4)[:dims])).operators) == 1


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_extensions_merge_with_their_like(mode: str):
    parts = [
        conv(4, 4, 5, padding=2, padding_mode=mode),
        conv(4, 4, (3, 1), padding=(1, 0), padding_mode=mode),
        conv(4, 4, 1),
        nn.Identity(),
    ]
    result = merged(Branches(parts), torch.randn(2, 4, 7, 6))
    assert result.operators == ["pad", "conv2d"]
    assert result.views(Pad)[0].amounts == ((2, 2), (2, 2))


def test_output_sizes_that_agree_only_at_this_size():
    model = Branches([conv(4, 4, 3, stride=2, padding=1), conv(4, 4, 2, stride=2)])
    result = merged(model, torch.randn(2, 4, 8, 6))
    assert result.operators == ["conv2d"]


def test_spatial_sizes_smaller_than_the_kernel():
    model = Branches([conv(4, 4, 7, padding=3), conv(4, 4, 3, padding=1), nn.Identity()])
    merged(model, torch.randn(2, 4, 2, 1))


def swapped_sides(part: tuple[Taps, ...]) -> tuple[Taps, ...]:
    return tuple(replace(tap, low=other.low) for tap, other in zip(part, part[::-1], strict=True))


def centred(part: tuple[Taps, ...]) -> tuple[Taps, ...]:
    return tuple(replace(tap, low=tap.extent // 2) for tap in part)


def one_off(part: tuple[Taps, ...]) -> tuple[Taps, ...]:
    return tuple(replace(tap, low=max(tap.low - 1, 0)) for tap in part)


@pytest.mark.parametrize("mistake", [swapped_sides, centred, one_off])
def test_a_wrong_alignment_is_rejected(mistake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    def misplaced(g: Any, kernel: Any, parts: Any, wholes: Any) -> Any:
        return embed.embedded(g, kernel, mistake(parts), wholes)

    parts = [conv(4, 4, 6, padding="same"), nn.Sequential(nn.ZeroPad2d((2, 0, 0, 2)), conv(4, 4, 3))]
    graph = capture(Branches(parts).eval(), (torch.randn(2, 4, 9, 8),)).graph
    monkeypatch.setattr(build, "embedded", misplaced)
    record = Driver(graph, MatchVerifier()).run([Reparameterize()])[0]
    assert not record.commits
    assert all("differs" in rejection.reason for rejection in record.rejections)
    assert record.rejections
