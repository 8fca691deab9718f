"""What verification knows of operators by their names: tables, one for each question."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.fx import Node


def name_of(node: Node) -> str:
    """The operator's name without namespace and overload; '' for anything but an operator."""
    return node.target._opname if isinstance(node.target, torch._ops.OpOverload) else ""


def _table(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONVOLUTIONS = _table("""
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
""")

_POOLS = _table("""
    avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
""")

_LAYOUT = _table("""
    permute transpose t unsqueeze squeeze expand expand_as clone contiguous detach alias movedim
    cat stack split split_with_sizes chunk unbind flip pixel_shuffle pixel_unshuffle channel_shuffle
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
""")

_PICKS = _table("""
    reshape view _unsafe_view flatten unflatten slice select narrow roll rot90 index index_select gather embedding
    repeat tile repeat_interleave diagonal diag_embed tril triu where select_scatter slice_scatter unfold im2col
    as_strided zeros_like ones_like lift_fresh_copy
""")

BATCH_NORMS = _table("""
    _native_batch_norm_legit_no_training _native_batch_norm_legit_functional _native_batch_norm_legit native_batch_norm
    batch_norm
""")

CONTRACTIONS = _table("mm bmm matmul addmm baddbmm einsum mv dot")

_MULTILINEAR = _table("""
    linear mm bmm matmul einsum mv dot mean sum cumsum amax col2im _weight_norm
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d
""")

MULTILINEAR = _CONVOLUTIONS | _POOLS | _LAYOUT | _PICKS | _MULTILINEAR
"""Linear with non-negative factors in each argument, or picking elements: the magnitude of the result is the operator
on the magnitudes of its arguments."""

_EXACT = _table("""
    pad constant_pad_nd relu neg abs max_pool1d max_pool2d max_pool3d max_pool2d_with_indices maximum minimum amax amin
    clamp clamp_min clamp_max hardtanh
""")

EXACT = _LAYOUT | _PICKS | _EXACT
"""Their results are not rounded."""

_SIZE_FREE = _table("""
    linear mm addmm matmul bmm einsum layer_norm group_norm instance_norm rms_norm native_layer_norm native_group_norm
    mean sum amax amin var std pad constant_pad_nd where sym_size _to_copy to
    add sub rsub mul div neg abs square pow sqrt rsqrt reciprocal exp log maximum minimum clamp clamp_min clamp_max
    relu relu6 hardtanh hardswish hardsigmoid sigmoid tanh gelu silu mish elu selu celu softplus leaky_relu prelu glu
    softmax _softmax log_softmax erf sin cos
""")

SIZE_FREE = _CONVOLUTIONS | _POOLS | _LAYOUT | BATCH_NORMS | _SIZE_FREE
"""They do the same at every image size: no argument of theirs is an index or a size."""

LIPSCHITZ = {
    "relu": 1.0, "relu6": 1.0, "hardtanh": 1.0, "clamp": 1.0, "clamp_min": 1.0, "clamp_max": 1.0, "abs": 1.0,
    "sigmoid": 0.25, "tanh": 1.0, "gelu": 1.13, "silu": 1.1, "hardswish": 1.5, "hardsigmoid": 0.167, "softplus": 1.0,
    "mish": 1.09, "erf": 1.13, "sin": 1.0, "cos": 1.0, "selu": 1.76, "log_sigmoid": 1.0, "atan": 1.0,
    "softshrink": 1.0,
}  # fmt: skip
"""The steepest slope of activations; the local one would allow no error where a ReLU is zero."""

POSITIVE_ARGUMENT = _table("sqrt rsqrt log log2 log10 lgamma digamma")

UNIT_ARGUMENT = _table("logit asin acos atanh special_ndtri erfinv")

INDEXED = {
    "embedding": ("indices", "weight"), "index_select": ("index", "self"), "gather": ("index", "self"),
    "take_along_dim": ("indices", "self"), "scatter": ("index", "self"), "index_add": ("index", "self"),
    "index_copy": ("index", "self"), "take": ("index", "self"), "index_fill": ("index", "self"),
}  # fmt: skip
"""Operators that index: the argument with the indices, and the one they index."""
