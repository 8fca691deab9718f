"""Views say what an operator computes: each is recomputed from the fields of its view alone, for every spelling."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rewrite import ops
from rewrite.ops import view
from tests.programs import Program, aten
from tests.test_ops_transform import VIEWS

Get = Callable[[Any], Any]


def pads(amounts: tuple[tuple[int, int], ...]) -> list[int]:
    """Torch's order: from the last dimension to the first."""
    return [amount for pair in reversed(amounts) for amount in pair]


def convolution(v: ops.Convolution, get: Get) -> Tensor:
    x, w, b = get(v.input), get(v.weight), None if v.bias is None else get(v.bias)
    if v.transposed:
        name = f"conv_transpose{v.dims}d"
        assert all(low == high for low, high in v.padding)
        low = [low for low, _ in v.padding]
        return getattr(F, name)(x, w, b, v.stride, low, v.output_padding, v.groups, v.dilation)
    return getattr(F, f"conv{v.dims}d")(F.pad(x, pads(v.padding)), w, b, v.stride, 0, v.dilation, v.groups)


def batch_norm(v: ops.BatchNorm, get: Get) -> Tensor:
    if v.batch_statistics:
        return F.batch_norm(get(v.input), None, None, get(v.weight), get(v.bias), True, 0.0, v.eps)
    weight, bias = (None if p is None else get(p) for p in (v.weight, v.bias))
    return F.batch_norm(get(v.input), get(v.mean), get(v.var), weight, bias, False, 0.0, v.eps)


def linear(v: ops.Linear, get: Get) -> Tensor:
    weight = get(v.weight)
    assert weight.shape == ((v.in_features, v.out_features) if v.stored_transposed else (v.out_features, v.in_features))
    return F.linear(
        get(v.input), weight.t() if v.stored_transposed else weight, None if v.bias is None else get(v.bias)
    )


def average_pool(v: ops.AveragePool, get: Get) -> Tensor:
    x, kernel, stride, padding = get(v.input), v.kernel, v.stride, v.padding
    if v.dims == 1:
        return F.avg_pool1d(x, kernel, stride, padding, v.ceil_mode, v.counts_padding)
    pool = F.avg_pool2d if v.dims == 2 else F.avg_pool3d
    return pool(x, kernel, stride, padding, v.ceil_mode, v.counts_padding, v.divisor)


def max_pool(v: ops.MaxPool, get: Get) -> Tensor:
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[v.dims - 1]
    return pool(get(v.input), v.kernel, v.stride, v.padding, v.dilation, v.ceil_mode)


def resampling(v: ops.Resampling, get: Get) -> Tensor:
    x, size = get(v.input), v.node.meta["val"].shape[-v.dims :]
    if v.mode == "average":
        return (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[v.dims - 1](x, size)
    if v.mode == "max":
        return (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[v.dims - 1](x, size)
    if v.mode == "nearest":
        return F.interpolate(x, size, mode="nearest")
    return F.interpolate(x, size, mode=("linear", "bilinear", "trilinear")[v.dims - 1], align_corners=v.align_corners)


def reduction(v: ops.Reduction, get: Get) -> Tensor:
    x = get(v.input)
    for dim in reversed(v.dims):
        x = {
            "sum": lambda x, d: x.sum(d, True), "mean": lambda x, d: x.mean(d, True),
            "max": lambda x, d: x.max(d, True).values, "min": lambda x, d: x.min(d, True).values,
            "prod": lambda x, d: x.prod(d, True), "logsumexp": lambda x, d: x.logsumexp(d, True),
        }[v.kind](x, dim)  # fmt: skip
        x = x if v.keepdim else x.squeeze(dim)
    return x


def rms_norm(v: ops.RMSNorm, get: Get) -> Tensor:
    x, eps = get(v.input), torch.finfo(torch.float32).eps if v.eps is None else v.eps
    normed = x / (x.square().mean(tuple(range(-len(v.shape), 0)), keepdim=True) + eps).sqrt()
    return normed if v.weight is None else normed * get(v.weight)


def total(v: ops.Sum, get: Get) -> Tensor:
    return sum(term.coefficient * (1 if term.node is None else get(term.node)) for term in v.terms)


def product(v: ops.Product, get: Get) -> Tensor:
    left, right = (get(side) if isinstance(side, torch.fx.Node) else side for side in (v.left, v.right))
    return left / right if v.divided else left * right


def resize(v: ops.Reshape, get: Get) -> Tensor:
    return get(v.input).reshape([get(size) if isinstance(size, torch.fx.Node) else size for size in v.shape])


def overwrite(v: ops.Overwrite, get: Get) -> Tensor:
    result = get(v.input).clone()
    result[(slice(None),) * v.dim + (slice(v.start, v.end, v.step),)] = get(v.source)
    return result


def cast(v: ops.Cast, get: Get) -> Tensor:
    return get(v.input).to(v.dtype)


RECOMPUTE: dict[type[ops.View], Callable[[Any, Get], Tensor]] = {
    ops.Convolution: convolution,
    ops.BatchNorm: batch_norm,
    ops.Linear: linear,
    ops.AveragePool: average_pool,
    ops.MaxPool: max_pool,
    ops.Resampling: resampling,
    ops.Reduction: reduction,
    ops.MatrixProduct: lambda v, get: torch.matmul(get(v.left), get(v.right)),
    ops.ProductSum: lambda v, get: get(v.base) + v.coefficient * get(v.left) * get(v.right),
    ops.Select: lambda v, get: get(v.input).select(v.dim, v.index),
    ops.InstanceNorm: lambda v, get: F.instance_norm(
        get(v.input), None, None, v.weight and get(v.weight), v.bias and get(v.bias), True, 0.0, v.eps
    ),
    ops.RMSNorm: rms_norm,
    ops.Softmax: lambda v, get: (F.log_softmax if v.logarithm else F.softmax)(get(v.input), v.dim),
    ops.Extreme: lambda v, get: (torch.maximum if v.larger else torch.minimum)(get(v.left), get(v.right)),
    ops.Fill: lambda v, get: torch.full(v.node.meta["val"].shape, v.number, dtype=get(v.like).dtype),
    ops.Sum: total,
    ops.Negation: lambda v, get: 0 - get(v.input),
    ops.Product: product,
    ops.Reshape: resize,
    ops.Permute: lambda v, get: get(v.input).permute(v.order),
    ops.Copy: lambda v, get: get(v.input).contiguous(memory_format=v.layout or torch.contiguous_format),
    ops.Cast: cast,
    ops.Pad: lambda v, get: F.pad(get(v.input), pads(v.amounts), v.mode, v.fill if v.mode == "constant" else None),
    ops.Expand: lambda v, get: get(v.input).expand(v.node.meta["val"].shape),
    ops.Slice: lambda v, get: get(v.input)[(slice(None),) * v.dim + (slice(v.start, v.end, v.step),)],
    ops.Overwrite: overwrite,
    ops.Concatenation: lambda v, get: torch.cat([get(part) for part in v.inputs], v.dim),
    ops.Roll: lambda v, get: torch.roll(get(v.input), v.shifts, v.dims),
    ops.Clamp: lambda v, get: torch.clamp(get(v.input), v.low, v.high),
    ops.LayerNorm: lambda v, get: F.layer_norm(
        get(v.input), v.shape, v.weight and get(v.weight), v.bias and get(v.bias), v.eps
    ),
    ops.GroupNorm: lambda v, get: F.group_norm(
        get(v.input), v.groups, v.weight and get(v.weight), v.bias and get(v.bias), v.eps
    ),
}

r = torch.randn


def u(*shape: int) -> Tensor:
    return torch.rand(shape) + 0.5


# operator, kind of view, arguments (tensors become inputs), keyword arguments
CALLS: list[tuple[Any, type[ops.View], tuple[Any, ...], dict[str, Any]]] = [
    (aten.conv1d.default, ops.Convolution, (r(2, 4, 9), r(6, 2, 3), r(6), [2], [1], [2], 2), {}),
    (aten.conv1d.default, ops.Convolution, (r(4, 9), r(6, 4, 3)), {"padding": [1]}),
    (aten.conv2d.default, ops.Convolution, (r(2, 4, 9, 8), r(6, 4, 3, 2), r(6), [2, 1], [1, 0], [1, 2], 1), {}),
    (aten.conv2d.default, ops.Convolution, (r(2, 4, 9, 8), r(4, 1, 3, 3), None, [2], [1], [1], 4), {}),
    (aten.conv3d.default, ops.Convolution, (r(1, 2, 4, 5, 6), r(3, 2, 2, 3, 1), None, [1, 2, 1], [1, 1, 0]), {}),
    (aten.conv1d.padding, ops.Convolution, (r(2, 4, 9), r(6, 4, 4), r(6), [1], "same"), {}),
    (aten.conv2d.padding, ops.Convolution, (r(2, 4, 9, 8), r(6, 4, 4, 2), r(6), [1, 1], "same", [1, 2]), {}),
    (aten.conv2d.padding, ops.Convolution, (r(2, 4, 9, 8), r(6, 4, 3, 2), None, [2, 1], "valid"), {}),
    (aten.conv3d.padding, ops.Convolution, (r(1, 2, 4, 5, 6), r(3, 2, 2, 3, 1), None, [1, 1, 1], "same"), {}),
    (aten.conv_transpose1d.default, ops.Convolution, (r(2, 4, 9), r(4, 3, 3), r(6), [2], [1], [1], 2, [1]), {}),
    (aten.conv_transpose2d.input, ops.Convolution, (r(2, 4, 5, 6), r(4, 3, 3, 2), r(3), [2, 2], [1, 0], [1, 0]), {}),
    (aten.conv_transpose3d.input, ops.Convolution, (r(1, 2, 3, 4, 3), r(2, 3, 2, 2, 2), None, [2, 1, 1]), {}),
    (aten.convolution.default, ops.Convolution,
     (r(2, 4, 9, 8), r(6, 2, 3, 3), r(6), [1, 2], [1, 2], [2, 1], False, [0, 0], 2), {}),
    (aten.convolution.default, ops.Convolution,
     (r(2, 4, 5, 5), r(4, 3, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1), {}),
    (aten.linear.default, ops.Linear, (r(2, 3, 4), r(5, 4), r(5)), {}),
    (aten.linear.default, ops.Linear, (r(4), r(5, 4)), {}),
    (aten.mm.default, ops.Linear, (r(3, 4), r(4, 5)), {}),
    (aten.matmul.default, ops.Linear, (r(2, 3, 4), r(4, 5)), {}),
    (aten.addmm.default, ops.Linear, (r(5), r(3, 4), r(4, 5)), {}),
    (aten.batch_norm.default, ops.BatchNorm, (r(2, 3, 4, 5), r(3), r(3), r(3), u(3), False, 0.1, 1e-3, False), {}),
    (aten.batch_norm.default, ops.BatchNorm, (r(2, 3), None, None, r(3), u(3), False, 0.1, 1e-5, False), {}),
    (aten.instance_norm.default, ops.InstanceNorm,
     (r(2, 3, 4, 5), r(3), r(3), None, None, True, 0.1, 1e-3, False), {}),
    (aten.rms_norm.default, ops.RMSNorm, (r(2, 3, 4), [3, 4], r(3, 4), 1e-3), {}),
    (aten.rms_norm.default, ops.RMSNorm, (r(2, 3, 4), [4]), {}),
    (aten.bmm.default, ops.MatrixProduct, (r(2, 3, 4), r(2, 4, 5)), {}),
    (aten.addcmul.default, ops.ProductSum, (r(2, 3), r(3), r(2, 1)), {"value": -2.5}),
    (aten.select.int, ops.Select, (r(2, 3, 4), -2, -1), {}),
    (aten.layer_norm.default, ops.LayerNorm, (r(2, 3, 4), [3, 4], r(3, 4), r(3, 4), 1e-3), {}),
    (aten.layer_norm.default, ops.LayerNorm, (r(2, 3, 4), [4]), {}),
    (aten.group_norm.default, ops.GroupNorm, (r(2, 6, 3, 3), 3, r(6), r(6), 1e-3), {}),
    (aten.group_norm.default, ops.GroupNorm, (r(2, 6, 3), 2), {}),
    (aten.avg_pool1d.default, ops.AveragePool, (r(2, 3, 9), [3], [2], [1], True, False), {}),
    (aten.avg_pool2d.default, ops.AveragePool, (r(2, 3, 9, 8), [3, 2]), {}),
    (aten.avg_pool2d.default, ops.AveragePool, (r(3, 9, 8), [3, 2], [2, 1], [1, 0], True, True, 5), {}),
    (aten.avg_pool2d.default, ops.AveragePool, (r(3, 9, 8), [3], [2], [1], False, False), {}),
    (aten.avg_pool3d.default, ops.AveragePool, (r(1, 2, 6, 6, 6), [2, 3, 2], [2, 2, 2], [0, 1, 0]), {}),
    (aten.max_pool1d.default, ops.MaxPool, (r(2, 3, 9), [3], [2], [1], [2], True), {}),
    (aten.max_pool2d.default, ops.MaxPool, (r(2, 3, 9, 8), [3, 2]), {}),
    (aten.max_pool2d.default, ops.MaxPool, (r(3, 9, 8), [3, 2], [2, 1], [1, 0], [1, 2], True), {}),
    (aten.max_pool3d.default, ops.MaxPool, (r(1, 2, 6, 6, 6), [2, 3, 2], [2, 2, 2], [0, 1, 0]), {}),
    (aten.sum.default, ops.Reduction, (r(2, 3, 4),), {}),
    (aten.sum.dim_IntList, ops.Reduction, (r(2, 3, 4), [-1, 0]), {}),
    (aten.sum.dim_IntList, ops.Reduction, (r(2, 3, 4), None, True), {}),
    (aten.mean.default, ops.Reduction, (r(2, 3, 4),), {}),
    (aten.mean.dim, ops.Reduction, (r(2, 3, 4), [1], True), {}),
    (aten.mean.dim, ops.Reduction, (r(2, 3, 4), []), {}),
    (aten.amax.default, ops.Reduction, (r(2, 3, 4), [0, 2]), {}),
    (aten.amax.default, ops.Reduction, (r(2, 3),), {}),
    (aten.amin.default, ops.Reduction, (r(2, 3, 4), [-1], True), {}),
    (aten.max.default, ops.Reduction, (r(2, 3),), {}),
    (aten.min.default, ops.Reduction, (r(()),), {}),
    (aten.prod.default, ops.Reduction, (r(2, 3),), {}),
    (aten.prod.dim_int, ops.Reduction, (r(2, 3), -1, True), {}),
    (aten.logsumexp.default, ops.Reduction, (r(2, 3, 4), [1, -1]), {}),
    (aten.adaptive_avg_pool1d.default, ops.Reduction, (r(2, 3, 5), [1]), {}),
    (aten.adaptive_avg_pool2d.default, ops.Reduction, (r(2, 3, 5, 4), [1, 1]), {}),
    (aten.adaptive_avg_pool3d.default, ops.Reduction, (r(3, 5, 4, 2), [1, 1, 1]), {}),
    (aten.softmax.int, ops.Softmax, (r(2, 3, 4), -2), {}),
    (aten._softmax.default, ops.Softmax, (r(2, 3, 4), 1, False), {}),
    (aten.log_softmax.int, ops.Softmax, (r(2, 3, 4), 2), {}),
    (aten._log_softmax.default, ops.Softmax, (r(2, 3, 4), -1, False), {}),
    (aten.maximum.default, ops.Extreme, (r(2, 3), r(3)), {}),
    (aten.max.other, ops.Extreme, (r(2, 3), r(2, 1)), {}),
    (aten.minimum.default, ops.Extreme, (r(2, 3), r(2, 3)), {}),
    (aten.min.other, ops.Extreme, (r(2, 3), r(())), {}),
    (aten.full_like.default, ops.Fill, (r(2, 3), 1.5), {}),
    (aten.new_full.default, ops.Fill, (r(2, 3), [4], -2), {}),
    (aten.zeros_like.default, ops.Fill, (r(2, 3),), {}),
    (aten.new_zeros.default, ops.Fill, (r(2, 3), [4, 5]), {}),
    (aten.ones_like.default, ops.Fill, (r(2, 3),), {}),
    (aten.new_ones.default, ops.Fill, (r(2, 3), [4, 5]), {}),
    (aten.adaptive_avg_pool1d.default, ops.Resampling, (r(2, 3, 5), [2]), {}),
    (aten.adaptive_avg_pool2d.default, ops.Resampling, (r(3, 5, 4), [1, 3]), {}),
    (aten.upsample_nearest1d.vec, ops.Resampling, (r(2, 3, 5), [8], None), {}),
    (aten.upsample_nearest2d.vec, ops.Resampling, (r(2, 3, 5, 4), None, [2.0, 3.0]), {}),
    (aten.upsample_nearest3d.vec, ops.Resampling, (r(2, 3, 5, 4, 2), [8, 4, 3], None), {}),
    (aten.upsample_nearest1d.default, ops.Resampling, (r(2, 3, 5), [8]), {}),
    (aten.upsample_nearest2d.default, ops.Resampling, (r(2, 3, 5, 4), [10, 8], 2.0, 2.0), {}),
    (aten.upsample_nearest3d.default, ops.Resampling, (r(2, 3, 5, 4, 2), [8, 4, 3]), {}),
    (aten.upsample_linear1d.vec, ops.Resampling, (r(2, 3, 5), [8], True, None), {}),
    (aten.upsample_bilinear2d.vec, ops.Resampling, (r(2, 3, 5, 4), None, False, [2.0, 3.0]), {}),
    (aten.upsample_trilinear3d.vec, ops.Resampling, (r(2, 3, 5, 4, 2), [8, 4, 3], True, None), {}),
    (aten.upsample_linear1d.default, ops.Resampling, (r(2, 3, 5), [8], False), {}),
    (aten.upsample_bilinear2d.default, ops.Resampling, (r(2, 3, 5, 4), [10, 8], True), {}),
    (aten.upsample_trilinear3d.default, ops.Resampling, (r(2, 3, 5, 4, 2), [8, 4, 3], False), {}),
    (aten.add.Tensor, ops.Sum, (r(2, 3), r(3)), {"alpha": -2.5}),
    (aten.add.Tensor, ops.Sum, (r(2, 3), 2), {"alpha": 3}),
    (aten.add.Scalar, ops.Sum, (r(2, 3), 2.0, 3), {}),
    (aten.sub.Tensor, ops.Sum, (r(2, 3), r(3)), {"alpha": 2}),
    (aten.sub.Scalar, ops.Sum, (r(2, 3), 0.5), {}),
    (aten.rsub.Tensor, ops.Sum, (r(2, 3), r(2, 3)), {"alpha": 4}),
    (aten.rsub.Scalar, ops.Sum, (r(2, 3), 1, 2), {}),
    (aten.neg.default, ops.Negation, (r(2, 3),), {}),
    (aten.mul.Tensor, ops.Product, (r(2, 3), r(3)), {}),
    (aten.mul.Tensor, ops.Product, (r(2, 3), 2.5), {}),
    (aten.mul.Scalar, ops.Product, (r(2, 3), 3), {}),
    (aten.div.Tensor, ops.Product, (r(2, 3), u(3)), {}),
    (aten.div.Scalar, ops.Product, (r(2, 3), 3), {}),
    (aten.reshape.default, ops.Reshape, (r(2, 3, 4), [6, -1]), {}),
    (aten.view.default, ops.Reshape, (r(2, 3, 4), [2, 12]), {}),
    (aten._unsafe_view.default, ops.Reshape, (r(2, 3, 4), [2, 12]), {}),
    (aten.squeeze.default, ops.Reshape, (r(1, 3, 1, 4),), {}),
    (aten.squeeze.dim, ops.Reshape, (r(1, 3, 1, 4), -2), {}),
    (aten.squeeze.dim, ops.Reshape, (r(1, 3, 1, 4), 1), {}),
    (aten.squeeze.dims, ops.Reshape, (r(1, 3, 1, 4), [0, 1, 2]), {}),
    (aten.unsqueeze.default, ops.Reshape, (r(2, 3), -1), {}),
    (aten.flatten.using_ints, ops.Reshape, (r(2, 3, 4), 1, -1), {}),
    (aten.unflatten.int, ops.Reshape, (r(2, 12), 1, [3, -1]), {}),
    (aten.permute.default, ops.Permute, (r(2, 3, 4), [-1, 0, 1]), {}),
    (aten.transpose.int, ops.Permute, (r(2, 3, 4), -1, 0), {}),
    (aten.t.default, ops.Permute, (r(2, 3),), {}),
    (aten.t.default, ops.Permute, (r(3),), {}),
    (aten.clone.default, ops.Copy, (r(2, 3),), {}),
    (aten.clone.default, ops.Copy, (r(2, 3, 4, 5),), {"memory_format": torch.channels_last}),
    (aten.clone.default, ops.Copy, (r(2, 3).t(),), {"memory_format": torch.preserve_format}),
    (aten.dropout.default, ops.Copy, (r(2, 3), 0.5, False), {}),
    (aten.feature_dropout.default, ops.Copy, (r(2, 3), 0.5, False), {}),
    (aten.alpha_dropout.default, ops.Copy, (r(2, 3), 0.5, False), {}),
    (aten._to_copy.default, ops.Cast, (r(2, 3),), {"dtype": torch.float64}),
    (aten.to.dtype, ops.Cast, (r(2, 3), torch.int64), {}),
    (aten.to.dtype_layout, ops.Cast, (r(2, 3),), {"dtype": torch.float16}),
    (aten.to.other, ops.Cast, (r(2, 3), r(1).double()), {}),
    (aten.to.device, ops.Cast, (r(2, 3), torch.device("cpu"), torch.bfloat16), {}),
    (aten.pad.default, ops.Pad, (r(2, 3, 4), [1, 2, 0, 3]), {}),
    (aten.pad.default, ops.Pad, (r(2, 3, 4), [1, -2], "constant", 1.5), {}),
    (aten.pad.default, ops.Pad, (r(2, 3, 4, 5), [1, 2, 3, 0], "reflect"), {}),
    (aten.pad.default, ops.Pad, (r(2, 3, 4), [2, 1], "replicate"), {}),
    (aten.pad.default, ops.Pad, (r(2, 3, 4), [2, 1], "circular"), {}),
    (aten.constant_pad_nd.default, ops.Pad, (r(2, 3), [1, 0, 0, 2], -1), {}),
    (aten.expand.default, ops.Expand, (r(2, 1, 4), [5, -1, 3, -1]), {}),
    (aten.slice.Tensor, ops.Slice, (r(4, 9), -1, 1, -2, 3), {}),
    (aten.slice.Tensor, ops.Slice, (r(4, 9), 1, None, 9223372036854775807), {}),
    (aten.slice_scatter.default, ops.Overwrite, (r(4, 9), r(4, 3), -1, 2, -1, 2), {}),
    (aten.slice_scatter.default, ops.Overwrite, (r(4, 9), r(4, 9), 0), {}),
    (aten.cat.default, ops.Concatenation, ([r(2, 3), r(2, 5)], -1), {}),
    (aten.concat.default, ops.Concatenation, ([r(2, 3), r(4, 3)],), {}),
    (aten.concatenate.default, ops.Concatenation, ([r(2, 3)], 1), {}),
    (aten.roll.default, ops.Roll, (r(3, 4), [1, -2], [-1, 0]), {}),
    (aten.relu.default, ops.Clamp, (r(3, 4),), {}),
    (aten.relu6.default, ops.Clamp, (6 * r(3, 4),), {}),
    (aten.hardtanh.default, ops.Clamp, (r(3, 4),), {}),
    (aten.hardtanh.default, ops.Clamp, (r(3, 4), -0.5, 0.25), {}),
    (aten.clamp.default, ops.Clamp, (r(3, 4), None, 0.3), {}),
    (aten.clamp_min.default, ops.Clamp, (r(3, 4), -0.3), {}),
    (aten.clamp_max.default, ops.Clamp, (r(3, 4), 0.3), {}),
]  # fmt: skip

# operators with several results: the index of the one that is viewed
PARTS: list[tuple[Any, type[ops.View], tuple[Any, ...], int]] = [
    (aten._native_batch_norm_legit_no_training.default, ops.BatchNorm,
     (r(2, 3, 4), r(3), r(3), r(3), u(3), 0.1, 1e-3), 0),
    (aten._native_batch_norm_legit_no_training.default, ops.BatchNorm, (r(2, 3), None, None, r(3), u(3), 0.1, 1e-3), 0),
    (aten._native_batch_norm_legit_functional.default, ops.BatchNorm,
     (r(2, 3, 4), r(3), r(3), r(3), u(3), True, 0.1, 1e-3), 0),
    (aten._native_batch_norm_legit.no_stats, ops.BatchNorm, (r(2, 3, 4), r(3), r(3), True, 0.1, 1e-3), 0),
    (aten.native_batch_norm.default, ops.BatchNorm, (r(2, 3, 4), r(3), r(3), r(3), u(3), False, 0.1, 1e-3), 0),
    (aten.max_pool2d_with_indices.default, ops.MaxPool, (r(2, 3, 9, 8), [3, 2], [2, 1], [1, 0]), 0),
    (aten.max_pool3d_with_indices.default, ops.MaxPool, (r(2, 3, 4, 5, 5), [2], [1], [1]), 0),
    (aten.adaptive_max_pool1d.default, ops.Resampling, (r(2, 3, 5), [2]), 0),
    (aten.adaptive_max_pool2d.default, ops.Resampling, (r(2, 3, 5, 4), [1, 3]), 0),
    (aten.adaptive_max_pool3d.default, ops.Resampling, (r(3, 5, 4, 2), [2, 2, 2]), 0),
    (aten.max.dim, ops.Reduction, (r(2, 3, 4), -1), 0),
    (aten.unbind.int, ops.Select, (r(2, 3, 4), -2), 2),
    (aten.min.dim, ops.Reduction, (r(2, 3, 4), 1, True), 0),
]  # fmt: skip

SPLITS = [
    (aten.split.Tensor, (3, -1)),
    (aten.split_with_sizes.default, ([2, 5, 1], 1)),
    (aten.split.sizes, ([2, 6], -1)),
    (aten.chunk.default, (3, 1)),
    (aten.tensor_split.sections, (3, 1)),
]


def build(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Program, torch.fx.Node]:
    program = Program()
    given = [
        program.input(a)
        if isinstance(a, Tensor)
        else [program.input(part) if isinstance(part, Tensor) else part for part in a]
        if isinstance(a, list)
        else a
        for a in args
    ]
    return program, program(target, *given, **kwargs)


def check(program: Program, node: torch.fx.Node, kind: type[ops.View]) -> None:
    found = view(node)
    assert type(found) is kind
    assert found.node is node
    values = program.values(program.graph(node))
    expected, actual = values[node], RECOMPUTE[kind](found, values.__getitem__)
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("target", "kind", "args", "kwargs"), CALLS, ids=[f"{c[0]}-{i}" for i, c in enumerate(CALLS)])
def test_a_view_recomputes_its_operator(target, kind, args, kwargs):
    program, node = build(target, args, kwargs)
    check(program, node, kind)


@pytest.mark.parametrize(("target", "kind", "args", "index"), PARTS, ids=[f"{c[0]}-{i}" for i, c in enumerate(PARTS)])
def test_a_view_of_one_of_several_results_recomputes_it(target, kind, args, index):
    program, call = build(target, args, {})
    node = program(operator.getitem, call, index)
    assert view(call) is None
    assert view(node).nodes == (call, node)
    check(program, node, kind)


@pytest.mark.parametrize(("target", "args"), SPLITS, ids=[str(target) for target, _ in SPLITS])
def test_a_piece_knows_where_it_comes_from(target, args):
    program, call = build(target, (torch.randn(2, 8), *args), {})
    for index, part in enumerate(call.meta["val"]):
        found = view(program(operator.getitem, call, index))
        assert isinstance(found, ops.Piece)
        assert (found.input.op, found.index, found.dim) == ("placeholder", index, 1)
        assert part.shape[1] == found.node.meta["val"].shape[1]


def test_every_view_and_every_spelling_is_tried():
    from rewrite.ops.view import _readers, _tuple_readers

    tried = {call[0] for call in CALLS} | {call[0] for call in VIEWS}
    assert tried == set(_readers)
    assert {call[0] for call in PARTS} | {target for target, _ in SPLITS} == {target for target, _ in _tuple_readers}


def test_a_product_is_a_linear_layer_only_where_a_matrix_stands_on_the_right():
    program, node = build(aten.matmul.default, (r(2, 3, 4), r(2, 4, 5)), {})
    check(program, node, ops.MatrixProduct)
    program, node = build(aten.matmul.default, (r(3, 4), r(2, 4, 5)), {})
    check(program, node, ops.MatrixProduct)


def test_an_instance_norm_over_running_statistics_is_a_batch_norm():
    program, node = build(aten.instance_norm.default, (r(2, 3, 4), r(3), r(3), r(3), u(3), False, 0.1, 1e-3, False), {})
    check(program, node, ops.BatchNorm)


def test_a_matrix_product_with_a_transposed_weight_is_a_linear_layer():
    program = Program()
    x, w, b = program.input(r(3, 4)), program.weight("w", r(5, 4)), program.weight("b", r(5))
    transposed = program(aten.t.default, w)
    node = program(aten.addmm.default, b, x, transposed)
    # a match over the weight itself would not have it at its boundary
    assert view(node).weight is transposed
    assert view(node).stored_transposed
    check(program, node, ops.Linear)


def test_a_reshape_of_a_symbolic_size_says_minus_one():
    program = Program(dynamic=True)
    node = program(aten.unsqueeze.default, program.input(r(2, 3)), 1)
    assert view(node).shape == (-1, 1, 3)
    both = program(aten.unsqueeze.default, program(aten.permute.default, node, [1, 0, 2]), 0)
    assert view(both).shape == (1, 1, -1, 3)
    square = program(aten.mul.Tensor, program.input(r(4)), program(aten.unsqueeze.default, program.input(r(5)), 1))
    assert view(program(aten.unsqueeze.default, square, 0)) is None


OPAQUE = [
    (aten.add.Tensor, (torch.arange(3), 1)),  # whole numbers: no algebra on weights
    (aten.addmm.default, (r(5), r(3, 4), r(4, 5)), {"beta": 2}),
    (aten.addmm.default, (r(3, 5), r(3, 4), r(4, 5))),
    (aten.clamp.default, (r(3), 1.0, -1.0)),  # all values are the upper bound
    (aten.roll.default, (r(2, 3), [1])),  # rolls the flattened tensor
    (aten.dropout.default, (r(2, 3), 0.5, True)),
    (aten.sum.default, (torch.ones(3, dtype=torch.bool),)),  # counts
    (aten.softmax.int, (r(2, 3), 1, torch.float64)),
    (aten.zeros_like.default, (torch.arange(3),)),
    (aten.new_full.default, (torch.arange(3), [2], 1.5), {"dtype": torch.float32}),
    (aten.sin.default, (r(2),)),
]


@pytest.mark.parametrize("call", OPAQUE, ids=[str(call[0]) for call in OPAQUE])
def test_other_uses_of_these_operators_have_no_view(call):
    target, args, *rest = call
    _, node = build(target, args, rest[0] if rest else {})
    assert view(node) is None


def test_infinite_bounds_are_spelled_as_infinities():
    program = Program()
    assert view(program(aten.relu.default, program.input(r(2)))).high == math.inf
    assert view(program(aten.clamp_max.default, program.input(r(2)), 1)).low == -math.inf


WINDOWS = [
    # kernel, other arguments, whether it is one reduction
    ([9, 8], (), True),
    ([9, 8], ([9, 8], [0, 0], True, False, 72), True),
    ([9, 7], (), False),
    ([9, 8], ([1, 1], [1, 0]), False),
    ([9, 8], ([9, 8], [0, 0], False, True, 3), False),
]


@pytest.mark.parametrize(("kernel", "rest", "whole"), WINDOWS, ids=map(str, range(len(WINDOWS))))
def test_one_window_of_everything_is_a_reduction(kernel, rest, whole):
    program = Program()
    node = program(aten.avg_pool2d.default, program.input(r(2, 3, 9, 8)), kernel, *rest)
    found = ops.reduction(node)
    assert (found is not None) is whole
    if found is not None:
        values = program.values(program.graph(node))
        torch.testing.assert_close(reduction(found, values.__getitem__), values[node])
