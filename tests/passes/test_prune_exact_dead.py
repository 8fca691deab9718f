"""Channels that are constant, against the eager model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.prune_exact import PruneExact, RemoveDeadChannels
from tests.passes.blocks import Block, conv
from tests.passes.pruning import Forward, kept, norm, pruned, sizes, zeroed
from tests.passes.rewriting import assert_exact, rewrite

STEP = RemoveDeadChannels()
X = torch.randn(2, 3, 8, 6)


def dead(bias: float = 0.0, inputs: int = 3, **options: Any) -> Any:
    """Six channels of which the second and the fifth are constant."""
    return zeroed(conv(inputs, 6, 3, **options), 1, 4, bias=bias)


def squeeze(s: Block, x: Tensor) -> Tensor:
    y = s.a(x)
    return s.b(y * s.excite(s.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid())


def squeeze_flat(s: Block, x: Tensor) -> Tensor:
    y = s.a(x)
    gate = s.excite(s.squeeze(F.adaptive_avg_pool2d(y, 1).flatten(1)).relu()).sigmoid()
    return s.b(y * gate[:, :, None, None].expand_as(y))


REMOVED: dict[str, tuple[list[int], Forward, dict[str, Any]]] = {
    "before 1x1": ([4, 5], lambda s, x: s.b(s.a(x)), {"a": dead(0.7), "b": conv(6, 5, 1)}),
    "before 3x3 without padding": ([4, 5], lambda s, x: s.b(s.a(x).relu()), {"a": dead(0.7), "b": conv(6, 5, 3)}),
    "zero before padding": ([4, 5], lambda s, x: s.b(s.a(x).relu()), {"a": dead(-0.7), "b": conv(6, 5, 3, padding=1)}),
    "zero before same padding": ([4, 5], lambda s, x: s.b(s.a(x)), {"a": dead(), "b": conv(6, 5, 4, padding="same")}),
    "zero into no bias": ([4, 5], lambda s, x: s.b(s.a(x)), {"a": dead(), "b": conv(6, 5, 1, bias=False)}),
    "constant into no bias": ([4, 5], lambda s, x: s.b(F.gelu(s.a(x))), {
        "a": dead(0.7), "b": conv(6, 5, 3, bias=False)}),
    "producer without bias": ([4, 5], lambda s, x: s.b(s.a(x).sigmoid()), {
        "a": zeroed(conv(3, 6, 3, bias=False), 1, 4),
        "b": conv(6, 5, 1)}),
    "every activation": ([4, 5], lambda s, x: s.b(F.hardswish(F.elu(F.softplus(s.a(x)), 0.3))), {
        "a": dead(0.2), "b": conv(6, 5, 1)}),
    "strided and dilated": ([4, 5], lambda s, x: s.b(s.a(x)), {
        "a": dead(0.3, stride=2), "b": conv(6, 5, (2, 1), dilation=2, stride=(1, 2))}),
    "norm without fold": ([4, 5], lambda s, x: s.b(s.n(s.a(x)).relu()), {
        "a": conv(3, 6, 3), "n": norm(6, 0, 3, shift=0.4), "b": conv(6, 5, 1)}),
    "norm behind": ([4, 5], lambda s, x: s.b(s.n(s.a(x)).relu()), {
        "a": dead(0.7), "n": norm(6), "b": conv(6, 5, 3)}),
    "layer scale of zero": ([4, 5], lambda s, x: s.b(s.a(x).sigmoid() * s.g[:, None, None]), {
        "a": conv(3, 6, 3), "g": torch.tensor([1.0, 0, 2, 0, 3, 4]), "b": conv(6, 5, 3, padding=1)}),
    "depthwise between": ([4, 4, 5], lambda s, x: s.b(s.d(s.a(x)).relu()), {
        "a": dead(0.7), "d": conv(6, 6, 3, groups=6), "b": conv(6, 5, 1)}),
    "depthwise with padding, zero": ([4, 4, 5], lambda s, x: s.b(s.d(s.a(x)).relu()), {
        "a": dead(), "d": conv(6, 6, 3, groups=6, padding=1, bias=False), "b": conv(6, 5, 3, padding=1)}),
    "dead in depthwise": ([4, 4, 5], lambda s, x: s.b(s.d(s.a(x)).relu()), {
        "a": conv(3, 6, 3), "d": zeroed(conv(6, 6, 3, groups=6, padding=1), 0, 5, bias=-1.0), "b": conv(6, 5, 3)}),
    "max pool with padding": ([4, 5], lambda s, x: s.b(F.max_pool2d(s.a(x), 3, 2, 1)), {
        "a": dead(-0.7), "b": conv(6, 5, 1)}),
    "average pool": ([4, 5], lambda s, x: s.b(F.avg_pool2d(s.a(x), 2, ceil_mode=True)), {
        "a": dead(0.7), "b": conv(6, 5, 1)}),
    "average pool that leaves out padding": ([4, 5], lambda s, x: s.b(
        F.avg_pool2d(s.a(x), 3, 1, 1, count_include_pad=False)), {"a": dead(0.7), "b": conv(6, 5, 1)}),
    "adaptive pools": ([4, 5], lambda s, x: s.b(F.adaptive_max_pool2d(F.adaptive_avg_pool2d(s.a(x), (4, 3)), 2)), {
        "a": dead(0.7), "b": conv(6, 5, 1)}),
    "interpolation": ([4, 5], lambda s, x: s.b(F.interpolate(s.a(x), scale_factor=2, mode="bilinear")), {
        "a": dead(0.7), "b": conv(6, 5, 3)}),
    "padding by replication": ([4, 5], lambda s, x: s.b(F.pad(s.a(x), (1, 2, 0, 1), "replicate")), {
        "a": dead(0.7), "b": conv(6, 5, 3)}),
    "padding with the same": ([4, 5], lambda s, x: s.b(F.pad(s.a(x), (1, 2), value=0.5)), {
        "a": dead(0.5), "b": conv(6, 5, 3)}),
    "dropout in evaluation": ([4, 5], lambda s, x: s.b(s.d(s.a(x))), {
        "a": dead(0.7), "d": nn.Dropout(), "b": conv(6, 5, 1)}),
    "channels last": ([4, 5], lambda s, x: s.b(s.a(x).permute(0, 2, 3, 1).relu()), {
        "a": dead(0.7), "b": nn.Linear(6, 5)}),
    "flattened": ([4, 5], lambda s, x: s.b(s.a(x).relu().flatten(1)), {"a": dead(0.7), "b": nn.Linear(144, 5)}),
    "flattened with channels last": ([4, 5], lambda s, x: s.b(s.a(x).permute(0, 2, 3, 1).flatten(1)), {
        "a": dead(0.7), "b": nn.Linear(144, 5)}),
    "mean, then linear": ([4, 5], lambda s, x: s.b(s.a(x).mean((2, 3))), {"a": dead(0.7), "b": nn.Linear(6, 5)}),
    "linear to linear": ([4, 5], lambda s, x: s.b(F.silu(s.a(x))), {
        "a": zeroed(nn.Linear(6, 6), 1, 4, bias=0.3), "b": nn.Linear(6, 5)}),
    "matrices": ([4, 5], lambda s, x: torch.mm(s.a(x[:, 0, 0]).relu(), s.w), {
        "a": zeroed(nn.Linear(6, 6), 1, 4, bias=0.3), "w": torch.randn(6, 5)}),
    "transposed producer": ([4, 5], lambda s, x: s.b(s.a(x)), {
        "a": zeroed(nn.ConvTranspose2d(3, 6, 3, 2), 1, 4, bias=0.3), "b": conv(6, 5, 1)}),
    "zero into transposed": ([4, 5], lambda s, x: s.b(s.a(x)), {"a": dead(), "b": nn.ConvTranspose2d(6, 5, 3, 2)}),
    "equal groups": ([3, 5], lambda s, x: s.b(s.a(x)), {
        "a": zeroed(conv(3, 6, 1, groups=3), 1, 2, 4, bias=0.7), "b": conv(6, 5, 1)}),
    "two readers": ([4, 5, 5], lambda s, x: (lambda y: s.b(y) + s.c(y.tanh()))(s.a(x).relu()), {
        "a": dead(0.7), "b": conv(6, 5, 1), "c": conv(6, 5, 1)}),
    "all terms of a sum": ([4, 4, 5], lambda s, x: s.b((s.a(x) - 2 * s.c(x)).relu()), {
        "a": dead(0.7), "c": dead(-0.2), "b": conv(6, 5, 3)}),
    "a number added": ([4, 5], lambda s, x: s.b(1.5 - s.a(x)), {"a": dead(0.7), "b": conv(6, 5, 3)}),
    "a constant added": ([4, 5], lambda s, x: s.b(s.a(x) + s.v), {
        "a": dead(0.7), "v": torch.randn(6, 1, 1), "b": conv(6, 5, 3)}),
    "joined": ([2, 4, 5], lambda s, x: s.b(torch.cat([s.c(x), s.a(x)], 1).relu()), {
        "a": dead(0.7), "c": conv(3, 2, 3), "b": conv(8, 5, 3)}),
    "joined with itself": ([4, 5], lambda s, x: (lambda y: s.b(torch.cat([y, y.sigmoid()], 1)))(s.a(x)), {
        "a": dead(0.7), "b": conv(12, 5, 1)}),
    "parted": ([4, 5, 5], lambda s, x: (lambda y: s.b(y[:, :3]) + s.c(y[:, 3:]))(s.a(x)), {
        "a": dead(0.7), "b": conv(3, 5, 1), "c": conv(3, 5, 1)}),
    "squeeze and excitation": ([4, 2, 4, 5], squeeze, {
        "a": dead(), "squeeze": conv(6, 2, 1), "excite": conv(2, 6, 1), "b": conv(6, 5, 1)}),
    "squeeze and excitation with linear layers": ([4, 2, 4, 5], squeeze_flat, {
        "a": dead(), "squeeze": nn.Linear(6, 2), "excite": nn.Linear(2, 6), "b": conv(6, 5, 3, padding=1)}),
    "another dtype": ([4, 5], lambda s, x: s.b(s.a(x).relu().to(torch.float16).to(x.dtype)), {
        "a": dead(-0.7), "b": conv(6, 5, 1)}),
    "a part of the rows": ([4, 5], lambda s, x: s.b(s.a(x)[:, :, 1:4].roll(1, 3)), {
        "a": dead(0.7), "b": conv(6, 5, 1)}),
    "a maximum over pixels": ([4, 5], lambda s, x: s.b(s.a(x).amax((2, 3))), {"a": dead(0.7), "b": nn.Linear(6, 5)}),
    "a sum over pixels": ([4, 5], lambda s, x: s.b(s.a(x).sum((2, 3))), {"a": dead(), "b": nn.Linear(6, 5)}),
    "pieces of the rows": ([4, 5], lambda s, x: (lambda p: s.b(p[0] + p[1].relu()))(s.a(x).chunk(2, 2)), {
        "a": dead(0.7), "b": conv(6, 5, 1)}),
    "a spatial gate": ([1, 4, 5], lambda s, x: s.b(s.a(x) * s.c(x).sigmoid()), {
        "a": dead(), "c": conv(3, 1, 3), "b": conv(6, 5, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", REMOVED)
def test_dead_channels_go(name: str):
    wanted, forward, parts = REMOVED[name]
    result = pruned(STEP, forward, X, **parts)
    assert sizes(result) == wanted
    assert not result.record.refused


def gate_along_channels(s: Block, x: Tensor) -> Tensor:
    y = s.a(x)
    pooled = F.adaptive_avg_pool2d(y, 1).squeeze(-1).transpose(-1, -2)
    return s.b(y * s.e(pooled).transpose(-1, -2).unsqueeze(-1).sigmoid())


REFUSED: dict[str, tuple[str, str, Forward, dict[str, Any]]] = {
    "padding": ("the convolution pads with zeros, where the channel is 0.7", "conv2d_1",
                lambda s, x: s.b(s.a(x).relu()), {"a": dead(0.7), "b": conv(6, 5, 3, padding=1)}),
    "transposed reader": ("a transposed convolution spreads the constant 0.7 unevenly", "conv_transpose2d",
                          lambda s, x: s.b(s.a(x)), {"a": dead(0.7), "b": nn.ConvTranspose2d(6, 5, 3)}),
    "depthwise with padding": ("the depthwise convolution pads with zeros, where the channel is another constant",
                               "conv2d_1", lambda s, x: s.b(s.d(s.a(x))), {
                                   "a": dead(0.7), "d": conv(6, 6, 3, groups=6, padding=1), "b": conv(6, 5, 1)}),
    "group norm": ("group_norm normalizes groups of channels, which would be others", "group_norm",
                   lambda s, x: s.b(s.n(s.a(x))), {"a": dead(), "n": nn.GroupNorm(3, 6), "b": conv(6, 5, 1)}),
    "layer norm": ("layer_norm normalizes over the channels, so each depends on all of them", "layer_norm",
                   lambda s, x: s.b(s.n(s.a(x).permute(0, 2, 3, 1))), {
                       "a": dead(), "n": nn.LayerNorm(6), "b": nn.Linear(6, 5)}),
    "gate along the channels": ("conv1d runs along the channels, so their order and number matter", "conv1d",
                                gate_along_channels, {
                                    "a": dead(), "e": nn.Conv1d(1, 1, 3, padding=1), "b": conv(6, 5, 1)}),
    "channel shuffle": ("reshape takes the channels apart, or puts some of them together", "view",
                        lambda s, x: s.b(s.a(x).reshape(-1, 2, 3, 6, 4).transpose(1, 2).flatten(1, 2)), {
                            "a": dead(), "b": conv(6, 5, 1)}),
    "channel shuffle by its name": ("channel_shuffle is not known to treat channels apart", "channel_shuffle",
                                    lambda s, x: s.b(F.channel_shuffle(s.a(x), 2)), {
                                        "a": dead(), "b": conv(6, 5, 1)}),
    "pixel shuffle": ("pixel_shuffle is not known to treat channels apart", "pixel_shuffle",
                      lambda s, x: s.b(F.pixel_shuffle(s.a(x), 2)), {
                          "a": zeroed(conv(3, 8, 3), 1), "b": conv(2, 5, 1)}),
    "softmax": ("softmax reads all channels together", "softmax", lambda s, x: s.b(s.a(x).softmax(1)), {
        "a": dead(), "b": conv(6, 5, 1)}),
    "slopes of channels": ("prelu is not known to treat channels apart", "prelu", lambda s, x: s.b(s.p(s.a(x))), {
        "a": dead(), "p": nn.PReLU(6), "b": conv(6, 5, 1)}),
    "larger of two": ("maximum is not known to treat channels apart", "maximum", lambda s, x: s.b(
        torch.maximum(s.a(x), s.c(x))), {"a": dead(), "c": conv(3, 6, 3), "b": conv(6, 5, 1)}),
    "one term of a sum": ("add adds a channel that is not constant", "add", lambda s, x: s.b(s.a(x) + s.c(x)), {
        "a": dead(), "c": conv(3, 6, 3), "b": conv(6, 5, 1)}),
    "sum with the input": ("add adds a channel that is not constant", "add", lambda s, x: s.b(s.a(x) + x), {
        "a": zeroed(conv(3, 3, 3, padding=1), 1), "b": conv(3, 5, 1)}),
    "constant times a gate": ("mul multiplies the constant by what depends on the input", "mul", squeeze, {
        "a": dead(0.7), "squeeze": conv(6, 2, 1), "excite": conv(2, 6, 1), "b": conv(6, 5, 1)}),
    "grouped reader": ("the convolution has 2 groups of channels, which would be unequal", "conv2d_1",
                       lambda s, x: s.b(s.a(x)), {"a": dead(), "b": conv(6, 4, 1, groups=2)}),
    "unequal groups": ("the 3 groups of the convolution would be unequal", "conv2d", lambda s, x: s.b(s.a(x)), {
        "a": zeroed(conv(3, 6, 1, groups=3), 1), "b": conv(6, 5, 1)}),
    "average pool with padding": ("avg_pool2d counts the zeros around the channel, which is another constant",
                                  "avg_pool2d", lambda s, x: s.b(F.avg_pool2d(s.a(x), 3, 1, 1)), {
                                      "a": dead(0.7), "b": conv(6, 5, 1)}),
    "padding with another": ("pad puts another constant around the channel", "pad",
                             lambda s, x: s.b(F.pad(s.a(x), (1, 1))), {"a": dead(0.7), "b": conv(6, 5, 3)}),
    "another dtype": ("to rounds the constant, which is folded without rounding", "_to_copy",
                      lambda s, x: s.b(s.a(x).to(torch.float16).float()), {"a": dead(0.7), "b": conv(6, 5, 1)}),
    "channels padded": ("pad is not known to treat channels apart", "pad", lambda s, x: s.b(
        F.pad(s.a(x), (0, 0, 0, 0, 1, 0))), {"a": dead(), "b": conv(7, 5, 1)}),
    "pool over channels": ("avg_pool1d runs along the channels, so their order and number matter", "avg_pool1d",
                           lambda s, x: s.b(F.avg_pool1d(s.a(x).flatten(2).mT, 2)), {
                               "a": dead(), "b": nn.Linear(3, 5)}),
    "maximum over channels": ("max_pool1d runs along the channels, so their order and number matter", "max_pool1d",
                              lambda s, x: s.b(F.max_pool1d(s.a(x).flatten(2).mT, 2)), {
                                  "a": dead(), "b": nn.Linear(3, 5)}),
    "resampled channels": ("interpolate runs along the channels, so their order and number matter", "upsample",
                           lambda s, x: s.b(F.interpolate(s.a(x).flatten(2).mT, 3)), {
                               "a": dead(), "b": nn.Linear(3, 5)}),
    "rolled channels": ("roll runs along the channels, so their order and number matter", "roll",
                        lambda s, x: s.b(s.a(x).roll(1, 1)), {"a": dead(), "b": conv(6, 5, 1)}),
    "mean over channels": ("mean reads all channels together", "mean", lambda s, x: s.b(s.a(x).mean(1, True)), {
        "a": dead(), "b": conv(1, 5, 1)}),
    "norm of another dimension": ("batch_norm runs along the channels, so their order and number matter", "getitem",
                                  lambda s, x: s.b(s.n(s.a(x).flatten(2).mT)), {
                                      "a": dead(), "n": nn.BatchNorm1d(24), "b": nn.Linear(6, 5)}),
    "depthwise over pixels": ("conv1d runs along the channels, so their order and number matter", "conv1d",
                              lambda s, x: s.b(s.d(s.a(x).flatten(2).mT)), {
                                  "a": dead(), "d": nn.Conv1d(24, 24, 3, padding=1, groups=24), "b": nn.Linear(6, 5)}),
    "norm in training": ("the norm keeps no running statistics", "getitem", lambda s, x: s.b(
        F.batch_norm(s.a(x), None, None, training=True)), {"a": dead(), "b": conv(6, 5, 1)}),
    "joined along rows": ("cat is not known to treat channels apart", "cat", lambda s, x: s.b(
        torch.cat([s.a(x), s.c(x)], 2)), {"a": dead(), "c": dead(), "b": conv(6, 5, 1)}),
    "dilated maximum with padding": ("behind max_pool2d the channel is not constant any more", "max_pool2d",
                                     lambda s, x: s.b(F.max_pool2d(s.a(x)[:, :, :1], 2, 1, 1, 2).clamp(-9, 9)), {
                                         "a": dead(0.7), "b": conv(6, 5, 1)}),
    "norm of each channel": ("behind layer_norm the channel is not constant any more", "layer_norm",
                             lambda s, x: s.b(s.n(s.a(x))), {"a": dead(0.7), "n": nn.LayerNorm(4), "b": conv(6, 5, 1)}),
    "shared scale": ("'g' is a parameter of mul (here) too", "mul", lambda s, x: s.b(
        s.a(x) * s.g) + (s.g * x.mean()).sum(), {
            "a": dead(), "g": torch.rand(6, 1, 1), "b": conv(6, 5, 1)}),
    "shared norm": ("'n.weight' is a parameter of batch_norm in 'n' too", "_native_batch_norm",
                    lambda s, x: s.b(s.n(s.a(x))) + s.n(s.c(x)).mean(), {
                        "a": dead(), "n": norm(6), "b": conv(6, 5, 1), "c": conv(3, 6, 1)}),
    "weights from the input": ("the kernel depends on the input", "", lambda s, x: s.b(
        F.conv2d(s.a(x), x.mean() * s.w)), {"a": dead(), "w": torch.randn(6, 6, 1, 1), "b": conv(6, 5, 1)}),
    "sum over pixels": ("behind sum the channel is not constant any more", "sum",
                        lambda s, x: s.b(s.a(x).sum((2, 3))), {"a": dead(0.7), "b": nn.Linear(6, 5)}),
    "whole numbers": ("int is not known to treat channels apart", "_to_copy", lambda s, x: s.b(s.a(x).int().float()), {
        "a": dead(), "b": conv(6, 5, 1)}),
    "a gate of one channel that is constant": ("mul is not known to treat channels apart", "mul",
                                               lambda s, x: s.b(s.a(x) * s.c(x)), {
                                                   "a": conv(3, 6, 3), "c": zeroed(conv(3, 1, 3), 0),
                                                   "b": conv(6, 5, 1)}),
    "one channel that is constant added to all": ("add is not known to treat channels apart", "add",
                                                  lambda s, x: s.b(s.a(x) + s.c(x)), {
                                                      "a": conv(3, 6, 3), "c": zeroed(conv(3, 1, 3), 0),
                                                      "b": conv(6, 5, 1)}),
    "a complex factor": ("mul is not known to treat channels apart", "mul", lambda s, x: s.b((s.a(x) * s.z).abs()), {
        "a": dead(), "z": torch.randn(6, 1, 1, dtype=torch.complex64), "b": conv(6, 5, 1)}),
    "one channel repeated": ("expand is not known to treat channels apart", "expand",
                             lambda s, x: s.b(s.a(x).expand(-1, 6, -1, -1)), {
                                 "a": zeroed(conv(3, 1, 3), 0), "b": conv(6, 5, 1)}),
    "repeated along a new dimension": ("expand is not known to treat channels apart", "expand",
                                       lambda s, x: s.b(s.a(x).amax(0).expand(6, -1, -1, -1)), {
                                           "a": dead(), "b": conv(6, 5, 1)}),
    "repeated for each sample": ("expand is not known to treat channels apart", "expand",
                                 lambda s, x: s.b(s.a(x).amax(0, True).expand(x.shape[0], -1, -1, -1)), {
                                     "a": dead(), "b": conv(6, 5, 1)}),
    "depthwise weights from the input": ("the kernel depends on the input", "mul", lambda s, x: s.b(
        F.conv2d(s.a(x), x.mean() * s.w, groups=6)), {
            "a": dead(), "w": torch.randn(6, 1, 3, 3), "b": conv(6, 5, 1)}),
    "channels as a depthwise bias": ("conv2d runs along the channels, so their order and number matter", "conv2d_1",
                                     lambda s, x: F.conv2d(x.repeat(1, 2, 1, 1), s.w, s.a(x).mean((0, 2, 3)), groups=6),
                                     {"a": dead(), "w": torch.randn(6, 1, 3, 3)}),
    "channels as depthwise kernels": ("conv2d runs along the channels, so their order and number matter", "conv2d_1",
                                      lambda s, x: F.conv2d(
                                          x.repeat(1, 2, 1, 1), s.a(x).amax((0, 3), True).movedim(1, 0), groups=6),
                                      {"a": dead()}),
    "one channel as depthwise kernels": ("the kernel depends on the input", "expand", lambda s, x: F.conv2d(
        x, s.a(x).amax((0, 3), True).expand(3, -1, -1, -1), groups=3), {"a": zeroed(conv(3, 1, 3), 0)}),
    "returned": ("the model returns the channels of conv2d in 'a'", "conv2d",
                 lambda s, x: (lambda y: (y, s.b(y)))(s.a(x)), {"a": dead(), "b": conv(6, 5, 1)}),
    "read before": ("conv2d in 'c' reads the channel before it is constant", "conv2d_2",
                    lambda s, x: (lambda y: s.b(s.n(y)) + s.c(y))(s.a(x)), {
                        "a": conv(3, 6, 3), "n": norm(6, 1), "b": conv(6, 5, 1), "c": conv(6, 5, 1)}),
    "called twice": ("'a.weight' is a parameter of conv2d in 'a' too", "conv2d",
                     lambda s, x: s.b(s.a(x)) + s.c(s.a(-x)), {
                         "a": dead(), "b": conv(6, 5, 1), "c": conv(6, 5, 1)}),
    "weights that are read elsewhere": ("'b.weight' is a parameter of sum (here) too", "conv2d_1",
                                        lambda s, x: s.b(s.a(x)) + s.b.weight.sum(), {
                                            "a": dead(), "b": conv(6, 5, 1)}),
    "no channel left": ("it is the last channel of conv2d in 'a'", "conv2d", lambda s, x: s.b(s.a(x)), {
        "a": zeroed(conv(3, 1, 3), 0, bias=0.3), "b": conv(1, 5, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_channels_that_have_to_stay(name: str):
    reason, culprit, forward, parts = REFUSED[name]
    found = kept(STEP, forward, X, **parts)
    assert found
    for refused in found:
        assert refused[0] == reason
        assert refused[1].startswith(culprit)
        assert refused[2] or "is not known" in reason


MENDED: dict[str, tuple[Forward, dict[str, Any]]] = {
    "padding": (lambda s, x: s.b(s.a(x).relu()), {"a": dead(0.7), "b": conv(6, 5, 3)}),
    "depthwise with padding": (lambda s, x: s.b(s.d(s.a(x))), {
        "a": dead(0.7), "d": conv(6, 6, 3, groups=6), "b": conv(6, 5, 1)}),
    "group norm": (lambda s, x: s.b(s.n(s.a(x))), {"a": dead(), "n": norm(6), "b": conv(6, 5, 1)}),
    "layer norm": (lambda s, x: s.b(s.n(s.a(x)).permute(0, 2, 3, 1)), {
        "a": dead(), "n": norm(6), "b": nn.Linear(6, 5)}),
    "gate along the channels": (squeeze, {
        "a": dead(), "squeeze": conv(6, 2, 1), "excite": conv(2, 6, 1), "b": conv(6, 5, 1)}),
    "softmax": (lambda s, x: s.b(s.a(x)) + s.c(x).softmax(1), {"a": dead(), "b": conv(6, 6, 1), "c": conv(3, 6, 3)}),
    "grouped reader": (lambda s, x: s.b(s.a(x)), {"a": dead(), "b": conv(6, 4, 1)}),
    "average pool with padding": (lambda s, x: s.b(F.avg_pool2d(s.a(x), 3, 1, 1, count_include_pad=False)), {
        "a": dead(0.7), "b": conv(6, 5, 1)}),
    "returned": (lambda s, x: (lambda y: (s.c(y), s.b(y)))(s.a(x)), {
        "a": dead(), "b": conv(6, 5, 1), "c": conv(6, 5, 1)}),
    "read before": (lambda s, x: (lambda y: s.b(y) + s.c(y))(s.n(s.a(x))), {
        "a": conv(3, 6, 3), "n": norm(6, 1), "b": conv(6, 5, 1), "c": conv(6, 5, 1)}),
    "called twice": (lambda s, x: s.b(s.a(x)) + s.c(s.d(-x)), {
        "a": dead(), "d": dead(), "b": conv(6, 5, 1), "c": conv(6, 5, 1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", MENDED)
def test_what_follows_the_remedy_matches(name: str):
    forward, parts = MENDED[name]
    assert not pruned(STEP, forward, X, **parts).record.refused


def test_nothing_is_said_of_layers_without_zeros():
    assert kept(STEP, lambda s, x: s.b(s.a(x)), X, a=conv(3, 6, 3), b=conv(6, 5, 1)) == []


def test_small_weights_are_not_zero():
    layer = dead()
    with torch.no_grad():
        layer.weight[1, 0, 0, 0] = 1e-38
    assert sizes(pruned(STEP, lambda s, x: s.b(s.a(x)), X, a=layer, b=conv(6, 5, 1))) == [5, 5]


def test_one_channel_is_always_left():
    result = pruned(STEP, lambda s, x: s.b(s.a(x)), X, a=zeroed(conv(3, 3, 3), 0, 1, 2, bias=0.3), b=conv(3, 5, 1))
    assert sizes(result) == [1, 5]
    assert result.reasons == ["it is the last channel of conv2d in 'a'"]


def test_residual_streams_shrink_as_a_whole():
    def forward(s: Block, x: Tensor) -> Tensor:
        y = s.stem(x)
        for first, second in ((s.a, s.b), (s.c, s.d)):
            y = (y + second(first(y).relu())).relu()
        return s.head(y.mean((2, 3)))

    def wide(inputs: int) -> Any:
        return zeroed(conv(inputs, 6, 3, padding=1), 2, 3)

    parts = {"stem": wide(3), "a": conv(6, 4, 3, padding=1), "b": wide(4), "c": conv(6, 4, 1), "d": wide(4)}
    result = pruned(STEP, forward, X, **parts, head=nn.Linear(6, 5))
    assert sizes(result) == [4, 4, 4, 4, 4, 5]


def test_what_has_become_dead_goes_too():
    """Without its dead inputs the second layer has a row of zeros, which the third reads."""
    second = conv(6, 4, 1)
    with torch.no_grad():
        second.weight[2, [0, 2, 3, 5]] = 0
    result = pruned(STEP, lambda s, x: s.c(s.b(s.a(x).relu()).relu()), X, a=dead(0.7), b=second, c=conv(4, 5, 1))
    assert sizes(result) == [4, 3, 5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes_stay(dtype: torch.dtype):
    model = Block(lambda s, x: s.b(s.a(x).sigmoid()), a=dead(0.7), b=conv(6, 5, 1, bias=False)).eval().to(dtype)
    result = rewrite(model, STEP, X.to(dtype))
    assert sizes(result) == [4, 5]
    assert_exact(result, model, X.to(dtype))
    assert {node.meta["val"].dtype for node in result.graph.calls() if "conv" in node.name} == {dtype}


def test_complex_layers_are_left_alone():
    model = Block(lambda s, x: s.b(s.a(x)), a=nn.Linear(6, 6, dtype=torch.complex64),
                  b=nn.Linear(6, 5, dtype=torch.complex64))  # fmt: skip
    zeroed(model.a, 1)
    result = rewrite(model.eval(), STEP, X.to(torch.complex64))
    assert not result.record.commits


def test_where_the_input_is_infinite_the_result_is_finite_or_the_models():
    """Zero times infinity is NaN in the model; the constant in its place is none."""
    model = Block(lambda s, x: s.b(s.a(x).relu()), a=dead(0.7), b=conv(6, 5, 1)).eval()
    result = rewrite(model, STEP, X)
    x = X.clone()
    x[0, 0, 0, 0] = float("inf")
    with torch.no_grad():
        expected, found = model(x), result.graph.to_module()(x)
    known = expected.isfinite()
    assert not known.all()
    torch.testing.assert_close(found[known], expected[known])
    # a channel that is NaN itself has no constant
    nan = zeroed(conv(3, 6, 3), 1, bias=float("nan"))
    assert kept(STEP, lambda s, x: s.b(s.a(x)), X, a=nan, b=conv(6, 5, 1)) == []


def test_the_pass_leaves_one_constant_before_padding():
    parts = {"a": zeroed(conv(3, 6, 3), 0, 2, 5, bias=0.7), "b": conv(6, 5, 3, padding=1)}
    with torch.no_grad():
        parts["a"].bias[2] = 0.1
    result = pruned(PruneExact(), lambda s, x: s.b(s.a(x).sigmoid()), X, **parts)
    assert sizes(result) == [4, 5]
