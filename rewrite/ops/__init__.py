"""Typed, frozen views of ATen operators; the same for every spelling."""

from rewrite.ops.arithmetic import Negation, Product, Sum, Term
from rewrite.ops.clamp import Clamp
from rewrite.ops.convolution import Convolution
from rewrite.ops.layout import Cast, Copy, Pad, Permute, Reshape
from rewrite.ops.linear import Linear
from rewrite.ops.norm import BatchNorm, GroupNorm, LayerNorm
from rewrite.ops.parts import Concatenation, Expand, Overwrite, Piece, Roll, Slice
from rewrite.ops.pooling import AveragePool
from rewrite.ops.view import View, arguments, is_tensor, reads, same_shape, same_type, value, view, view_as

__all__ = [
    "AveragePool", "BatchNorm", "Cast", "Clamp", "Concatenation", "Convolution", "Copy", "Expand", "GroupNorm",
    "LayerNorm", "Linear", "Negation", "Overwrite", "Pad", "Permute", "Piece", "Product", "Reshape", "Roll", "Slice",
    "Sum", "Term", "View", "arguments", "is_tensor", "reads", "same_shape", "same_type", "value", "view", "view_as",
]  # fmt: skip
