"""Products with a weight matrix, and of two matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from rewrite.ops.view import View, is_tensor, reads, value

aten = torch.ops.aten


@dataclass(frozen=True)
class Linear(View):
    """``y = x w^T + b`` over the last dimension.

    Attributes:
        input: ``[*, C]``.
        weight: ``[O, C]``, or ``[C, O]`` where ``stored_transposed``; always what the operator itself reads.
        bias: ``[O]`` or None.
        stored_transposed: the weight is used as it is stored, ``x w + b`` (``mm``, ``addmm`` and ``matmul`` spell it
            so).
    """

    input: Node
    weight: Node
    bias: Node | None
    stored_transposed: bool = False

    @property
    def out_features(self) -> int:
        """O."""
        return int(value(self.weight).shape[1 if self.stored_transposed else 0])

    @property
    def in_features(self) -> int:
        """C."""
        return int(value(self.weight).shape[0 if self.stored_transposed else 1])


def _linear(node: Node, x: Any, w: Any, bias: Any) -> Linear | None:
    if not (is_tensor(x) and is_tensor(w)) or value(w).dim() != 2:
        return None
    return Linear(node, x, w, bias, stored_transposed=True)


@reads(aten.linear.default)
def _read_linear(node: Node, a: dict[str, Any]) -> Linear | None:
    if not is_tensor(a["weight"]) or value(a["weight"]).dim() != 2:
        return None
    return Linear(node, a["input"], a["weight"], a["bias"])


@reads(aten.mm.default)
def _read_mm(node: Node, a: dict[str, Any]) -> Linear | None:
    return _linear(node, a["self"], a["mat2"], None)


@reads(aten.addmm.default)
def _read_addmm(node: Node, a: dict[str, Any]) -> Linear | None:
    # addmm(b, x, w) broadcasts b over rows; scaled forms are not a linear layer
    if a["beta"] != 1 or a["alpha"] != 1 or not is_tensor(a["self"]) or value(a["self"]).dim() != 1:
        return None
    return _linear(node, a["mat1"], a["mat2"], a["self"])


@dataclass(frozen=True)
class MatrixProduct(View):
    """``left @ right`` of matrices in the last two dimensions, those before them broadcast; vectors as in ``matmul``.

    A product with one plain matrix on the right is a :class:`Linear`.
    """

    left: Node
    right: Node


@reads(aten.matmul.default)
def _read_matmul(node: Node, a: dict[str, Any]) -> Linear | MatrixProduct:
    return _linear(node, a["self"], a["other"], None) or MatrixProduct(node, a["self"], a["other"])


@reads(aten.bmm.default)
def _read_bmm(node: Node, a: dict[str, Any]) -> MatrixProduct:
    return MatrixProduct(node, a["self"], a["mat2"])
