r"""Floating-point operations of one operator, from its shapes alone.

A multiplication and the addition after it count as two. Exact formulas stand for what dominates: convolutions, products
of matrices, attention, recurrent layers; transforms count the usual :math:`5 N \log_2 N` (half of it where one side is
real), pools one for each element of each window. What only moves values counts nothing, and everything else, norms and
pointwise operators among them, one for each element of its largest operand or result.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node, map_arg
from torch.utils.flop_counter import FlopCounterMode

from rewrite import compat
from rewrite.graph import is_pure
from rewrite.ops import Cast, Convolution, Copy, Linear, Pad, Permute, Reshape, arguments, view

if TYPE_CHECKING:
    from collections.abc import Callable

    from rewrite.graph import Graph

_MOVES = frozenset({
    "as_strided_scatter", "cat", "channel_shuffle", "copy", "diagonal_scatter", "embedding", "flip", "gather", "im2col",
    "index", "index_put", "index_select", "lift_fresh_copy", "native_channel_shuffle", "pixel_shuffle",
    "pixel_unshuffle", "repeat", "repeat_interleave", "roll", "rot90", "scatter", "select_scatter", "slice_scatter",
    "stack", "tile", "tril", "triu", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full",
})  # fmt: skip


class Sizes:
    """Numbers for the symbolic sizes of a graph, so that what is counted is counted for one sample.

    A symbol of the first dimension of an input is the batch and counts as 1. Any other is as large as in the example
    that the graph was captured with, or 1 where no example is known. A batch that is fixed in the graph stays as it is.

    Attributes:
        per_sample: whether a batch is free, so that counts are for one sample; else they are for a call.
    """

    def __init__(self, graph: Graph):
        self._numbers: dict[Any, int] = {}
        self.per_sample = False
        batches: set[Any] = set()
        for node in graph.inputs:
            value = node.meta.get("val")
            shape = tuple(value.shape) if isinstance(value, Tensor) else (value,)
            for size in shape:
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    self._numbers[size.node.expr] = size.node.hint or 1
            if isinstance(value, Tensor) and shape and isinstance(shape[0], torch.SymInt):
                batches |= shape[0].node.expr.free_symbols
        self._numbers.update(dict.fromkeys(batches, 1))
        self.per_sample = bool(batches)

    def number(self, size: int | torch.SymInt) -> int:
        """One size as a number."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        expr = size.node.expr
        return int(expr.subs({symbol: self._numbers.get(symbol, 1) for symbol in expr.free_symbols}))

    def shape(self, value: Any) -> tuple[int, ...]:
        """The sizes of a node or a recorded tensor."""
        tensor = value.meta["val"] if isinstance(value, Node) else value
        return tuple(self.number(size) for size in tensor.shape)

    def elements(self, value: Any) -> int:
        """The number of elements of a node or a recorded tensor."""
        return math.prod(self.shape(value))

    def stand_in(self, value: Any) -> Any:
        """A recorded value with its sizes as numbers: tensors without storage, of the same strides."""
        if isinstance(value, Tensor):
            strides = [self.number(stride) for stride in value.stride()]
            return torch.empty_strided(self.shape(value), strides, dtype=value.dtype, device="meta")
        return self.number(value) if isinstance(value, torch.SymInt) else value


def tensors(node: Node) -> list[Tensor]:
    """The recorded tensors that a node gives: none for sizes, several for operators with several results."""
    return [leaf for leaf in compat.tree_flatten(node.meta.get("val"))[0] if isinstance(leaf, Tensor)]


def flops(node: Node, sizes: Sizes) -> int:
    """The floating-point operations of an operator node; see the module's text for what counts."""
    results = tensors(node)
    if not results or node.target is operator.getitem:
        return 0
    found = view(node)
    if isinstance(found, Convolution):
        return _convolution(found, sizes)
    if isinstance(found, Linear):
        return 2 * sizes.elements(found.input) * found.out_features
    if isinstance(found, (Cast, Copy, Pad, Permute, Reshape)):
        return 0
    operands = [tensor for argument in node.all_input_nodes for tensor in tensors(argument)]
    largest = max(sizes.elements(tensor) for tensor in (*operands, *results))
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return largest
    name = target._opname
    if target.is_view or not operands or name in _MOVES:
        return 0
    if torch.Tag.pointwise in target.tags:
        return largest
    formula = _FORMULAS.get(name) if target.namespace == "aten" else None
    if formula is not None:
        return formula(node, arguments(node), sizes)
    return _asked(node, sizes) or largest


def _convolution(conv: Convolution, sizes: Sizes) -> int:
    # each element of the side that the kernel is placed on meets every tap of one group
    side, channels = (conv.input, conv.out_channels) if conv.transposed else (conv.node, conv.in_channels)
    return 2 * sizes.elements(side) * (channels // conv.groups) * math.prod(conv.kernel)


def _matmul(node: Node, a: dict[str, Any], sizes: Sizes) -> int:
    left = a.get("mat1", a.get("batch1", a.get("mat", a["self"])))
    return 2 * sizes.elements(node) * sizes.shape(left)[-1]


def _attention(node: Node, a: dict[str, Any], sizes: Sizes) -> int:
    keys = sizes.shape(a["key"])[-2]
    return 2 * keys * (sizes.elements(a["query"]) + sizes.elements(node))


def _pool(node: Node, a: dict[str, Any], sizes: Sizes) -> int:
    dims = int(str(node.target).split("_pool")[1][0])
    kernel = a["kernel_size"] if isinstance(a["kernel_size"], (list, tuple)) else [a["kernel_size"]]
    window = math.prod(kernel) if len(kernel) > 1 else kernel[0] ** dims
    return sizes.elements(tensors(node)[0]) * int(window)


def _transform(node: Node, a: dict[str, Any], sizes: Sizes) -> int:
    before, after = sizes.shape(a["self"]), sizes.shape(node)
    dims = a["dim"] if a["dim"] is not None else list(range(len(after)))
    dims = [dims] if isinstance(dims, int) else dims
    half = "rfft" in node.target._opname  # type: ignore[union-attr]
    signal = list(after)
    if half and "irfft" not in node.target._opname:  # type: ignore[union-attr]
        # the result holds half of the spectrum; the length is what was asked for, or the input's
        given = a.get("n", a.get("s"))
        last = given[-1] if isinstance(given, (list, tuple)) else given
        last = last.meta["val"] if isinstance(last, Node) else last
        signal[dims[-1]] = before[dims[-1]] if last is None else sizes.number(last)
    steps = math.log2(max(2, math.prod(signal[dim] for dim in dims)))
    return round((2.5 if half else 5) * math.prod(signal) * steps)


def _recurrent(node: Node, a: dict[str, Any], sizes: Sizes) -> int:
    x = a.get("input", a.get("data"))
    steps = sizes.elements(x) // max(1, sizes.shape(x)[-1])
    return 2 * steps * sum(sizes.elements(weight) for weight in a["params"] if len(sizes.shape(weight)) == 2)


_FORMULAS: dict[str, Callable[[Node, dict[str, Any], Sizes], int]] = {
    **dict.fromkeys(("matmul", "bmm", "baddbmm", "mm", "addmm", "mv", "addmv", "dot", "vdot"), _matmul),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices",
                     "avg_pool1d", "avg_pool2d", "avg_pool3d"), _pool),
    **dict.fromkeys(("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2",
                     "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn"), _transform),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    "scaled_dot_product_attention": _attention,
}  # fmt: skip


def _asked(node: Node, sizes: Sizes) -> int:
    """What torch's own counter says: products inside composite operators, and operators with a registered formula."""
    if not is_pure(node):
        return 0
    args, kwargs = map_arg((node.args, node.kwargs), lambda argument: argument.meta.get("val"))
    args, kwargs = compat.tree_map(sizes.stand_in, (args, kwargs))
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # an operator without a shape function is none of our business
        return 0
    return int(counter.get_total_flops())
