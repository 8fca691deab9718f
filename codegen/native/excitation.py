"""Squeeze-and-excitation in a graph, as one call.

"Squeeze-and-Excitation Networks" (Hu et al. 2018): each channel times a number that two layers compute from the means
of all channels. Compiled code makes four calls of it, of which two are tiny.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from codegen.native.calls import insert, take_over
from codegen.native.kernels import filled
from codegen.native.operators import ACTIVATIONS, operator
from codegen.native.sites import activation_name, constant, fits, has_kernel
from rewrite.ops import Convolution, Piece, Product, Reduction, is_tensor, value, view_as

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node


@dataclass(frozen=True)
class Excitation:
    """One of them.

    Attributes:
        node: the product.
        input: ``[N, C, H, W]``.
        reduce, expand: the convolutions.
        inner, outer: what follows them, of :data:`codegen.native.operators.ACTIVATIONS`.
        taken: all nodes that it computes.
    """

    node: Node
    input: Node
    reduce: Convolution
    expand: Convolution
    inner: str
    outer: str
    taken: frozenset[Node]

    def tensors(self, module: GraphModule) -> list[Tensor | None]:
        """What the operator takes after the image: two matrices, each with its bias."""
        found: list[Tensor | None] = []
        for layer in (self.reduce, self.expand):
            weight, bias = constant(module, layer.weight), constant(module, layer.bias)
            assert weight is not None
            found += [filled(weight.flatten(1).t()), None if bias is None else bias.contiguous()]
        return found

    def geometry(self) -> list[int]:
        """The numbers that the operator takes."""
        return [self.reduce.out_channels, *(ACTIVATIONS.index(name) for name in (self.inner, self.outer))]


def excitations(module: GraphModule) -> list[Excitation]:
    """Those of a module, in order.

    Only where convolutions read the product or pieces of it, and nothing else: what else reads it, compilers compute
    along with it.

    Args:
        module: with recorded values.
    """
    found = []
    for node in module.graph.nodes:
        product = view_as(node, Product)
        if product is None or product.divided or not is_tensor(node) or not fits(value(node)):
            continue
        if not all(_is_convolution(node, user) for user in node.users):
            continue
        sides = (product.left, product.right), (product.right, product.left)
        made = [_excitation(module, node, x, gate) for x, gate in sides]
        found += [one for one in made if one is not None][:1]
    return found


def _excitation(module: GraphModule, node: Node, x: Any, gate: Any) -> Excitation | None:
    if not is_tensor(x) or not is_tensor(gate):
        return None
    if value(x).dim() != 4 or value(x).shape != value(node).shape or not fits(value(x)):
        return None
    if tuple(value(gate).shape) != (*value(x).shape[:2], 1, 1):
        return None
    outer = activation_name(gate)
    expand = _layer(module, gate.args[0]) if outer and _is_read_once(gate) else None
    if expand is None:
        return None
    inner = activation_name(expand.input)
    if not _is_read_once(expand.input):
        return None
    reduce = _layer(module, expand.input.args[0] if inner else expand.input)
    mean = view_as(reduce.input, Reduction) if reduce is not None else None
    if reduce is None or mean is None or not _is_read_once(mean.node):
        return None
    if mean.kind != "mean" or mean.dims != (2, 3) or not mean.keepdim or mean.input is not x:
        return None
    taken = frozenset((node, gate, expand.node, expand.input, reduce.node, mean.node))
    return Excitation(node, x, reduce, expand, inner, outer, taken)


def _layer(module: GraphModule, node: object) -> Convolution | None:
    """A layer of the channels of one pixel, which nothing else reads."""
    layer = view_as(node, Convolution)
    if layer is None or not _is_read_once(layer.node) or not has_kernel(module, layer):
        return None
    plain = layer.dims == 2 and layer.groups == 1 and layer.kernel == (1, 1) and layer.stride == (1, 1)
    if not plain or any(map(any, layer.padding)) or tuple(value(layer.input).shape[2:]) != (1, 1):
        return None
    return layer


def _is_convolution(node: Node, user: Node) -> bool:
    """Whether a reader is a convolution of a value, or takes it apart for convolutions alone."""
    layer = view_as(user, Convolution)
    if layer is not None:
        return layer.input is node
    items = list(user.users)
    apart = bool(items) and all((piece := view_as(item, Piece)) is not None and piece.input is node for item in items)
    return apart and all(_is_convolution(item, reader) for item in items for reader in item.users)


def _is_read_once(node: Node) -> bool:
    return len(node.users) == 1


def put(module: GraphModule, site: Excitation, number: int) -> Node:
    """Call the operator in the place of a site; the call."""
    arguments = site.input, *site.tensors(module), site.geometry()
    return take_over(site.node, insert(module, site.node, operator("excitation"), arguments, f"excitation_{number}"))
