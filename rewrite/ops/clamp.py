"""Clamping to an interval, ``relu``, ``hardtanh``, ``clamp`` with numbers as bounds, and extremes of two tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops.view import View, reads, value

if TYPE_CHECKING:
    from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class Clamp(View):
    """``min(max(input, low), high)`` of a floating tensor; a bound may be infinite, and ``low <= high``."""

    input: Node
    low: float
    high: float


def _clamp(node: Node, x: Node, low: Any, high: Any) -> Clamp | None:
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    if not all(isinstance(bound, (int, float)) for bound in (low, high)) or not low <= high:
        return None
    if not value(x).dtype.is_floating_point or value(x).dtype != value(node).dtype:
        return None
    return Clamp(node, x, float(low), float(high))


@reads(aten.relu.default)
def _relu(node: Node, a: dict[str, Any]) -> Clamp | None:
    return _clamp(node, a["self"], 0, None)


@reads(aten.relu6.default)
def _relu6(node: Node, a: dict[str, Any]) -> Clamp | None:
    return _clamp(node, a["self"], 0, 6)


@reads(aten.hardtanh.default)
def _hardtanh(node: Node, a: dict[str, Any]) -> Clamp | None:
    return _clamp(node, a["self"], a["min_val"], a["max_val"])


@reads(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default)
def _limits(node: Node, a: dict[str, Any]) -> Clamp | None:
    return _clamp(node, a["self"], a.get("min"), a.get("max"))


@dataclass(frozen=True)
class Extreme(View):
    """The smaller or the larger of two tensors, element by element; NaN where one of them is NaN."""

    left: Node
    right: Node
    larger: bool


@reads(aten.maximum.default, aten.max.other)
def _maximum(node: Node, a: dict[str, Any]) -> Extreme:
    return Extreme(node, a["self"], a["other"], True)


@reads(aten.minimum.default, aten.min.other)
def _minimum(node: Node, a: dict[str, Any]) -> Extreme:
    return Extreme(node, a["self"], a["other"], False)
