"""DO-Conv: a convolution whose kernel is the product of two trained tensors.

Cao, Li, Sun, Liu, Sun, Chen, Zhang: DO-Conv, TIP 2022, arXiv:2006.12030.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DOConv(nn.Module):
    """A 2-D convolution with an over-parameterized kernel; [N, inputs, H, W] to [N, outputs, H', W'].

    Args:
        inputs, outputs, kernel, stride, groups, padding_mode: as in ``torch.nn.Conv2d``; odd kernels keep the size.
        factor: the inner size of the product, by default and at least the area of the kernel.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        factor: int | None = None,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.size = inputs, outputs, kernel
        self.stride, self.groups, self.padding_mode = stride, groups, padding_mode
        area = kernel * kernel
        self.factor = area if factor is None or area == 1 else factor
        self.weight = nn.Parameter(
            torch.randn(outputs, inputs // groups, self.factor) / (inputs // groups * area) ** 0.5
        )
        if area > 1:
            # training starts at zero, where the product is the weight itself
            self.depth = nn.Parameter(0.1 * torch.randn(inputs, area, self.factor))
            identity = torch.eye(area).repeat(1, self.factor // area)
            self.register_buffer("identity", F.pad(identity, (0, self.factor % area)).expand(inputs, -1, -1).clone())

    def kernel(self) -> Tensor:
        """The kernel [outputs, inputs / groups, kernel, kernel]."""
        if self.size == 1:
            return self.weight.unflatten(-1, (1, 1))
        weight = self.weight.reshape(self.outputs // self.groups, self.inputs, self.factor)
        product = torch.einsum("ims,ois->oim", self.depth + self.identity, weight)
        return product.reshape(self.outputs, self.inputs // self.groups, self.size, self.size)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.size // 2
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, (padding,) * 4, mode=self.padding_mode), 0
        return F.conv2d(x, self.kernel(), None, self.stride, padding, 1, self.groups)
