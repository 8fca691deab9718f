"""Batch norm in all its spellings; the norms over features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops.view import View, is_tensor, reads, value

if TYPE_CHECKING:
    from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class BatchNorm(View):
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` per channel, channels in dimension 1.

    Attributes:
        input: ``[N, C, *]``.
        weight, bias: ``[C]`` or None (then one and zero).
        mean, var: ``[C]`` running statistics, or None where none are kept.
        batch_statistics: the statistics are those of the batch (training mode, or none are kept): not an affine map.
    """

    input: Node
    weight: Node | None
    bias: Node | None
    mean: Node | None
    var: Node | None
    eps: float
    batch_statistics: bool

    @property
    def channels(self) -> int:
        """C."""
        return int(value(self.input).shape[1])


def _batch_norm(node: Node, a: dict[str, Any], training: bool) -> BatchNorm | None:
    if not is_tensor(a["input"]):
        return None
    mean, var = a.get("running_mean"), a.get("running_var")
    return BatchNorm(node, a["input"], a.get("weight"), a.get("bias"), mean, var, float(a["eps"]),
                     training or mean is None or var is None)  # fmt: skip


@reads(aten._native_batch_norm_legit_no_training.default, item=0)
def _no_training(node: Node, a: dict[str, Any]) -> BatchNorm | None:
    return _batch_norm(node, a, False)


@reads(aten._native_batch_norm_legit_functional.default, aten._native_batch_norm_legit.no_stats,
       aten.native_batch_norm.default, item=0)  # fmt: skip
def _native(node: Node, a: dict[str, Any]) -> BatchNorm | None:
    return _batch_norm(node, a, bool(a["training"]))


@reads(aten.batch_norm.default)
def _plain(node: Node, a: dict[str, Any]) -> BatchNorm | None:
    return _batch_norm(node, a, bool(a["training"]))


@dataclass(frozen=True)
class LayerNorm(View):
    """Normalisation over the last ``len(shape)`` dimensions, then ``weight`` and ``bias`` of that shape or None."""

    input: Node
    shape: tuple[int, ...]
    weight: Node | None
    bias: Node | None
    eps: float


@reads(aten.layer_norm.default)
def _layer_norm(node: Node, a: dict[str, Any]) -> LayerNorm | None:
    return LayerNorm(node, a["input"], tuple(a["normalized_shape"]), a["weight"], a["bias"], float(a["eps"]))


@dataclass(frozen=True)
class GroupNorm(View):
    """Normalisation over groups of channels, then ``weight`` and ``bias`` ``[C]`` or None."""

    input: Node
    groups: int
    weight: Node | None
    bias: Node | None
    eps: float


@reads(aten.group_norm.default)
def _group_norm(node: Node, a: dict[str, Any]) -> GroupNorm | None:
    return GroupNorm(node, a["input"], a["num_groups"], a["weight"], a["bias"], float(a["eps"]))


@dataclass(frozen=True)
class InstanceNorm(View):
    """Normalisation of each channel of each sample, then ``weight`` and ``bias`` ``[C]`` or None.

    One that uses running statistics is a :class:`BatchNorm`.
    """

    input: Node
    weight: Node | None
    bias: Node | None
    eps: float


@reads(aten.instance_norm.default)
def _instance_norm(node: Node, a: dict[str, Any]) -> InstanceNorm | BatchNorm | None:
    if a["use_input_stats"]:
        return InstanceNorm(node, a["input"], a["weight"], a["bias"], float(a["eps"]))
    return _batch_norm(node, a, False)


@dataclass(frozen=True)
class RMSNorm(View):
    """Division by the root mean square over the last ``len(shape)`` dimensions, then ``weight`` of that shape or None.

    Attributes:
        eps: None for the smallest number of the dtype in which torch computes.
    """

    input: Node
    shape: tuple[int, ...]
    weight: Node | None
    eps: float | None


@reads(aten.rms_norm.default)
def _rms_norm(node: Node, a: dict[str, Any]) -> RMSNorm:
    return RMSNorm(node, a["input"], tuple(a["normalized_shape"]), a["weight"], a["eps"])
