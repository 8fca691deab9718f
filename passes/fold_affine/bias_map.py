"""Fold a shift before a convolution that pads with zeros: what it adds differs at the border, so it is a map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from passes import affine
from passes.fold_affine.before import Before, Reader, readers
from passes.fold_affine.parts import FoldBehindConcatenation
from passes.fold_affine.reading import read_factor, read_norm, read_shift
from rewrite.ops import Convolution, arguments, value
from rewrite.rule import Fidelity, Match, Miss, Refusal

if TYPE_CHECKING:
    from passes.fold_affine.maps import Map, Vector
    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldBiasMap(Before):
    r"""Fold a batch norm or a sum with a constant into the one convolution that reads it and pads with zeros.

    .. math:: W * (a x + s) = (W a) * x + M, \quad M = W * (s \mathbf{1})

    ``*`` pads with zeros, so that :math:`M`, ``[1, O, *size]``, is smaller at the border. It is a constant of one
    image size, and adding it takes the place of the map: only where that moves fewer elements, as before a convolution
    with a stride. A map takes two for each of its own, a sum with a constant three for each of the convolution's.
    """

    fidelity = Fidelity.ELEMENTWISE
    starts = "a batch norm or a sum with a constant before a convolution that pads"

    def read(self, graph: Graph, node: Node) -> Map | None:
        """The norm or the sum that a node is."""
        return read_norm(node) or read_shift(graph, node)

    def look(self, graph: Graph, mapped: Map) -> Match | Miss | None:
        """The match of a map that a convolution with padding alone reads; what else reads one is no concern here."""
        found = readers(mapped).layers
        layer = found[0].layer if len(found) == 1 and found[0].padded else None
        if not isinstance(layer, Convolution) or layer.transposed or _is_mapped(graph, layer.node):
            return None
        return super().look(graph, mapped)

    def padded(self, mapped: Map, reader: Reader) -> Refusal | None:
        """Why there is no map, or why it does not pay."""
        layer = reader.layer.node
        remedy = f"set padding=0, or put {mapped.what} right behind it"
        before, after = _sizes(mapped.node), _sizes(layer)
        if before is None or after is None or _sizes(reader.layer.input) is None:
            return Refusal("the image's size is not known, on which the map of the bias depends", layer, remedy)
        without, instead = 2 * math.prod(before), 3 * math.prod(after)
        if instead < without:
            return None
        reason = f"adding a map of the bias would move {instead} elements for each sample, and {mapped.what} {without}"
        return Refusal(reason, layer, remedy)

    def layer(self, g: Builder, reader: Reader, x: Node, scale: Vector | None, shift: Vector | None) -> Node:
        """The convolution over what was mapped, plus the map of the bias."""
        assert shift is not None
        assert isinstance(reader.layer, Convolution)
        node, dims = reader.layer.node, reader.layer.dims
        vector = self.shift(g, reader, shift)
        shape = [1, *(int(size) for size in value(reader.layer.input).shape[1:])]
        if isinstance(vector, Node):
            vector = vector if affine.is_number(vector) else g(aten.reshape.default, vector, [1, -1, *[1] * dims])
            field = g(aten.expand.default, vector, shape)
        else:
            field = g(aten.new_full.default, reader.layer.weight, shape, vector)
        field = affine.cast(g, field, value(reader.layer.weight).dtype)
        bias_map = g(node.target, *{**arguments(node), "input": field, "bias": None}.values())
        return g(aten.add.Tensor, super().layer(g, reader, x, scale, None), bias_map)


def _is_mapped(graph: Graph, node: Node) -> bool:
    """Whether a map behind a layer will be folded into it, which nothing may then stand before."""
    for reader in node.users:
        items = [reader, *reader.users]
        maps = (read_norm(item) or read_factor(graph, item) or read_shift(graph, item) for item in items)
        if any(found is not None and found.input is node and found.refusal(graph) is None for found in maps):
            return True
        # a norm behind a concatenation is the item of a tuple, one user further
        further = [item for user in reader.users for item in (user, *user.users)]
        joined = FoldBehindConcatenation().find(graph, further)
        if any(isinstance(found, Match) and node in found.nodes for found in joined):
            return True
    return False


def _sizes(node: Node) -> list[int] | None:
    """The sizes of one sample, as far as all of them are numbers."""
    sizes: list[Any] = list(value(node).shape[1:])
    return sizes if all(isinstance(size, int) for size in sizes) else None
