r"""Floating-point operations of one operator, from its shapes alone.

A multiplication and the addition after it count as two. Exact formulas stand for what dominates: convolutions, products
of matrices, attention, recurrent layers; transforms count the usual :math:`5 N \log_2 N` (half of it where one side is
real), pools one for each element of each window. What only moves values counts nothing, and everything else, norms and
pointwise operators among them, one for each element of its largest operand or result.

The formulas hold for numbers and for :mod:`rewrite.symbolic` sizes, of which they make expressions.
"""

from __future__ import annotations

import contextlib
import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node, map_arg
from torch.utils.flop_counter import FlopCounterMode

from rewrite import compat
from rewrite.arithmetic import Number, largest, log2, rounded
from rewrite.graph import is_pure
from rewrite.ops import Cast, Convolution, Copy, Linear, Pad, Permute, Reshape, arguments, view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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

    Args:
        graph: only read.
        batch: counts for so many samples instead of one.

    Attributes:
        per_sample: whether a batch is free, so that counts are for one sample; else they are for a call.
        example: sizes of the same graph that are numbers.
    """

    def __init__(self, graph: Graph, batch: int = 1):
        self._numbers: dict[Any, int] = {}
        batches: set[Any] = set()
        for node in graph.inputs:
            value = node.meta.get("val")
            shape = tuple(value.shape) if isinstance(value, Tensor) else (value,)
            for size in shape:
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    self._numbers[size.node.expr] = size.node.hint or 1
            if isinstance(value, Tensor) and shape and isinstance(shape[0], torch.SymInt):
                batches |= shape[0].node.expr.free_symbols
        self._numbers.update(dict.fromkeys(batches, batch))
        self.per_sample = bool(batches)
        self.example: Sizes = self

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

    def views(self, value: Tensor, shape: Sequence[int | torch.SymInt]) -> bool:
        """Whether a tensor takes another shape without a copy, at its recorded strides."""
        try:
            self.stand_in(value).view([self.number(size) for size in shape])
        except RuntimeError:
            return False
        return True

    def counted(self, count: int | torch.SymInt) -> Number:
        """A number that was computed from stand-ins."""
        return int(count)

    def tracing(self) -> contextlib.AbstractContextManager[Any]:
        """Within, operators take stand-ins."""
        return contextlib.nullcontext()


def tensors(node: Node) -> list[Tensor]:
    """The recorded tensors that a node gives: none for sizes, several for operators with several results."""
    return [leaf for leaf in compat.tree_flatten(node.meta.get("val"))[0] if isinstance(leaf, Tensor)]


def flops(node: Node, sizes: Sizes) -> Number:
    """The floating-point operations of an operator node; see the module's text for what counts."""
    results = tensors(node)
    if not results or node.target is operator.getitem:
        return 0
    found = view(node)
    if isinstance(found, Convolution):
        channels, *taps = sizes.shape(found.weight)[1:]
        return of_convolution(sizes.elements(found.input if found.transposed else node), channels, taps)
    if isinstance(found, Linear):
        return 2 * sizes.elements(node) * sizes.shape(found.input)[-1]
    if isinstance(found, (Cast, Copy, Pad, Permute, Reshape)):
        return 0
    operands = [tensor for argument in node.all_input_nodes for tensor in tensors(argument)]
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target._opname
        if target.is_view or not operands or name in _MOVES:
            return 0
        formula = _FORMULAS.get(name) if target.namespace == "aten" else None
        if torch.Tag.pointwise not in target.tags:
            known = _asked(node, sizes) if formula is None else formula(node, arguments(node), sizes)
            if formula is not None or known:
                return known
    return largest(*(sizes.elements(tensor) for tensor in (*operands, *results)))


def of_convolution(elements: Number, channels: Number, taps: Iterable[Number]) -> Number:
    """The operations of a convolution: each element meets every tap of so many channels.

    Args:
        elements: of the side that the kernel is placed on: the outputs, or the inputs of a transposed convolution.
        channels: of the other side, in one group.
        taps: along each dimension.
    """
    return 2 * elements * channels * math.prod(taps)


def of_transform(points: Number, real: bool) -> Any:
    """The operations of one fast Fourier transform of so many points, not rounded; real where one side is."""
    return (5 if real else 10) * points * log2(largest(2, points)) / 2


def _matmul(node: Node, a: dict[str, Any], sizes: Sizes) -> Number:
    left = a.get("mat1", a.get("batch1", a.get("mat", a["self"])))
    return 2 * sizes.elements(node) * sizes.shape(left)[-1]


def _attention(node: Node, a: dict[str, Any], sizes: Sizes) -> Number:
    keys = sizes.shape(a["key"])[-2]
    return 2 * keys * (sizes.elements(a["query"]) + sizes.elements(node))


def _pool(node: Node, a: dict[str, Any], sizes: Sizes) -> Number:
    dims = int(str(node.target).split("_pool")[1][0])
    kernel = a["kernel_size"] if isinstance(a["kernel_size"], (list, tuple)) else [a["kernel_size"]]
    window = math.prod(kernel) if len(kernel) > 1 else kernel[0] ** dims
    return sizes.elements(tensors(node)[0]) * int(window)


def _transform(node: Node, a: dict[str, Any], sizes: Sizes) -> Number:
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
    dims = [dim % len(signal) for dim in dims]
    each = rounded(of_transform(math.prod(signal[dim] for dim in dims), half))
    return each * math.prod(size for dim, size in enumerate(signal) if dim not in dims)


def _recurrent(node: Node, a: dict[str, Any], sizes: Sizes) -> Number:
    x = a.get("input", a.get("data"))
    steps = math.prod(sizes.shape(x)[:-1])
    return 2 * steps * sum(sizes.elements(weight) for weight in a["params"] if len(sizes.shape(weight)) == 2)


_FORMULAS: dict[str, Callable[[Node, dict[str, Any], Sizes], Number]] = {
    **dict.fromkeys(("matmul", "bmm", "baddbmm", "mm", "addmm", "mv", "addmv", "dot", "vdot"), _matmul),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices",
                     "avg_pool1d", "avg_pool2d", "avg_pool3d"), _pool),
    **dict.fromkeys(("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2",
                     "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn"), _transform),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    "scaled_dot_product_attention": _attention,
}  # fmt: skip


def _asked(node: Node, sizes: Sizes) -> Number:
    """What torch's own counter says: products inside composite operators, and operators with a registered formula."""
    # symbols take ten times as long, and most operators count nothing
    if not is_pure(node) or not (sizes.example is sizes or _asked(node, sizes.example)):
        return 0
    args, kwargs = map_arg((node.args, node.kwargs), lambda argument: argument.meta.get("val"))
    counter = FlopCounterMode(display=False)
    try:
        args, kwargs = compat.tree_map(sizes.stand_in, (args, kwargs))
        with torch.no_grad(), sizes.tracing(), counter:
            node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # an operator without a shape function is none of our business
        return 0
    return sizes.counted(counter.get_total_flops())
