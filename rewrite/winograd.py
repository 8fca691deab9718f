r"""Winograd's convolution F(4x4, 3x3) as operators of a graph, and how it is recognised again.

Evaluate image and kernel as polynomials at five points and at infinity, multiply, and transpose all of it (Winograd,
Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016).
With the rows :math:`(1, p, p^2, \dots)` of :math:`V_m`, the last one :math:`(0, \dots, 0, 1)`,

.. math:: y = V_4^T \bigl[(V_3\, g\, V_3^T) \odot (V_6^{-T} d\, V_6^{-1})\bigr] V_4

gives 4x4 outputs of a correlation with 3x3 taps from 6x6 inputs by 36 products, where 144 are usual. The points are
0, 3/4, 3/2 and their negatives: they round half as much as 0, 1, 2 and theirs, which are usual (see Vincent et al., On
Improving the Numerical Stability of Winograd Convolutions, 2017), and their squares and products are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from rewrite.ops import Pad, Reshape, Slice, is_tensor, value, view_as

if TYPE_CHECKING:
    from collections.abc import Callable

aten = torch.ops.aten

TAPS, OUTPUTS = 3, 4
"""Of a kernel, and of a tile, along each dimension."""

POINTS = TAPS + OUTPUTS - 1
"""How many points polynomials are evaluated at; the last one is infinity."""

SPACING = 0.75
"""Of the finite points, which lie around zero."""

KERNEL = "pi,ocij,qj->pqco"
"""``V_3`` twice around a kernel ``[O, C, 3, 3]``."""

INPUT = "ip,ncyxij,jq->pqnyxc"
"""``V_6^{-1}`` twice around tiles ``[N, C, down, across, 6, 6]``."""

PRODUCT = "pqnyxc,pqco->pqnyxo"

OUTPUT = "pi,pqnyxo,qj->noyixj"
"""``V_4`` twice around the products, which gives ``[N, O, down, 4, across, 4]``."""


@cache
def evaluation(degree: int) -> Tensor:
    """``V``: how a polynomial of so many coefficients is evaluated at all points, ``[6, degree]`` in float64."""
    finite = torch.linalg.vander(SPACING * torch.arange(1 - POINTS // 2, POINTS // 2, dtype=torch.float64), N=degree)
    infinite = torch.zeros(1, degree, dtype=torch.float64)
    infinite[0, -1] = 1
    return torch.cat([finite, infinite])


@dataclass(frozen=True)
class WinogradConvolution:
    """A convolution with 3x3 taps and stride 1 that a graph computes so, without bias.

    Attributes:
        input: ``[N, C, H, W]``.
        spectrum: the transformed kernel, ``[6, 6, C, O]``.
        padding: ``(low, high)`` of zeros for rows and for columns; high ones also fill up the last tiles.
        node: the result, ``[N, O, H', W']``.
        nodes: all operators between input and result.
    """

    input: Node
    spectrum: Node
    padding: tuple[tuple[int, int], tuple[int, int]]
    node: Node
    nodes: tuple[Node, ...]


def recognised(node: Node, constant: Callable[[Node], Tensor | None]) -> WinogradConvolution | None:
    """The convolution that ends in a node; None where none does.

    Args:
        node: any node.
        constant: the values of those nodes that do not depend on a call.
    """
    chain = [node]

    def above(here: Any) -> Node | None:
        """The operand, if nothing else reads it."""
        if not isinstance(here, Node) or len(here.users) != 1:
            return None
        chain.append(here)
        return here

    here: Node | None = node
    while here is not None and (cut := view_as(here, Slice)) is not None:
        if cut.dim not in (2, 3) or cut.step != 1 or cut.start not in (0, None):
            return None
        here = above(cut.input)
    tiles = view_as(here, Reshape)
    found = None if tiles is None else _einsum(above(tiles.input), OUTPUT)
    if found is None or not (_is(found[0], OUTPUTS, constant) and _is(found[2], OUTPUTS, constant)):
        return None
    product = _einsum(above(found[1]), PRODUCT)
    inputs = None if product is None else _einsum(above(product[0]), INPUT)
    if product is None or inputs is None:
        return None
    if not (_is(inputs[0], POINTS, constant, inverse=True) and _is(inputs[2], POINTS, constant, inverse=True)):
        return None
    x: Any = inputs[1]
    for dim in (3, 2):
        x = above(x)
        if x is None or x.target is not aten.unfold.default or tuple(x.args[1:]) != (dim, POINTS, OUTPUTS):
            return None
        x = x.args[0]
    padding = ((0, 0), (0, 0))
    pad = view_as(x, Pad)
    if pad is not None and len(pad.amounts) == 2 and pad.mode == "constant" and pad.fill == 0 and above(x):
        padding, x = (pad.amounts[0], pad.amounts[1]), pad.input
    if not is_tensor(x) or not _has_outputs(node, tiles):
        return None
    return WinogradConvolution(x, product[1], padding, node, tuple(sorted(chain)))


def _einsum(node: Node | None, equation: str) -> list[Node] | None:
    if node is None or node.target is not aten.einsum.default or node.args[0] != equation:
        return None
    return list(node.args[1])  # type: ignore[arg-type]


def _is(node: Node, degree: int, constant: Callable[[Node], Tensor | None], inverse: bool = False) -> bool:
    """Whether a node is the evaluation at the points, or its inverse."""
    known = constant(node)
    wanted = evaluation(degree)
    wanted = torch.linalg.inv(wanted) if inverse else wanted
    return known is not None and known.shape == wanted.shape and bool(torch.allclose(known.double(), wanted, atol=1e-6))


def _has_outputs(node: Node, tiles: Reshape | None) -> bool:
    """Whether the reshape puts tiles beside each other, and no more than a last part of a tile is cut off."""
    assert tiles is not None
    n, o, down, rows, across, columns = value(tiles.input).shape
    whole, left = value(tiles.node).shape, value(node).shape
    if tuple(whole[1:]) != (o, down * rows, across * columns) or whole[0] != n:
        return False
    return all(0 <= size - kept < OUTPUTS for size, kept in zip(whole[2:], left[2:], strict=True))
