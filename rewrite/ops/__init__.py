"""Typed, frozen views of ATen operators; the same for every spelling."""

from rewrite.ops.activation import Activation, activation
from rewrite.ops.arithmetic import Negation, Product, ProductSum, Sum, Term
from rewrite.ops.clamp import Clamp, Extreme
from rewrite.ops.convolution import Convolution
from rewrite.ops.fill import Fill
from rewrite.ops.layout import Cast, Copy, Pad, Permute, Reshape
from rewrite.ops.linear import Linear, MatrixProduct
from rewrite.ops.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from rewrite.ops.parts import Concatenation, Expand, Overwrite, Piece, Roll, Select, Slice
from rewrite.ops.pooling import AveragePool, MaxPool, Resampling
from rewrite.ops.reduction import Reduction, reduction
from rewrite.ops.softmax import Softmax
from rewrite.ops.transform import Transform
from rewrite.ops.view import View, arguments, is_tensor, reads, same_shape, same_type, value, view, view_as

__all__ = [
    "Activation", "AveragePool", "BatchNorm", "Cast", "Clamp", "Concatenation", "Convolution", "Copy", "Expand",
    "Extreme", "Fill", "GroupNorm", "InstanceNorm", "LayerNorm", "Linear", "MatrixProduct", "MaxPool", "Negation",
    "Overwrite", "Pad", "Permute", "Piece", "Product", "ProductSum", "RMSNorm", "Reduction", "Resampling",
    "Reshape", "Roll", "Select", "Slice", "Softmax", "Sum", "Term", "Transform", "View", "activation", "arguments",
    "is_tensor", "reads", "reduction", "same_shape", "same_type", "value", "view", "view_as",
]  # fmt: skip
