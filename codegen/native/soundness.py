"""Whether the kernels compute what they should on this machine, for compilers differ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from codegen.native.kernels import Kernel, geometry, packed_dense, packed_depthwise, packed_matrix, packed_spectrum
from rewrite.winograd import TAPS, evaluation

_ALLOWED = 1e-5


def sound() -> bool:
    """Whether each kind of kernel gives what torch gives, for channels that fill no register and borders all around."""
    with torch.no_grad(), torch.device("cpu"), torch.autocast("cpu", enabled=False):
        return all(
            new.shape == old.shape and bool((new - old).norm() <= _ALLOWED * old.norm()) for new, old in _pairs()
        )


def _pairs() -> list[tuple[Tensor, Tensor]]:
    """Results of ours and of torch's."""
    generator = torch.Generator("cpu").manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    one, three, channels = (1, 1), (3, 3), 37
    x, weight, bias = drawn(2, channels, 11, 9), drawn(83, channels, 3, 3), drawn(83)
    image = x.contiguous(memory_format=torch.channels_last)
    dense = F.silu(F.conv2d(x, weight, bias, 1, 1))
    added = drawn(*dense.shape).contiguous(memory_format=torch.channels_last)
    numbers = geometry(dense.shape, three, one, one, one, "silu")
    v = evaluation(TAPS)
    spectrum = torch.einsum("pi,ocij,qj->pqco", v, weight.double(), v).float()
    found = [
        (Kernel("convolution", packed_dense(weight), bias, numbers)(image), dense),
        (Kernel("winograd", packed_spectrum(spectrum), bias, numbers)(image), dense),
    ]
    each = drawn(channels, 1, 5, 3)
    strided = geometry((2, channels, 6, 9), (5, 3), (2, 1), (2, 1), one, "relu")
    found.append((Kernel("depthwise", packed_depthwise(each), None, strided)(image),
                  F.relu(F.conv2d(x, each, None, (2, 1), (2, 1), 1, channels))))  # fmt: skip
    matrix, plain = drawn(channels, 83), geometry((1, 83, 1, 1), one, one, (0, 0), one, "")
    rows = x[:, :, 0].transpose(1, 2).contiguous()
    residual = added[:, :, 0].transpose(1, 2).contiguous()
    found.append(
        (Kernel("linear", packed_matrix(matrix), bias, plain)(rows, residual), rows @ matrix + bias + residual)
    )
    return found
