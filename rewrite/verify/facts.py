"""What is known of a boundary value from the operators that read it, so that random draws respect it.

A variance is positive, an index lies inside what it indexes, a scale is not near zero. Without these facts a draw would
compare two sides on values that the program can never see, or that hide a difference.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.fx import Node

from rewrite import ops
from rewrite.ops import BatchNorm, Convolution, GroupNorm, LayerNorm, Linear, Product, arguments, value, view
from rewrite.verify.operators import INDEXED, POSITIVE_ARGUMENT, UNIT_ARGUMENT, name_of

if TYPE_CHECKING:
    from rewrite.fragment import Fragment


class Role(enum.IntEnum):
    """What a value is for; where readers disagree, the highest wins."""

    PLAIN = 0
    """Any number: normal with unit variance."""
    SCALE = 1
    """A factor or divisor: of either sign, in ±[0.5, 1.5]."""
    KERNEL = 2
    """A matrix or kernel: normal, divided by the root of the fan-in."""
    UNIT = 3
    """Inside the open interval (0, 1), as a probability."""
    POSITIVE = 4
    """A variance, or what a root or logarithm is taken of: in [0.3, 2]."""
    INDEX = 5
    """Whole numbers below ``bound``."""


@dataclass(frozen=True)
class Fact:
    """How a value may be drawn.

    Attributes:
        role: its purpose.
        fan_in: of a kernel: how many products each result sums.
        bound: of an index: the smallest size that it indexes.
    """

    role: Role = Role.PLAIN
    fan_in: int = 1
    bound: int = 8

    def merge(self, other: Fact) -> Fact:
        """What satisfies both."""
        if self.role == other.role == Role.INDEX:
            return replace(self, bound=min(self.bound, other.bound))
        if self.role == other.role:
            return replace(self, fan_in=max(self.fan_in, other.fan_in))
        return self if self.role > other.role else other


_PLAIN = Fact()
_POSITIVE = Fact(Role.POSITIVE)
_SCALE = Fact(Role.SCALE)


def facts(old: Fragment, new: Fragment) -> dict[Node, Fact]:
    """A fact for each boundary node of two fragments, from what the old one does with it.

    What the new one asks for counts only for what it alone reads: there it says nothing about the model's values.
    """
    known = {node: _fact(stand_in) for node, stand_in in old.inputs.items()}
    return known | {node: _fact(stand_in) for node, stand_in in new.inputs.items() if node not in known}


def _fact(stand_in: Node) -> Fact:
    """What the readers of a value ask of it, looking through reshapes, copies and casts."""
    fact = _PLAIN
    seen = {stand_in}
    stack = [stand_in]
    while stack:
        node = stack.pop()
        for reader in node.users:
            found = view(reader)
            fact = fact.merge(_asked(reader, node, found))
            if reader not in seen and _passes_on(reader, found):
                seen.add(reader)
                stack.append(reader)
    return fact


def _passes_on(reader: Node, found: ops.View | None) -> bool:
    """Whether the value of a reader with this view has the same range of values."""
    if isinstance(found, (ops.Reshape, ops.Permute, ops.Copy, ops.Cast)):
        return True
    name = name_of(reader)
    if name in ("unsqueeze", "squeeze", "expand", "slice", "select", "contiguous"):
        return True
    # var + eps
    return name == "add" and any(isinstance(arg, (int, float)) and arg > 0 for arg in reader.args)


def _asked(reader: Node, node: Node, found: Any) -> Fact:
    """What one operator, with this view, asks of one of its arguments."""
    name = name_of(reader)
    if name in POSITIVE_ARGUMENT:
        return _POSITIVE
    if name in UNIT_ARGUMENT:
        return Fact(Role.UNIT)
    if name == "pow":
        exponent = reader.args[1]
        return _POSITIVE if isinstance(exponent, float) and not exponent.is_integer() else _PLAIN
    index = _index(reader, node, name)
    if index is not None:
        return index
    found = found or _tuple_view(reader)
    match found:
        case BatchNorm():
            return _POSITIVE if node is found.var else _SCALE if node is found.weight else _PLAIN
        case LayerNorm() | GroupNorm():
            return _SCALE if node is found.weight else _PLAIN
        case Convolution() if node is found.weight:
            return Fact(Role.KERNEL, fan_in=math.prod(found.kernel) * found.in_channels // found.groups)
        case Linear() if node is found.weight:
            return Fact(Role.KERNEL, fan_in=found.in_features)
        case Product() if (node is found.right and found.divided) or _is_vector(node):
            return _SCALE
    if name == "reciprocal":
        return _SCALE
    return _PLAIN


def _tuple_view(reader: Node) -> Any:
    """The view of an operator that returns a tuple, through whichever ``getitem`` reads its first result."""
    return next((found for user in reader.users if (found := view(user)) is not None and reader in found.nodes), None)


def _is_vector(node: Node) -> bool:
    """Whether a factor has a value for each channel or fewer (a layer scale)."""
    if not isinstance(node.meta.get("val"), Tensor):
        return False
    return sum(str(size) != "1" for size in value(node).shape) <= 1


def _index(reader: Node, node: Node, name: str) -> Fact | None:
    recorded = node.meta.get("val")
    if not isinstance(recorded, Tensor) or recorded.is_floating_point() or recorded.is_complex():
        return None
    if name == "index":
        source, positions = reader.args[0], reader.args[1]
        bounds = [size for size, i in zip(value(source).shape, positions, strict=False) if i is node]  # type: ignore[arg-type]
        return _indexes(bounds)
    if name == "one_hot":
        return _indexes([size for size in [arguments(reader)["num_classes"]] if size != -1])
    if name not in INDEXED:
        return None
    bound = arguments(reader)
    index, source = INDEXED[name]
    if bound.get(index) is not node:
        return None
    shape = value(bound[source]).shape
    if name == "take":
        return _indexes([math.prod(shape)])
    return _indexes([shape[0 if name == "embedding" else bound["dim"]]])


def _indexes(bounds: list[Any]) -> Fact | None:
    fixed = [size for size in bounds if isinstance(size, int)]
    if not bounds:
        return None
    return Fact(Role.INDEX, bound=min(fixed) if fixed else 1)
