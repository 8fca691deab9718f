"""Softmax along a dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite.ops.view import View, reads, value

if TYPE_CHECKING:
    from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class Softmax(View):
    """``exp(x) / sum(exp(x))`` along ``dim``, or its logarithm; ``dim`` is not negative."""

    input: Node
    dim: int
    logarithm: bool


def _read(node: Node, a: dict[str, Any], logarithm: bool) -> Softmax | None:
    rank = value(node).dim()
    if rank == 0 or value(a["self"]).dtype != value(node).dtype:
        return None
    return Softmax(node, a["self"], a["dim"] % rank, logarithm)


@reads(aten.softmax.int, aten._softmax.default)
def _softmax(node: Node, a: dict[str, Any]) -> Softmax | None:
    return _read(node, a, False)


@reads(aten.log_softmax.int, aten._log_softmax.default)
def _log_softmax(node: Node, a: dict[str, Any]) -> Softmax | None:
    return _read(node, a, True)
