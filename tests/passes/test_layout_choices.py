"""Convolutions over sequences as over images, explicit padding, and conversions of layouts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import nn

from passes import ChannelsFirst, ChannelsLast, Conv1dAsConv2d, DepthwiseChannelsFirst, ExplicitPadding
from rewrite.driver import Driver
from rewrite.ops import Convolution, view_as
from rewrite.rule import Rule
from rewrite.testing import ConvSpec, assert_rule, convolutions
from rewrite.trace import capture

SEQUENCES = convolutions(dims=1)
ANY = convolutions()


@given(SEQUENCES)
def test_a_convolution_over_a_sequence(layer: ConvSpec):
    assert_rule(Conv1dAsConv2d(), layer.module().eval(), layer.inputs(), matches=1, polynomial=True)


@given(ANY)
def test_explicit_padding(layer: ConvSpec):
    assert_rule(ExplicitPadding(width=1), layer.module().eval(), layer.inputs(), polynomial=True)


def test_padding_is_added_before_wide_kernels():
    model = nn.Conv2d(3, 4, (1, 15), padding=(0, 7)).eval()
    assert_rule(ExplicitPadding(), model, torch.randn(2, 3, 4, 20), matches=1)
    assert_rule(ExplicitPadding(), nn.Conv2d(3, 4, (15, 14), padding=7).eval(), torch.randn(2, 3, 20, 20), matches=0)


def test_what_pads_nothing_is_refused():
    model = nn.Conv2d(3, 4, (1, 15)).eval()
    assert_rule(ExplicitPadding(), model, torch.randn(2, 3, 4, 20), matches=0, refuses="it pads nothing")


@pytest.mark.parametrize(("kernel", "groups", "matches"), [(11, 4, 1), ((3, 10), 4, 1), (9, 4, 0), (11, 2, 0)])
def test_wide_depthwise_kernels_read_channels_first(kernel, groups, matches):
    model = nn.Conv2d(4, 4, kernel, groups=groups).eval()
    assert_rule(DepthwiseChannelsFirst(), model, torch.randn(2, 4, 14, 14), matches=matches)


@pytest.mark.parametrize("rule", [Conv1dAsConv2d(), ExplicitPadding(width=1), ChannelsLast(), ChannelsFirst()])
def test_inputs_without_a_batch_are_refused(rule: Rule):
    model = nn.Conv1d(3, 4, 3, padding=1).eval()
    assert_rule(rule, model, torch.randn(3, 9), matches=0, refuses="no batch dimension")


def test_a_transposed_convolution_over_a_sequence_is_refused():
    model = nn.ConvTranspose1d(3, 4, 3).eval()
    assert_rule(Conv1dAsConv2d(), model, torch.randn(2, 3, 9), matches=0, refuses="transposed")


def test_the_result_of_a_conversion_lies_as_what_was_read():
    model = nn.Conv2d(3, 4, 3).eval()
    x = torch.randn(2, 3, 8, 8)
    for rule, layout in [(ChannelsLast(), torch.channels_last), (ChannelsFirst(), torch.contiguous_format)]:
        graph = capture(nn.Sequential(model, nn.ReLU(), nn.Flatten()).eval(), (x,)).graph
        Driver(graph).run([rule])
        (conv,) = (node for node in graph.calls() if view_as(node, Convolution))
        copy = conv.args[0]
        assert copy.kwargs["memory_format"] is layout
        assert conv.meta["val"].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("rule", [ChannelsLast(), ChannelsFirst()])
@given(layer=ANY)
def test_conversions(rule: Rule, layer: ConvSpec):
    assert_rule(rule, layer.module().eval(), layer.inputs(), matches=1, polynomial=True)
