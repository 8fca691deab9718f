"""The kernels that frozen code of TorchInductor calls on a CPU: oneDNN's for convolutions, MKL's for linear layers, and
our own where they are faster.

Their weights are packed once. A program with them runs operator by operator as fast as compiled code does where these
kernels are what it takes, so it can be timed without compiling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from codegen import native
from codegen.binding import is_bound
from codegen.native.sites import constant
from rewrite import compat
from rewrite.ops import Convolution, Linear, view

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

    from rewrite.target import Target

_FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


def pack(module: GraphModule, target: Target | None = None) -> None:
    """Let the convolutions and linear layers of a module call packed kernels, where compiled code does.

    Args:
        module: on the CPU, with recorded values; weights are its attributes.
        target: tells where kernels of our own are faster; None for Winograd's algorithm alone.
    """
    examples = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    native.bind(module, examples, target, keep_strides=False)
    for node in list(module.graph.nodes):
        found = view(node)
        packed: nn.Module | None = None
        if isinstance(found, Convolution) and not is_bound(found):
            packed = _convolution(module, found)
        elif isinstance(found, Linear):
            packed = _linear(module, found)
        if packed is not None:
            assert isinstance(found, (Convolution, Linear))
            name = f"packed_{node.name}"
            module.add_module(name, packed)
            with module.graph.inserting_before(node):
                call = module.graph.call_module(name, (found.input,))
            call.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(call)
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    native.join(module)
    module.recompile()


class PackedConvolution(nn.Module):
    """A convolution over channels last, with a kernel that oneDNN packed for inputs of certain sizes."""

    def __init__(self, conv: Convolution, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.padding = [low for low, _ in conv.padding]
        self.stride, self.dilation, self.groups = list(conv.stride), list(conv.dilation), conv.groups
        self.layout = _FORMATS[conv.dims]
        sizes = [int(size) for size in conv.input.meta["val"].shape]
        self.bias = bias
        self.weight = compat.pack_convolution(weight, self.padding, self.stride, self.dilation, self.groups, sizes)

    def forward(self, x: Tensor) -> Tensor:
        """The result for ``[N, C, *size]``, which is copied to channels last if it is not."""
        return compat.packed_convolution(x.contiguous(memory_format=self.layout), self.weight, self.bias, self.padding,
                                         self.stride, self.dilation, self.groups)  # fmt: skip


class PackedLinear(nn.Module):
    """A linear layer with a matrix that MKL packed for a certain number of rows."""

    def __init__(self, layer: Linear, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.rows = int(layer.input.meta["val"].shape[:-1].numel())
        self.weight = weight.t().contiguous() if layer.stored_transposed else weight
        self.bias = bias
        self.packed = compat.pack_linear(self.weight, self.rows)

    def forward(self, x: Tensor) -> Tensor:
        """The result for ``[*, C]``."""
        flat = x.reshape(self.rows, x.shape[-1])
        result = compat.packed_linear(flat, self.packed, self.weight, self.bias, self.rows)
        return result.reshape(*x.shape[:-1], -1)


def _convolution(module: GraphModule, conv: Convolution) -> nn.Module | None:
    weight, bias = _weight(module, conv.weight), _weight(module, conv.bias)
    symmetric = all(low == high for low, high in conv.padding)
    if weight is None or (bias is None) != (conv.bias is None):
        return None
    if conv.dims not in _FORMATS or conv.transposed or not symmetric:
        return None
    if not torch.backends.mkldnn.is_available() or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    return PackedConvolution(conv, weight, bias)


def _linear(module: GraphModule, layer: Linear) -> nn.Module | None:
    weight, bias = _weight(module, layer.weight), _weight(module, layer.bias)
    if weight is None or (bias is None) != (layer.bias is None):
        return None
    if weight.dtype != torch.float32 or not compat.has_mkl():
        return None
    return PackedLinear(layer, weight, bias)


def _weight(module: GraphModule, node: Node | None) -> Tensor | None:
    found = constant(module, node)
    return found if found is not None and found.device.type == "cpu" else None
