"""Fold a constant that is added into the bias of the layer before it, or of the layers after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.fold_affine.before import Before
from passes.fold_affine.behind import Behind
from passes.fold_affine.reading import read_base, read_shift
from rewrite.rule import Fidelity

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.fold_affine.maps import Map
    from rewrite.graph import Graph


@dataclass(frozen=True)
class FoldShift(Behind):
    r"""Fold a constant that is added to a layer, a number or one for each channel, into its bias.

    .. math:: b'_o = b_o + s_o

    The layer may have a number as coefficient, as in ``1 - layer(x)``. One operator less.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a layer plus a constant for each channel"

    def read(self, graph: Graph, node: Node) -> Map | None:
        """The sum with a constant that a node is."""
        return read_shift(graph, node)


@dataclass(frozen=True)
class FoldInputShift(Before):
    r"""Fold a constant that is added, a number or one for each channel, into the biases of the layers that read it.

    .. math:: W (x + s) + b = W x + (W s + b)

    Other terms may be added in between: the bias of a global response normalisation,
    :math:`x + \gamma x N(x) + \beta`, goes into the layer behind it (ConvNeXt V2, Woo et al. 2023; UniRepLKNet, Ding et
    al. 2024). One operator less, or a product instead of ``addcmul``, which reads a weight less.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a sum with a constant that layers read"

    def read(self, graph: Graph, node: Node) -> Map | None:
        """The sum with a constant that a node is."""
        return read_shift(graph, node) or read_base(graph, node)
