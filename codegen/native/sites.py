"""Where a graph has a layer that our kernels compute, and what they can do along with it."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from codegen.binding import is_bound
from codegen.native.kernels import Kernel, geometry, packed_dense, packed_depthwise, packed_matrix, packed_spectrum
from rewrite.ops import Clamp, Convolution, Copy, Linear, Sum, activation, is_tensor, same_type, value, view, view_as
from rewrite.winograd import TAPS, WinogradConvolution, recognised

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch.fx import GraphModule, Node

aten = torch.ops.aten

_BY_TARGET: dict[Any, str] = {
    aten.relu.default: "relu", aten.hardswish.default: "hardswish", aten.hardsigmoid.default: "hardsigmoid",
    aten.sigmoid.default: "sigmoid", aten.silu.default: "silu",
}  # fmt: skip

_LEAST_COLUMNS = 8
"""Groups with fewer results leave most of a vector empty."""

_LONGEST = 128
"""Taps along one dimension: of more of them there are sums that are faster."""

Layer: TypeAlias = Convolution | Linear | WinogradConvolution


@dataclass(frozen=True)
class Site:
    """A layer with what follows it.

    Attributes:
        layer: a convolution, plain or by Winograd's algorithm, or a linear layer.
        input: what it reads, ``[N, C, H, W]``, ``[N, C, L]``, which is an image of one row, or ``[*, C]``.
        bias: ``[O]`` or None.
        residual: what is added before the activation, or None.
        activation: one of :data:`codegen.native.operators.ACTIVATIONS`.
        node: the result of all of it.
    """

    layer: Layer
    input: Node
    bias: Tensor | None
    residual: Node | None
    activation: str
    node: Node

    @property
    def is_row(self) -> bool:
        """Whether it is a convolution of sequences."""
        return isinstance(self.layer, Convolution) and self.layer.dims == 1

    def kernel(self, module: GraphModule) -> Kernel:
        """The kernel with its weights."""
        result = [int(size) for size in value(self.node).shape]
        if isinstance(self.layer, WinogradConvolution):
            spectrum = constant(module, self.layer.spectrum)
            assert spectrum is not None
            low = [pair[0] for pair in self.layer.padding]
            numbers = geometry(result, (TAPS, TAPS), (1, 1), low, (1, 1), self.activation)
            return Kernel("winograd", packed_spectrum(spectrum), self.bias, numbers)
        weight = constant(module, self.layer.weight)
        assert weight is not None
        if isinstance(self.layer, Linear):
            ones = (1, 1)
            numbers = geometry((1, result[-1], 1, 1), ones, ones, (0, 0), ones, self.activation)
            matrix = weight if self.layer.stored_transposed else weight.t()
            return Kernel("linear", packed_matrix(matrix), self.bias, numbers)
        conv = self.layer
        if conv.dims == 1:
            result, weight = [*result[:2], 1, result[2]], weight.unsqueeze(2)
        zeros = plane(tuple(pair[0] for pair in conv.padding), 0)
        window = plane(conv.kernel), plane(conv.stride), zeros, plane(conv.dilation)
        numbers = geometry(result, *window, self.activation, conv.groups)
        if _is_depthwise(conv):
            return Kernel("depthwise", packed_depthwise(weight), self.bias, numbers)
        return Kernel("convolution", packed_dense(weight, conv.groups), self.bias, numbers)


def sites(module: GraphModule, taken: Collection[Node] = ()) -> list[Site]:
    """The layers of a module that our kernels compute, in order; none shares an operator with another one.

    Args:
        module: with recorded values.
        taken: nodes that something else computes.
    """
    found: list[Site] = []
    taken = set(taken)
    for node in module.graph.nodes:
        if node in taken:
            continue
        layer = _layer(module, node)
        site = None if layer is None else _with_epilogue(module, layer, taken)
        if site is not None:
            found.append(site)
    return found


def constant(module: GraphModule, node: Node | None) -> Tensor | None:
    """The value of a node that is an attribute of the module."""
    if node is None or node.op != "get_attr":
        return None
    found = operator.attrgetter(str(node.target))(module)
    return found if isinstance(found, Tensor) else None


def _layer(module: GraphModule, node: Node) -> Layer | None:
    if not is_tensor(node) or not fits(value(node)):
        return None
    layer = view(node)
    if isinstance(layer, (Convolution, Linear)):
        return layer if has_kernel(module, layer) else None
    known = functools.partial(constant, module)
    found = recognised(node, known)
    if found is None or any(recognised(user, known) is not None for user in node.users):
        return None  # it goes on: more of the last tiles is cut off
    spectrum = constant(module, found.spectrum)
    return found if fits(value(found.input)) and spectrum is not None and fits(spectrum) else None


def has_kernel(module: GraphModule, layer: Convolution | Linear) -> bool:
    """Whether there is a kernel of ours for a layer, whose weights have to be constants."""
    weight = constant(module, layer.weight)
    if weight is None or not fits(weight) or not fits(value(layer.input)):
        return False
    bias = constant(module, layer.bias)
    outputs = layer.out_features if isinstance(layer, Linear) else layer.out_channels
    if layer.bias is not None and (bias is None or not fits(bias) or bias.numel() != outputs):
        return False
    if isinstance(layer, Linear):
        return True
    if layer.dims > 2 or layer.transposed or not layer.batched or is_bound(layer):
        return False
    if layer.dims == 1 and layer.kernel[0] > _LONGEST:
        return False
    return _is_depthwise(layer) or layer.groups == 1 or layer.out_channels // layer.groups >= _LEAST_COLUMNS


def plane(sizes: tuple[int, ...], filling: int = 1) -> tuple[int, ...]:
    """Rows and columns, of which sequences have the latter only."""
    return (filling,) * (2 - len(sizes)) + sizes


def _is_depthwise(layer: Convolution) -> bool:
    return layer.groups == layer.in_channels == layer.out_channels > 1


def fits(tensor: Tensor) -> bool:
    """Whether kernels take it: float32 on the CPU, of a fixed size."""
    fixed = all(isinstance(size, int) for size in tensor.shape)
    return fixed and tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.numel() > 0


def _with_epilogue(module: GraphModule, layer: Layer, taken: set[Node]) -> Site | None:
    """The convolution with what follows, which is taken; None where another kernel could do along what ours cannot."""
    node = layer.node
    bias = None if isinstance(layer, WinogradConvolution) else constant(module, layer.bias)
    bias = None if bias is None else bias.contiguous()
    residual: Node | None = None
    follower, added = _sum(node, taken)
    if bias is None and added is not None and (bias := _vector(module, added, layer)) is not None:
        node = follower
        follower, added = _sum(node, taken)
    elif isinstance(layer, WinogradConvolution) and (copy := view_as(_reader(node, taken), Copy)) is not None:
        node = copy.node  # the tiles that are left, as a tensor of their own
        follower, added = _sum(node, taken)
    if added is not None and _alike(added, node):
        node, residual = follower, added
    name, reader = "", _reader(node, taken)
    if reader is not None and activation(reader) is not None:
        name = activation_name(reader)
        if not name and isinstance(layer, Convolution):
            return None
        node = reader if name else node
    taken.update((layer.node, node), [follower] if residual is not None else [])
    return Site(layer, layer.input, bias, residual, name, node)


def _reader(node: Node, taken: set[Node]) -> Node | None:
    """The only reader of a node."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return None if user is None or user in taken or user.op == "output" else user


def _sum(node: Node, taken: set[Node]) -> tuple[Node, Node | None]:
    """The only reader of a node, and what it adds to it."""
    user = _reader(node, taken)
    found = view_as(user, Sum)
    if user is None or found is None or any(term.node is None or term.coefficient != 1 for term in found.terms):
        return node, None
    left, right = found.operands
    if left is right or not same_type(user, node):
        return node, None
    return user, right if left is node else left


def _vector(module: GraphModule, node: Node, layer: Layer) -> Tensor | None:
    """What is added to each channel, ``[O, 1, 1]`` or ``[O]``, as the latter."""
    found = constant(module, node)
    if found is None or not fits(found):
        return None
    shape = value(layer.node).shape
    channels = shape[-1 if isinstance(layer, Linear) else 1]
    spread = (channels,) if isinstance(layer, Linear) else (channels, *[1] * (len(shape) - 2))
    if found.numel() != channels or tuple(found.shape[-len(spread) :]) != spread:
        return None
    return found.reshape(-1).contiguous()


def _alike(a: Node, b: Node) -> bool:
    return is_tensor(a) and fits(value(a)) and value(a).shape == value(b).shape


def activation_name(node: Node) -> str:
    """The activation that a node computes, '' where there is no code for it."""
    clamp: Any = view_as(node, Clamp)
    if clamp is not None:
        return {(0.0, float("inf")): "relu", (0.0, 6.0): "relu6"}.get((clamp.low, clamp.high), "")
    if node.target is aten.gelu.default and node.kwargs.get("approximate", "none") == "none":
        return "gelu"
    return _BY_TARGET.get(node.target, "")
