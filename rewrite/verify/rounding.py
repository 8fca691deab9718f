"""How much rounding error is unavoidable: counts of roundings along a fragment, and the bound that follows."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite.ops import AveragePool, Convolution, GroupNorm, LayerNorm, Linear, arguments, view
from rewrite.verify.operators import CONTRACTIONS, EXACT, name_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx import Node

    from rewrite.fragment import Fragment

SLACK = 8
"""Roundings allowed besides those that are counted."""

FACTOR = 1.0
"""How far an error may exceed the floor's first-order bound. Sums of random signs stay far below it: the largest error
seen over thousands of folded and merged convolutions is 0.4 of the bound with FACTOR 1."""


@dataclass(frozen=True)
class Counts:
    """Along the longest path of a fragment.

    Attributes:
        terms: how many products or summands a result accumulates inside operators.
        results: how many operator results are rounded on the way.
    """

    terms: int
    results: int

    def __or__(self, other: Counts) -> Counts:
        return Counts(max(self.terms, other.terms), max(self.results, other.results))


def count(fragment: Fragment, env: Mapping[Node, Any]) -> Counts:
    """The counts of a fragment, given a value for each of its nodes."""
    known: dict[Node, Counts] = {}
    total = Counts(0, 0)
    for node in fragment.fx.nodes:
        before = Counts(0, 0)
        for source in node.all_input_nodes:
            before |= known.get(source, before)
        if node.op == "call_function" and node.target is not operator.getitem and name_of(node) not in EXACT:
            before = Counts(before.terms + _terms(node, env), before.results + 1)
        known[node] = before
        total |= before
    return total


def _terms(node: Node, env: Mapping[Node, Any]) -> int:
    found, name = view(node), name_of(node)
    match found:
        case Convolution():
            return math.prod(found.kernel) * found.in_channels // found.groups
        case Linear():
            return found.in_features
        case AveragePool():
            return math.prod(found.kernel)
        case LayerNorm():
            return 2 * math.prod(found.shape)
        case GroupNorm():
            x: Tensor = env[found.input]
            return 2 * x.numel() // max(1, x.shape[0] * found.groups)
    result = env[node][0] if isinstance(env[node], (tuple, list)) else env[node]
    if not isinstance(result, Tensor) or result.numel() == 0:
        return 1
    return max(1, _by_sizes(node, name, result, [env[arg] for arg in node.all_input_nodes]))


def _by_sizes(node: Node, name: str, result: Tensor, sources: list[Any]) -> int:
    elements = [source.numel() for source in sources if isinstance(source, Tensor)]
    if name in CONTRACTIONS and len(elements) >= 2:
        return math.isqrt(elements[-1] * elements[-2] // result.numel())
    if name.startswith(("fft_", "_fft")):
        return max(elements).bit_length()
    if name in ("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum"):
        return result.shape[arguments(node)["dim"]] if result.dim() else 1
    if name == "scaled_dot_product_attention":
        return sum(source.shape[-1] + source.shape[-2] for source in sources[:2])
    return max(elements, default=1) // result.numel()


@dataclass(frozen=True)
class Arithmetic:
    """In what precision something was computed.

    Attributes:
        rounding: unit roundoff of stored results.
        accumulation: unit roundoff inside sums.
        tiny: the smallest positive number.
    """

    rounding: float
    accumulation: float
    tiny: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> Arithmetic:
        """That of a floating or complex dtype; 16-bit types are accumulated in float32."""
        info = torch.finfo(dtype)
        unit = info.eps / 2
        return cls(unit, unit if info.bits > 16 else 2.0**-24, info.tiny * info.eps)

    def coarser(self, dtype: torch.dtype) -> Arithmetic:
        """The same, where some values besides were rounded to a dtype once."""
        return Arithmetic(max(self.rounding, torch.finfo(dtype).eps / 2), self.accumulation, self.tiny)

    def floor(self, magnitude: Tensor, counts: Counts) -> Tensor:
        r"""The error that any order of evaluation may have: :math:`c\,((r + 8)\,u + n\,u_a)` times the magnitude."""
        units = (counts.results + SLACK) * self.rounding + counts.terms * self.accumulation
        return (magnitude.double() * (FACTOR * units)).add_((counts.terms + SLACK) * self.tiny)
