"""What a refusal tells people to do makes the rule match."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes import FoldAffine
from rewrite.driver import Refused
from rewrite.testing import assert_rule
from tests.passes.blocks import Block, conv
from tests.passes.rewriting import rewrite, scatter

Forward = Callable[[Block, Tensor], Tensor]

SHIFT, INPUT, NORM, BEFORE, SCALE, MAP = (
    "fold-shift", "fold-input-shift", "fold-norm-affine", "fold-batch-norm-before", "fold-layer-scale", "fold-bias-map",
)  # fmt: skip

CASES: dict[str, tuple[str, Forward, str, Forward]] = {
    "a shift behind an activation": (
        SHIFT, lambda self, x: self.conv(x).relu() + self.vector,
        "apply the shift before relu", lambda self, x: (self.conv(x) + self.vector).relu(),
    ),
    "a wider shift": (
        SHIFT, lambda self, x: (self.conv(x) + self.vector.double()).tanh(),
        "convert the shift to torch.float32", lambda self, x: (self.conv(x) + self.vector).tanh(),
    ),
    "a part that is returned": (
        SCALE, lambda self, x: self.conv(x)[:, :2] * 2,
        "return what is computed from mul", lambda self, x: (self.conv(x)[:, :2] * 2).tanh(),
    ),
    "a factor of mixed channels": (
        SCALE, lambda self, x: (self.conv(x).reshape(2, 5, 24) * self.rows).tanh(),
        "apply the factor, over 4 channels, before reshape",
        lambda self, x: (self.conv(x) * self.vector).reshape(2, 5, 24).tanh(),
    ),
    "a shift before the convolution's zeros": (
        INPUT, lambda self, x: self.padded(x + self.vector),
        "set padding=0", lambda self, x: self.conv(x + self.vector),
    ),
    "a shift before zeros by name": (
        INPUT, lambda self, x: self.conv(F.pad(x + self.vector, [1, 1])),
        "let pad (here) come before the shift", lambda self, x: self.conv(F.pad(x, [1, 1]) + self.vector),
    ),
    "a shift before the largest": (
        INPUT, lambda self, x: self.linear((x + self.vector).amax((2, 3))),
        "apply the shift behind amax", lambda self, x: self.linear(x.amax((2, 3)) + self.vector[:, 0, 0]),
    ),
    "a shift of rows": (
        INPUT, lambda self, x: self.columns(x + self.vector),
        "let the shift vary along dimension 3", lambda self, x: self.columns(x + self.features),
    ),
    "a shift before a transposed convolution": (
        INPUT, lambda self, x: self.transposed(x + self.vector),
        "put the shift right behind it", lambda self, x: self.transposed(x) + self.vector,
    ),
    "a norm before a pool that counts zeros": (
        BEFORE, lambda self, x: self.conv(F.avg_pool2d(self.norm(x), 3, 2, 1)),
        "let avg_pool2d (here) come before the norm",
        lambda self, x: self.conv(self.norm(F.avg_pool2d(x, 3, 2, 1))),
    ),
    "a norm that is added, too": (
        NORM, lambda self, x: self.columns(y := self.layer_norm(x)) + y,
        "let add (here) read the value of a module of its own",
        lambda self, x: self.columns(self.layer_norm(x)) + self.other_norm(x),
    ),
    "a norm before zeros": (
        NORM, lambda self, x: self.padded(self.channels_last(x, self.four)),
        "give the norm no bias", lambda self, x: self.padded(self.channels_last(x, self.unbiased)),
    ),
    "a norm of images": (
        NORM, lambda self, x: self.columns(self.images(x)),
        "build the norm over the channels alone", lambda self, x: self.columns(self.layer_norm(x)),
    ),
    "a weight of two layers": (
        NORM, lambda self, x: self.columns(self.layer_norm(x)) + self.columns(x),
        "give linear in 'columns' a weight of its own",
        lambda self, x: self.other_columns(self.layer_norm(x)) + self.columns(x),
    ),
    "a map of the bias that is too large": (
        MAP, lambda self, x: self.padded(self.norm(x)),
        "put the norm right behind it", lambda self, x: self.norm(self.padded(x)),
    ),
}  # fmt: skip

READ_TOO: dict[str, tuple[Callable[[Block, Tensor], Any], str]] = {
    # what reads the layer too, and the remedy
    "the caller": (lambda self, x: (h := self.conv(x), h * self.vector), "return the value of a module of its own"),
    "arithmetic": (
        lambda self, x: (lambda h: h.sin() + (2 - h) * h)(self.conv(x)),
        "let sin read the value of a module of its own",
    ),
    "an operator in place": (lambda self, x: in_place(self.conv(x)), ""),
}


@pytest.mark.parametrize("name", READ_TOO)
def test_a_layer_that_others_read_is_said_to_be_read(name: str):
    forward, remedy = READ_TOO[name]
    result = rewrite(model(forward), FoldAffine(), torch.randn(2, 4, 5, 6))
    assert result.reasons
    for refused in result.record.refused:
        assert refused.reason == "conv2d in 'conv' is also read elsewhere"
        assert re.sub(r" \(.*?\)", "", refused.remedy) == remedy


def in_place(h: Tensor) -> Tensor:
    h[:, :2].mul_(3)
    return h


THEN = {
    "a shift before a transposed convolution": SHIFT,
    "a map of the bias that is too large": "fold-batch-norm-after",
}


def channels_last(x: Tensor, norm: nn.Module) -> Tensor:
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def model(forward: Callable[[Block, Tensor], Any]) -> nn.Module:
    block = Block(
        forward, conv=conv(4, 4, 1), padded=conv(4, 4, 3, padding=1), transposed=nn.ConvTranspose2d(4, 4, 2),
        linear=nn.Linear(4, 4), columns=nn.Linear(6, 6), other_columns=nn.Linear(6, 6), norm=nn.BatchNorm2d(4),
        layer_norm=nn.LayerNorm(6), other_norm=nn.LayerNorm(6), images=nn.LayerNorm([5, 6]), four=nn.LayerNorm(4),
        unbiased=nn.LayerNorm(4, bias=False), vector=torch.randn(4, 1, 1), features=torch.randn(6),
        rows=torch.randn(5, 1),
    )  # fmt: skip
    block.channels_last = channels_last
    return scatter(block)


def refusals(forward: Forward, rule: str) -> list[Refused]:
    result = assert_rule(FoldAffine(), model(forward), torch.randn(2, 4, 5, 6), matches=0)
    return [refused for refused in result.record.refused if refused.rule == rule]


@pytest.mark.parametrize("name", CASES)
def test_the_remedy_helps(name: str):
    rule, blocked, remedy, mended = CASES[name]
    [refused] = refusals(blocked, rule)
    assert remedy in re.sub(r"\(test_\w+\.py:\d+\)", "(here)", refused.remedy)
    assert refused.culprit
    result = assert_rule(FoldAffine(), model(mended), torch.randn(2, 4, 5, 6), batches=())
    assert THEN.get(name, rule) in [commit.rule for commit in result.record.commits]
