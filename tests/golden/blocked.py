"""Small models in which one rewrite is blocked, and the same models mended as the explanation says.

A line that moves here moves in the files under explain/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.golden.models import RepVGG


@dataclass(frozen=True)
class Case:
    """A blocked rewrite.

    Attributes:
        rule: what is blocked.
        blocked, mended: the model as it is, and after the smallest change.
        cause, remedy: parts of what the explanation says.
        line: a part of the user's line with the culprit.
        inputs: shapes.
        exclude: modules that are left alone in the blocked model.
        training: the module of the blocked model that is in training mode, '' for the whole of it.
        then: the rule that matches in the mended model, if another.
    """

    rule: str
    blocked: Callable[[], nn.Module]
    mended: Callable[[], nn.Module]
    cause: str
    remedy: str
    line: str
    inputs: tuple[tuple[int, ...], ...] = ((2, 4, 6, 5),)
    dtype: torch.dtype = torch.float32
    exclude: str | tuple[str, ...] = ()
    training: str | None = None
    then: str = ""


class ConvNorm(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class Escaped(nn.Module):
    def __init__(self, mended: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.mended = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), mended

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.mended:
            y = self.norm(y)
            return y * y.sigmoid()
        return self.norm(y) * y.sigmoid()


class SharedModule(nn.Module):
    def __init__(self, gate: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.gate = gate or self.conv

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(self.conv(x))
        return normed * self.gate(x).sigmoid()


class Chain(nn.Module):
    """Modules in a row, each with a line of its own."""

    def __init__(self, first: nn.Module, second: nn.Module, third: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.third = first, second, third

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.second(x)
        return self.third(x)


class Wide(ConvNorm):
    """What `Half` is with a layer in the norm's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = y.float()
        return self.norm(y)


class Half(nn.Module):
    def __init__(self, mended: bool = False) -> None:
        super().__init__()
        self.conv, self.mended = nn.Conv2d(4, 4, 3).bfloat16(), mended
        self.norm = nn.BatchNorm2d(4).bfloat16() if mended else nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.bfloat16())
        if self.mended:
            return self.norm(y).float()
        y = y.float()
        return self.norm(y)


class Tokens(nn.Module):
    def __init__(self, mended: bool = False) -> None:
        super().__init__()
        self.linear, self.mended = nn.Linear(6, 8), mended
        self.norm = nn.BatchNorm1d(8 if mended else 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.mended:
            return self.norm(y.transpose(1, 2)).transpose(1, 2)
        return self.norm(y)


class GivenKernel(nn.Module):
    def __init__(self, mended: bool = False) -> None:
        super().__init__()
        self.kernel, self.norm, self.mended = nn.Parameter(torch.randn(4, 4, 3, 3)), nn.BatchNorm2d(4), mended

    def forward(self, x: Tensor, kernel: Tensor) -> Tensor:
        y = F.conv2d(x, self.kernel if self.mended else kernel)
        return self.norm(y)


class SharedNorm(nn.Module):
    def __init__(self, own: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.own = own or self.norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.norm(x))
        return y + self.own(x).relu()


class JoinedParts(nn.Module):
    def __init__(self, other: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(8)
        self.other = other

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        other = y if self.other is None else self.other(x)
        joined = torch.cat([y, self.b(x)], 1)
        return self.norm(joined), other.sigmoid()


class Scaled(nn.Module):
    """A layer and a factor, put together by a function."""

    def __init__(self, layer: nn.Module, *shape: int, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.rand(shape, dtype=dtype or next(layer.parameters()).dtype) + 0.5)


class Divided(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.scale / self.layer(x)


class Divides(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) / self.scale


class Multiplied(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


class GivenScale(Scaled):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layer(x) * scale


class OwnScale(Scaled):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layer(x) * self.scale


class Two(nn.Module):
    """Two branches over one input."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return y + self.b(x)


class Rectified(nn.Module):
    """Two branches, a rectifier on one of them or on both."""

    def __init__(self, mended: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.mended = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), mended

    def forward(self, x: Tensor) -> Tensor:
        if self.mended:
            return (self.a(x) + self.b(x)).relu()
        y = self.b(x).relu()
        return self.a(x) + y


class OtherInput(nn.Module):
    """Two branches, one of which reads something else."""

    def __init__(self, mended: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.mended = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), mended

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.mended else x.relu()
        return self.a(x) + self.b(y)


class Sliced(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.b(x)[..., ::2, ::2]
        return self.a(x) + y


class Cropped(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.b(x)[..., :6, :5]
        return self.a(x) + y


class Padded(Two):
    """The same values as those of `Cropped`."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.pad(x, [1, 0, 1, 0]))
        return self.a(x) + y


class Pooled(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.b(x), 2)
        return self.a(x) + y


class PooledSum(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + self.b(x)
        return F.max_pool2d(y, 2)


class HalfBranch(Two):
    """One branch in bfloat16, a rectifier behind it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x.bfloat16()).float()
        return y.relu() + self.b(x)


class RectifiedSum(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + self.b(x)
        return y.relu()


class HalfScaled(Scaled):
    """A factor in the layer's dtype, or behind a conversion in a wider one."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.bfloat16())
        if self.scale.dtype == y.dtype:
            return (y * self.scale).float()
        y = y.float()
        return y * self.scale


class Copies(nn.Module):
    def __init__(self, mended: bool = False) -> None:
        super().__init__()
        self.conv, self.mended = nn.Conv2d(4, 4, 3), mended

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.conv(x)
        return (y.clone(),) if self.mended else (y, y.clone())


def conv(kernel: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(4, 4, kernel, **options)


def pool(counts: bool) -> nn.Module:
    return Two(conv(3, padding=1), nn.AvgPool2d(3, 1, 1, count_include_pad=counts))


AFTER, BEFORE, SCALE, MERGE = "fold-batch-norm-after", "fold-batch-norm-before", "fold-layer-scale", "merge-branches"
JOINED = "fold-behind-concatenation"

CASES: dict[str, Case] = {
    "norm_in_training": Case(
        AFTER, lambda: ConvNorm(nn.BatchNorm2d(4)), lambda: ConvNorm(nn.BatchNorm2d(4)),
        "uses batch statistics", "call eval() on 'norm'", "self.norm(self.conv(x))", training="norm",
    ),
    "norm_without_statistics": Case(
        AFTER, lambda: ConvNorm(nn.BatchNorm2d(4, track_running_stats=False)), lambda: ConvNorm(nn.BatchNorm2d(4)),
        "keeps no running statistics", "track_running_stats=True", "self.norm(self.conv(x))",
    ),
    "excluded_module": Case(
        AFTER, lambda: ConvNorm(nn.BatchNorm2d(4)), lambda: ConvNorm(nn.BatchNorm2d(4)),
        "module 'conv' is excluded", "leave 'conv' out of exclude", "self.norm(self.conv(x))", exclude="conv",
    ),
    "escaped_value": Case(
        AFTER, Escaped, lambda: Escaped(mended=True),
        "conv2d in 'conv' is also read elsewhere", "read the value of batch_norm in 'norm'",
        "y.sigmoid()",
    ),
    "shared_module": Case(
        AFTER, SharedModule, lambda: SharedModule(conv(3)),
        "conv2d in 'conv' is also read elsewhere", "or that of a module of its own", "self.gate(x).sigmoid()",
    ),
    "norm_behind_activation": Case(
        AFTER, lambda: Chain(conv(3), nn.ReLU(), nn.BatchNorm2d(4)),
        lambda: Chain(conv(3), nn.BatchNorm2d(4), nn.ReLU()),
        "relu stands between the layer and the norm", "apply the norm before relu in 'second'", "self.second(x)",
    ),
    "dropout_between": Case(
        AFTER, lambda: Chain(conv(3), nn.Dropout(0.5), nn.BatchNorm2d(4)),
        lambda: Chain(conv(3), nn.Dropout(0.5), nn.BatchNorm2d(4)),
        "dropout stands between the layer and the norm", "call eval() on 'second'", "self.second(x)", training="second",
    ),
    "cast_between": Case(
        AFTER, Half, lambda: Half(mended=True),
        "a conversion from bfloat16 to float32 stands between", "apply the norm before float", "y.float()",
    ),
    "layer_in_half": Case(
        AFTER, Half, lambda: Wide(nn.BatchNorm2d(4)),
        "a conversion from bfloat16 to float32 stands between", "or compute conv2d in 'conv' in float32, weights and",
        "y.float()",
    ),
    "norm_of_fewer_channels": Case(
        AFTER, lambda: Chain(conv(3), nn.PixelShuffle(2), nn.BatchNorm2d(1)),
        lambda: Chain(conv(3), nn.BatchNorm2d(4), nn.PixelShuffle(2)),
        "pixel_shuffle stands between", "apply the norm, over 4 channels, before pixel_shuffle", "self.second(x)",
    ),
    "features_last": Case(
        AFTER, Tokens, lambda: Tokens(mended=True),
        "dimension 1 of 3, are not those of the layer", "transpose between the two", "self.linear(x)", ((3, 4, 6),),
    ),
    "kernel_from_input": Case(
        AFTER, GivenKernel, lambda: GivenKernel(mended=True),
        "the kernel depends on the input", "compute it from parameters, not from input 'kernel'", "",
        ((2, 4, 6, 5), (4, 4, 3, 3)),
    ),
    "norm_of_joined_parts": Case(
        JOINED, JoinedParts, lambda: JoinedParts(conv(3, padding=1)),
        "conv2d in 'a' is also read elsewhere", "let sigmoid (", "other.sigmoid()",
    ),
    "norm_before_padding": Case(
        BEFORE, lambda: Chain(nn.BatchNorm2d(4), conv(3, padding=1), nn.ReLU()),
        lambda: Chain(nn.BatchNorm2d(4), conv(3), nn.ReLU()),
        "pads with zeros after the norm", "set padding=0", "self.second(x)",
    ),
    "norm_before_transposed": Case(
        BEFORE, lambda: Chain(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 3), nn.ReLU()),
        lambda: Chain(nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        "the convolution is transposed", "put the norm right behind it", "self.second(x)", then=AFTER,
    ),
    "shared_norm": Case(
        BEFORE, SharedNorm, lambda: SharedNorm(nn.BatchNorm2d(4)),
        "batch_norm in 'norm' is also read elsewhere", "a module of its own", "self.own(x).relu()",
    ),
    "swapped_division": Case(
        SCALE, lambda: Divided(conv(3), 4, 1, 1), lambda: Divides(conv(3), 4, 1, 1),
        "the factor is divided by the layer", "divide the layer by the factor", "self.scale / self.layer(x)",
    ),
    "factor_of_columns": Case(
        SCALE, lambda: Multiplied(conv(1), 4), lambda: Multiplied(conv(1), 4, 1, 1),
        "not one for each output channel", "reshape it to [4, 1, 1]", "", ((2, 4, 6, 4),),
    ),
    "factor_from_input": Case(
        SCALE, lambda: GivenScale(conv(3), 4, 1, 1), lambda: OwnScale(conv(3), 4, 1, 1),
        "the factor depends on the input", "not from input 'scale'", "", ((2, 4, 6, 5), (4, 1, 1)),
    ),
    "factor_behind_cast": Case(
        SCALE, lambda: HalfScaled(conv(3).bfloat16(), 4, 1, 1, dtype=torch.float32),
        lambda: HalfScaled(conv(3).bfloat16(), 4, 1, 1),
        "a conversion from bfloat16 to float32", "apply the factor, in bfloat16, before float", "y.float()",
    ),
    "complex_layer": Case(
        SCALE, lambda: Multiplied(nn.Linear(5, 4, dtype=torch.complex64), 4), lambda: Multiplied(nn.Linear(5, 4), 4),
        "its values are torch.complex64", "compute in a floating dtype", "self.layer(x)", dtype=torch.complex64,
    ),
    "complex_branches": Case(
        MERGE, lambda: Two(*(nn.Linear(5, 5, dtype=torch.complex64) for _ in range(2))),
        lambda: Two(nn.Linear(5, 5), nn.Linear(5, 5)),
        "its values are torch.complex64", "compute in a floating dtype", "self.a(x)", dtype=torch.complex64,
    ),
    "branches_in_training": Case(
        MERGE, lambda: RepVGG(4), lambda: RepVGG(4),
        "uses batch statistics", "call eval() on 'identity'", "self.dense(x) + self.point(x) + self.identity(x)",
        training="",
    ),
    "wrong_stride": Case(
        MERGE, lambda: Two(conv(1, stride=2), conv(1, stride=(3, 2))),
        lambda: Two(conv(1, stride=2), conv(1, stride=2)),
        "different strides, (2, 2) and (3, 2)", "give conv2d in 'b' the stride (2, 2)", "self.b(x)", ((2, 4, 4, 4),),
    ),
    "mixed_padding_modes": Case(
        MERGE, lambda: Two(conv(3, padding=1, padding_mode="reflect"), conv(5, padding=2)),
        lambda: Two(conv(3, padding=1), conv(5, padding=2)),
        "with reflect and zeros", "give all of them padding_mode='zeros'", "self.b(x)",
    ),
    "transposed_branch": Case(
        MERGE, lambda: Two(conv(3, padding=1), nn.ConvTranspose2d(4, 4, 3, padding=1)),
        lambda: Two(conv(3, padding=1), conv(3, padding=1)),
        "the convolution is transposed", "write conv_transpose2d in 'b' as a plain convolution", "self.b(x)",
    ),
    "unlike_groups": Case(
        MERGE, lambda: Two(conv(7, padding=3, groups=4), conv(1)),
        lambda: Two(conv(7, padding=3, groups=4), conv(1, groups=4)),
        "times the multiply-accumulates", "build all of them with groups=4", "self.a(x)",
    ),
    "pool_without_padding": Case(
        MERGE, lambda: pool(counts=False), lambda: pool(counts=True),
        "divides a window at the border by its part", "set count_include_pad=True", "self.b(x)",
    ),
    "branch_behind_activation": Case(
        MERGE, Rectified, lambda: Rectified(mended=True),
        "relu stands between the layer and the sum", "add up before relu", "self.b(x).relu()",
    ),
    "sliced_branch": Case(
        MERGE, lambda: Sliced(conv(3, padding=1, stride=2), conv(1)),
        lambda: Two(conv(3, padding=1, stride=2), conv(1, stride=2)),
        "slicing stands between the layer and the sum", "build conv2d in 'b' with stride=(2, 2) instead of slicing",
        "self.b(x)[..., ::2, ::2]",
    ),
    "sliced_branch_padded_by_name": Case(
        MERGE, lambda: Sliced(conv(1, stride=2), conv(3, padding="same")),
        lambda: Two(conv(1, stride=2), conv(3, stride=2, padding=1)),
        "slicing stands between", "with stride=(2, 2) and padding=(1, 1) instead", "self.b(x)[..., ::2, ::2]",
    ),
    "cropped_branch": Case(
        MERGE, lambda: Cropped(conv(3, padding=1), conv(2, padding=1)),
        lambda: Padded(conv(3, padding=1), conv(2)),
        "slicing stands between", "conv2d in 'b' with padding=0 behind F.pad(input, [1, 0, 1, 0]) instead of slicing",
        "self.b(x)[..., :6, :5]",
    ),
    "pooled_branch": Case(
        MERGE, lambda: Pooled(conv(2, stride=2), conv(1)), lambda: PooledSum(conv(3, padding=1), conv(1)),
        "max_pool2d stands between", "with all branches in one shape", "F.max_pool2d(", ((2, 4, 6, 4),),
    ),
    "branch_in_half": Case(
        MERGE, lambda: HalfBranch(conv(3, padding=1).bfloat16(), conv(1)),
        lambda: RectifiedSum(conv(3, padding=1), conv(1)),
        "a conversion from bfloat16 to float32 stands between the layer and the sum",
        "compute conv2d in 'a' in float32, weights and input, and add up before relu", ".float()",
    ),
    "other_input": Case(
        MERGE, OtherInput, lambda: OtherInput(mended=True),
        "the branches read different inputs", "let all of them read the value of input 'x'", "x.relu()",
    ),
    "returned_copy": Case(
        "remove-copy", Copies, lambda: Copies(mended=True),
        "returns both the copy and the original", "return one of the two, once", "self.conv(x)",
    ),
}  # fmt: skip
