"""Mixers: convolutions of parts of the channels, put together again, in one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from codegen.triton.depthwise.banded import Banded
from codegen.triton.depthwise.copying import Copying
from codegen.triton.depthwise.emitting import Schedule
from codegen.triton.depthwise.toeplitz import Toeplitz
from codegen.triton.region import Region
from examples.models.inception_next import InceptionDepthwise
from tests.codegen.triton.kernels import (
    FAMILY,
    SCHEDULES,
    Net,
    check,
    depthwise,
    last,
    module_of,
    needs_interpreter,
    regions_of,
    run,
    words,
)
from tests.corpus import timm
from tests.drawn import COSTLY

pytestmark = needs_interpreter

FIRST, LAST = ("streaming", "banded", "toeplitz"), ("streaming last", "toeplitz channels")


def chosen(region: Region, *kinds: str) -> list[Schedule]:
    """Schedules of some kinds in turn for the branches; copies where channels pass."""
    rows = [SCHEDULES[kind] for kind in kinds]
    copies = [Copying(16, 2, "last" in kind or "channels" in kind) for kind in kinds]
    branches = region.main.branches
    return [(copies if branch.weight is None else rows)[i % len(kinds)] for i, branch in enumerate(branches)]


def image(channels: int, kinds: Sequence[str], batch: int = 2) -> Tensor:
    """Of the layout that schedules are for."""
    x = torch.randn(batch, channels, 6, 7)
    return last(x) if any(kind in LAST for kind in kinds) else x


@dataclass(frozen=True)
class Case:
    """A function of a network's layers and an image of eight channels.

    Attributes:
        function: of the network and the image.
        kernels: sizes of the convolutions ``a``, ``b``, and so on, each of which has so many channels.
        mixer: as plans call it.
        before, after: the names of operators in front and behind.
        settings: of the convolutions.
    """

    function: Callable[..., Any]
    kernels: tuple[tuple[int, int | tuple[int, int]], ...]
    mixer: str
    before: str = ""
    after: str = ""
    settings: tuple[tuple[str, Any], ...] = ()

    def model(self) -> nn.Module:
        """The network."""
        named = zip("abcd", self.kernels, strict=False)
        return Net(self.function, **{name: depthwise(*kernel, **dict(self.settings)) for name, kernel in named}).eval()


def inception(net: nn.Module, x: Tensor) -> Tensor:
    """Some channels pass, and the others are convolved along rows, columns and both."""
    same, a, b, c = x.split((2, 2, 2, 2), 1)
    return torch.cat((same, net.a(a), net.b(b), net.c(c)), 1)


def padded(net: nn.Module, x: Tensor) -> Tensor:
    """Zeros are put around parts by operators of their own."""
    a, b = x.chunk(2, 1)
    return torch.cat([net.a(F.pad(a, (2, 0, 1, 1))), net.b(F.pad(b, (1, 1, 2, 0)))], 1)


def halves(net: nn.Module, x: Tensor) -> Tensor:
    """Two branches, the second half of the channels first."""
    a, b = x.chunk(2, 1)
    return torch.cat([net.b(b), net.a(a)], 1)


def gated(net: nn.Module, x: Tensor) -> Tensor:
    """With something in front and behind."""
    a, b, c = torch.sigmoid(x).split((3, 3, 2), 1)
    return F.gelu(torch.cat([net.a(a), net.b(b), c], 1)) * x[:, :1] + x


def overlapping(net: nn.Module, x: Tensor) -> Tensor:
    """Parts that have channels in common, and leave some out."""
    return torch.cat([net.a(x.narrow(1, 1, 4)), net.b(x.narrow(1, 3, 4)), x.narrow(1, 0, 3)], 1)


def used_elsewhere(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A part that others read too."""
    a, b = x.chunk(2, 1)
    return torch.cat([net.a(a), b], 1), b.relu()


def repeated(net: nn.Module, x: Tensor) -> Tensor:
    """One branch over two parts, with its weights once."""
    a, b = x.chunk(2, 1)
    return torch.cat([net.a(a), net.a(b), b], 1)


CASES = {
    "inception": Case(
        inception, ((2, 3), (2, (1, 5)), (2, (5, 1))), "depthwise [2 unchanged, 2 3x3, 2 1x5, 2 5x1]"
    ),
    "zeros of their own": Case(padded, ((4, 3), (4, 3)), "depthwise [4 3x3, 4 3x3]", settings=(("padding", 0),)),
    "another order": Case(halves, ((4, 3), (4, 5)), "depthwise [4 5x5, 4 3x3]"),
    "strides": Case(
        halves, ((4, 3), (4, 5)), "depthwise [4 5x5 stride 2x2, 4 3x3 stride 2x2]", settings=(("stride", 2),)
    ),
    "in front and behind": Case(gated, ((3, 3), (3, 5)), "depthwise [3 3x3, 3 5x5, 2 unchanged]", "sigmoid",
                                "gelu mul add"),
    "parts in common": Case(overlapping, ((4, 3), (4, 5)), "depthwise [4 3x3, 4 5x5, 3 unchanged]"),
    "a part that others read": Case(used_elsewhere, ((4, 3),), "depthwise [4 3x3, 4 unchanged]"),
    "one branch twice": Case(repeated, ((4, 3),), "depthwise [4 3x3, 4 3x3, 4 unchanged]"),
    "some channels empty": Case(
        lambda n, x: (lambda a, b, c: torch.cat([n.a(a), b, n.b(c)], 1))(*x.split((4, 0, 4), 1)),
        ((4, 3), (4, 5)), "depthwise [4 3x3, 0 unchanged, 4 5x5]",
    ),
    "sequences": Case(
        lambda n, x: (lambda a, b: torch.cat([n.a(a), b], 1))(*x.flatten(2).chunk(2, 1)), ((4, (5,)),),
        "depthwise [4 1x5, 4 unchanged]",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kinds"), [
    pytest.param(name, kinds, id=f"{name}-{ending}",
                 marks=[] if number % 2 == (kinds is LAST) or name == "inception" else [pytest.mark.slow])
    for kinds, ending in ((FIRST, "first"), (LAST, "last")) for number, name in enumerate(CASES)
])  # fmt: skip
def test_one_launch_computes_all_branches(name, kinds):
    case = CASES[name]
    model, x = case.model(), image(8, kinds)
    module = module_of(model, x)
    region = regions_of(module)[-1]
    assert str(region.main) == case.mixer
    assert (words(region.prologue), words(region.epilogue)) == (case.before, case.after)
    _, found = run(module, region, chosen(region, *kinds), x)
    check(model, [x], found)


def test_a_slice_from_far_before_the_first_channel():
    """As Python has it: it begins with the first one."""
    model = Net(lambda n, x: torch.cat([torch.ops.aten.slice(x, 1, -10, 2), n.a(x.narrow(1, 2, 6))], 1),
                a=depthwise(6, 3))  # fmt: skip
    x = image(8, FIRST)
    module = module_of(model, x)
    region = regions_of(module)[-1]
    assert [branch.source for branch in region.main.branches] == [0, 2]
    check(model, [x], run(module, region, chosen(region, *FIRST), x)[1])


def outputs_of_two(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A convolution of a part that is given as well."""
    a, b = x.chunk(2, 1)
    y = net.a(a)
    return torch.cat([y, b], 1), y


NO_MIXERS = {
    "what a branch gives is read elsewhere": outputs_of_two,
    "parts of two inputs": lambda n, x: torch.cat([n.a(x.narrow(1, 0, 4)), (2 * x).narrow(1, 4, 4)], 1),
    "an operator between": lambda n, x: torch.cat([n.a(x.narrow(1, 0, 4)).relu(), x.narrow(1, 4, 4)], 1),
    "every second channel": lambda n, x: torch.cat([n.a(torch.ops.aten.slice(x, 1, 0, 8, 2)), x.narrow(1, 4, 4)], 1),
    "put together along rows": lambda n, x: torch.cat([n.a(x.narrow(1, 0, 4)), x.narrow(1, 4, 4)], 2),
    "a full convolution": lambda n, x: torch.cat([n.a(x.narrow(1, 0, 4)), n.b(x.narrow(1, 4, 4))], 1),
}


@pytest.mark.parametrize("name", NO_MIXERS)
def test_what_is_no_mixer(name):
    """The depthwise convolution in it is one by itself."""
    model, x = Net(NO_MIXERS[name], a=depthwise(4, 3), b=nn.Conv2d(4, 4, 1)), image(8, FIRST)
    module = module_of(model, x)
    assert [str(main) for main in FAMILY.mains(module.graph)] == ["depthwise [4 3x3]"]
    region = regions_of(module)[-1]
    check(model, [x], run(module, region, chosen(region, "streaming"), x)[1])


@pytest.mark.parametrize("behind", [
    lambda n, x: n.ln(halves(n, x).permute(0, 2, 3, 1)), lambda n, x: (lambda y: (y, y.mean((2, 3))))(halves(n, x)),
])  # fmt: skip
def test_sums_over_channels_and_pixels_are_left(behind):
    """No program has all channels."""
    model, x = Net(behind, a=depthwise(4, 3), b=depthwise(4, 5), ln=nn.LayerNorm(8)), image(8, LAST)
    module = module_of(model, x)
    region = regions_of(module)[-1]
    assert (region.epilogue, region.totals, region.norms) == ((), (), ())
    check(model, [x], run(module, region, chosen(region, *LAST), x)[1])


@pytest.mark.parametrize("kinds", [FIRST, LAST], ids=["first", "last"])
def test_inception_next(kinds):
    mix = InceptionDepthwise(18, band=5)
    model, x = Net(lambda n, x: n.mix(x) + x, mix=mix), image(18, kinds)
    module = module_of(model, x)
    region = regions_of(module)[-1]
    assert str(region.main) == "depthwise [12 unchanged, 2 3x3, 2 1x5, 2 5x1]"
    assert words(region.epilogue) == "add"
    check(model, [x], run(module, region, chosen(region, *kinds), x)[1])


@pytest.mark.parametrize("kinds", [FIRST, LAST], ids=["first", "last"])
def test_mixnet(kinds):
    """With kernels of four sizes, strides, and an activation behind."""
    mix = timm.layers.MixedConv2d(10, 10, [3, 5, 7, 9], stride=2, depthwise=True)
    model, x = Net(lambda n, x: F.silu(n.mix(x)), mix=mix), image(10, kinds)
    module = module_of(model, x)
    region = regions_of(module)[-1]
    branches = [(4, "3x3"), (2, "5x5"), (2, "7x7"), (2, "9x9")]
    assert [(each.channels, str(each.window)) for each in region.main.branches] == [
        (channels, f"{kernel} stride 2x2") for channels, kernel in branches
    ]
    assert words(region.epilogue) == "silu"
    check(model, [x], run(module, region, chosen(region, *kinds), x)[1])


@given(data=st.data())
@COSTLY
def test_parts_of_any_sizes(data):
    """In any order, with any of them left as they are, and any schedules beside one another."""
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    order = data.draw(st.permutations(range(len(sizes))))
    taps = st.sampled_from([(1, 1), (3, 3), (2, 4), (5, 1), (1, 6), (7, 7)])
    kernels = [data.draw(taps) if size > 1 else None for size in sizes]
    kernels = [None if data.draw(st.integers(0, 3)) == 0 else kernel for kernel in kernels]
    if not any(kernels):
        kernels[sizes.index(max(sizes))], sizes = (3, 3), [size + 1 for size in sizes]
    convs = nn.ModuleList(nn.Identity() if k is None else nn.Conv2d(c, c, k, groups=c, padding="same")
                          for c, k in zip(sizes, kernels, strict=True))  # fmt: skip

    def mixed(net: nn.Module, x: Tensor) -> Tensor:
        parts = x.split(sizes, 1)
        return F.relu(torch.cat([net.convs[i](parts[i]) for i in order], 1))

    kinds = data.draw(st.permutations(data.draw(st.sampled_from([FIRST, LAST]))))
    model, x = Net(mixed, convs=convs), image(sum(sizes), kinds, batch=data.draw(st.integers(1, 2)))
    module = module_of(model, x)
    region = regions_of(module)[-1]
    assert len(region.main.branches) == len(sizes)
    check(model, [x], run(module, region, chosen(region, *kinds), x)[1])


def test_branches_have_windows_of_their_own_size() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(2, 2, k, padding=k // 2, groups=2) for k in (3, 9, 31))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([conv(part) for conv, part in zip(self.convs, x.chunk(3, 1), strict=True)], 1)

    model, x = Mixed().eval(), torch.randn(2, 6, 20, 40)
    module = module_of(model, x)
    region = regions_of(module)[0]
    schedules = [Toeplitz(16, 16, 1, False), Banded(16, 16, 8, False), Toeplitz(16, 16, 1, False)]
    kernel, (found,) = run(module, region, schedules, x)
    assert len({value for name, value in kernel.source.constants.items() if name.startswith("DEPTH")}) == 2
    with torch.no_grad():
        torch.testing.assert_close(found.double(), model.double()(x.double()), rtol=1e-5, atol=1e-5)
