"""The alternatives among which a selection chooses, for a whole program at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.conv1d_as_conv2d import Conv1dAsConv2d
from passes.convert_layout import ChannelsFirst, ChannelsLast, DepthwiseChannelsFirst
from passes.explicit_padding import ExplicitPadding
from passes.fft_convolution import FftConvolution
from passes.patches_as_linear import PatchesAsLinear
from passes.pointwise import ConvolutionAsLinear, LinearAsConvolution
from passes.shrink_transform import ShrinkTransform
from passes.winograd_convolution import WinogradConvolution
from rewrite.pipeline import ChoicePass

if TYPE_CHECKING:
    from rewrite.rule import Rule


@dataclass(frozen=True)
class Select(ChoicePass):
    """Choose algorithms and layouts by measurement: those that together take the least time for the example.

    Linear layers as 1x1 convolutions, convolutions by Fourier transforms and back, or by Winograd's algorithm, over
    sequences as over images, with
    padding of its own, and the layout of what convolutions read. Which are made is decided where the program is
    optimized (``tune=``); where nothing is measured nothing is made.

    Attributes:
        every: also alternatives that seldom pay: 1x1 convolutions and patch embeddings as linear layers.
    """

    every: bool = False

    def rules(self) -> tuple[Rule, ...]:
        """What is offered."""
        usual: tuple[Rule, ...] = (
            LinearAsConvolution(), Conv1dAsConv2d(), FftConvolution(saving=0.5), ShrinkTransform(),
            WinogradConvolution(), ExplicitPadding(), ChannelsLast(), ChannelsFirst(), DepthwiseChannelsFirst(),
        )  # fmt: skip
        return (*usual, ConvolutionAsLinear(), PatchesAsLinear()) if self.every else usual
