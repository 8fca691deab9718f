"""The rewrites, as a table of contents.

- :mod:`passes.simplify`: operators that compute nothing, and the same thing computed twice
- :mod:`passes.fold_affine`: constant scales and shifts of channels into the layers beside them: batch norms, layer
  scales, parameters of norms
- :mod:`passes.reparameterize`: an add-tree of linear branches into one convolution
- :mod:`passes.merge_linear`: two layers in a row with no activation between them, into one
- :mod:`passes.merge_low_rank`: two layers in a row into a layer to which their result is added
- :mod:`passes.merge_siblings`: layers over one input, into one with the outputs of all
- :mod:`passes.merge_wide`: branches of two layers with an activation between, into one wide branch
- :mod:`passes.merge_selection`: what a gate chooses between two values, as one interpolation
- :mod:`passes.hoist_pooling`: means and sums before what is linear
- :mod:`passes.commute_pooling`: windows pooled before activations and pointwise convolutions
- :mod:`passes.reduction_algebra`: reductions of reductions, and of one element
- :mod:`passes.trim_kernel`: zeros off the border of kernels
- :mod:`passes.prune_exact`: channels that make no difference
- :mod:`passes.select`: algorithms and layouts, chosen by measurement among some of the choices below
- :mod:`passes.fold_constants`: what depends on weights alone, evaluated once

Choices, which are better here and worse there, so that they are made only where a pipeline names them:

- :mod:`passes.patches_as_linear`: a patch embedding as a linear layer over patches
- :mod:`passes.pointwise`: linear layers as 1x1 convolutions, and back
- :mod:`passes.fft_convolution`: a convolution with a long kernel by Fourier transforms
- :mod:`passes.winograd_convolution`: a 3x3 convolution with a quarter of the products
- :mod:`passes.conv1d_as_conv2d`: a convolution over a sequence as one over an image of one row
- :mod:`passes.explicit_padding`: the zeros around a convolution's input by an operator of their own
- :mod:`passes.convert_layout`: what a convolution reads, copied to channels first or last
- :mod:`passes.shrink_transform`: a convolution that the model computes by transforms, over fewer points or directly
- :mod:`passes.space_to_batch`: a dilated convolution over the phases of its input
- :mod:`passes.separate_kernel`: a separable kernel as one along each dimension
- :mod:`passes.filter_basis`: few different filters as a depthwise and a pointwise convolution
- :mod:`passes.split_support`: a depthwise convolution as the mixer of an InceptionNeXt
- :mod:`passes.merge_support`: such a mixer as one depthwise convolution

Approximations, which change the function, so that they need data and a budget (:func:`rewrite.approximate`):

- :mod:`passes.inception`: depthwise convolutions as inception mixers
- :mod:`passes.low_rank_approximation`: convolutions and linear layers as chains of low rank
- :mod:`passes.prune_filters`: hidden channels that make little difference, removed

Shared between them are :mod:`passes.affine`, a batch norm as an affine map, :mod:`passes.layout`, channels through
permutations and reshapes, :mod:`passes.obstruction`, what stands between a layer and what would be folded into it,
:mod:`passes.memory`, what a caller sees of strides and storage, :mod:`passes.strided`, what it costs to read a piece of
a tensor, :mod:`passes.costs`, what layers cost, :mod:`passes.convolve`, convolutions built by rules,
:mod:`passes.pair` and :mod:`passes.compose`, two layers in a row as one, :mod:`passes.stacking`, layers beside each
other as one, :mod:`passes.sums`, the ends and terms of add-trees, :mod:`passes.reductions`, reductions built anew,
:mod:`passes.ranges`, the interval that values lie in, :mod:`passes.taps`, zeros at the border of kernels,
:mod:`passes.low_rank`, kernels of low rank, and :mod:`passes.positive`, matrices of moments that are solved for.
"""

from __future__ import annotations

from passes.commute_pooling import AveragePoolBeforePointwise, CommutePooling
from passes.conv1d_as_conv2d import Conv1dAsConv2d
from passes.convert_layout import ChannelsFirst, ChannelsLast, DepthwiseChannelsFirst
from passes.explicit_padding import ExplicitPadding
from passes.fft_convolution import FftConvolution
from passes.filter_basis import FilterBasis
from passes.fold_affine import FoldAffine, FoldBatchNorm, FoldLayerScale
from passes.fold_constants import FoldConstants
from passes.hoist_pooling import HoistPooling, HoistSharedPooling
from passes.inception import Inception
from passes.low_rank_approximation import LowRank
from passes.merge_linear import MergeLinear
from passes.merge_low_rank import MergeLowRank
from passes.merge_selection import MergeSelection
from passes.merge_siblings import MergeSiblings
from passes.merge_support import MergeSupport
from passes.merge_wide import MergeWide
from passes.patches_as_linear import PatchesAsLinear
from passes.pointwise import ConvolutionAsLinear, LinearAsConvolution
from passes.prune_exact import PruneExact, RemoveUnreadChannels
from passes.prune_filters import PruneFilters
from passes.reduction_algebra import ClampByConstant, MeanOfUniformGroupNorm, ReductionAlgebra
from passes.reparameterize import Reparameterize
from passes.select import Select
from passes.separate_kernel import SeparateKernel
from passes.shrink_transform import ShrinkTransform
from passes.simplify import Simplify
from passes.space_to_batch import SpaceToBatch
from passes.split_support import SplitSupport
from passes.trim_kernel import TrimKernel
from passes.winograd_convolution import WinogradConvolution
from rewrite.approximation.contract import Approximation
from rewrite.pipeline import Pipeline, Registry, Step

STEPS: tuple[type[Step], ...] = (
    Simplify, FoldBatchNorm, FoldLayerScale, FoldAffine, Reparameterize, MergeLinear, MergeLowRank, MergeSiblings,
    MergeWide, MergeSelection, HoistPooling, CommutePooling, ReductionAlgebra, ClampByConstant, MeanOfUniformGroupNorm,
    AveragePoolBeforePointwise, TrimKernel, PruneExact, RemoveUnreadChannels, FoldConstants,
    HoistSharedPooling, PatchesAsLinear, LinearAsConvolution, ConvolutionAsLinear, SpaceToBatch, SeparateKernel,
    FilterBasis, SplitSupport, MergeSupport, FftConvolution, WinogradConvolution, ShrinkTransform, Conv1dAsConv2d,
    ExplicitPadding,
    ChannelsLast, ChannelsFirst, DepthwiseChannelsFirst, Select,
)  # fmt: skip
"""Every step that pipelines can name."""


APPROXIMATIONS: tuple[type[Approximation], ...] = (Inception, LowRank, PruneFilters)
"""Every rule that :func:`rewrite.approximate` can name."""


def approximations() -> Registry:
    """The approximations of this package and of installed plug-ins, by name."""
    plugins = Registry(()).with_plugins().steps.values()
    return Registry((*APPROXIMATIONS, *(step for step in plugins if issubclass(step, Approximation))))


def registry(default: Pipeline | None = None) -> Registry:
    """The steps of this package and of installed plug-ins, by name.

    Args:
        default: what the name ``default`` stands for in the text of a pipeline; by default :func:`default_pipeline`.
    """
    known = Registry(STEPS, default_pipeline() if default is None else default).with_plugins()
    return Registry((step for step in known.steps.values() if not issubclass(step, Approximation)), known.default)


def default_pipeline() -> Pipeline:
    """The steps that run unless others are named; equal in real arithmetic element by element, or to the bit.

    What is folded first leaves less to be merged: maps of channels, then channels and taps that make no difference,
    then what pools can do without, then layers in a row and beside each other.
    """
    return Pipeline((
        # copies and reshapes between the branches hide them; merged branches leave new ones
        Simplify(), Reparameterize(), Simplify(), FoldAffine(),
        PruneExact(), TrimKernel(),
        # a compiler computes an activation behind the layer for nothing, so it is not moved behind maxima
        HoistPooling(), AveragePoolBeforePointwise(), ReductionAlgebra(),
        MergeSelection(), MergeWide(), MergeLinear(), MergeLowRank(),
        # the pieces of what is merged stand in the way of everything else
        MergeSiblings(), Simplify(),
        # what is chosen for one operator meets what is chosen for its neighbours
        Select(), Simplify(), FoldConstants(),
    ))  # fmt: skip


def live_pipeline() -> Pipeline:
    """Those of the default steps that pay where weights are trained, and their algebra is computed at every step."""
    return Pipeline((
        Simplify(), Reparameterize(), Simplify(), RemoveUnreadChannels(), HoistPooling(),
        AveragePoolBeforePointwise(), ReductionAlgebra(), Simplify(),
    ))  # fmt: skip
