"""What kernels compute beside the convolution: in front of it, behind it, and sums over pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegen.triton.binding import bind
from codegen.triton.device import REFERENCE
from codegen.triton.launching import interpreted
from codegen.triton.planning import planned
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
    watched,
    words,
)

pytestmark = needs_interpreter

FIRST, LAST = ("streaming", "toeplitz below"), ("streaming last", "toeplitz channels")
EACH = (*FIRST, "banded", "toeplitz whole", "banded whole", "toeplitz")
PLAIN = ("streaming", "streaming last")
LAYER = (2, 3, 5, 6)
"""The size of images."""


@dataclass(frozen=True)
class Case:
    """A function of a convolution ``net.a`` and its input, and what of it the largest region holds.

    Attributes:
        function: of the network and its inputs.
        before, after, totals: the names of operators in front, behind, and of sums.
        kinds: of schedules.
        layers: of the network beside the convolution.
        more: the sizes of inputs beside the image.
        settings: of the convolution.
    """

    function: Callable[..., Any]
    before: str = ""
    after: str = ""
    totals: str = ""
    kinds: tuple[str, ...] = FIRST
    layers: Callable[[], dict[str, Any]] = dict
    more: tuple[Any, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def model(self) -> nn.Module:
        """The network."""
        return Net(self.function, a=depthwise(3, 3, **self.settings), **self.layers()).eval()

    def inputs(self) -> tuple[Tensor, ...]:
        """The image, and what is taken beside it."""
        x = torch.randn(LAYER)
        x = last(x) if self.kinds is LAST or self.kinds == ("streaming last",) else x
        return (x, *(each() if callable(each) else torch.randn(each) for each in self.more))


def gains(*sizes: int) -> Callable[[], dict[str, Any]]:
    """Two weights of some sizes."""
    return lambda: {"g": torch.randn(sizes), "b": torch.randn(sizes)}


def norm(**settings: Any) -> Callable[[], dict[str, Any]]:
    """A norm over channels."""
    return lambda: {"ln": nn.LayerNorm(3, **settings)}


def pixels(y: Tensor) -> Tensor:
    """Channels last, in a view."""
    return y.permute(0, 2, 3, 1)


def twice(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Several values that others read, one of them in two ways."""
    y = F.relu(net.a(x))
    return y, y * net.g, y.flatten(2) + 1


def read_outside(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """A value in the middle that an operator reads that is not fused."""
    y = F.relu(net.a(x))
    return y.sum(1), y * net.g


def excited(net: nn.Module, x: Tensor) -> Tensor:
    """A gate from averages of the result itself."""
    y = F.silu(net.a(x))
    return y * torch.sigmoid(F.adaptive_avg_pool2d(y, 1))


def two_sums(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Of two values, in several shapes."""
    y = net.a(x)
    z = F.relu(y)
    return y.sum((2, 3)), z.mean((2, 3), keepdim=True), z.sum((-1, -2))


CASES = {
    # in front: what is not zero where there is a zero
    "affine, activation": Case(
        lambda n, x: n.a(F.hardswish(x * n.g + n.b)), "mul add hardswish", layers=gains(3, 1, 1), kinds=EACH
    ),
    "sigmoid": Case(lambda n, x: n.a(torch.sigmoid(x)), "sigmoid", kinds=LAST),
    "zeros of its own": Case(lambda n, x: n.a(F.pad(x.exp(), (2, 1, 0, 3))), "exp", settings={"padding": 0}),
    "sum of two": Case(lambda n, x, z: n.a(x + z), "add", more=(lambda: last(torch.randn(LAYER)),)),
    "gate of channels": Case(lambda n, x, z: n.a(z * x), "mul", more=((2, 3, 1, 1),), kinds=LAST),
    "scalar": Case(lambda n, x: n.a(n.g * x + 1), "mul add", layers=gains()),
    "rows and columns": Case(lambda n, x, z: n.a(x[:, :, :1] * z), "mul", more=((5, 6),)),
    "in half": Case(
        lambda n, x: F.gelu(n.a(x.to(n.a.weight.dtype)).to(x.dtype)), "cast", "cast gelu",
        settings={"dtype": torch.float16},
    ),
    "two from one": Case(
        lambda n, x: n.a((lambda y: F.relu(y) * torch.sigmoid(y))(x + 1)), "add relu sigmoid mul"
    ),
    "in front and behind": Case(lambda n, x: F.silu(n.a(torch.cos(x))) + x, "cos", "silu add", kinds=EACH),
    # behind
    "affine": Case(lambda n, x: F.gelu(n.a(x) * n.g + n.b), after="mul add gelu", layers=gains(3, 1, 1)),
    "no bias": Case(lambda n, x: F.hardswish(n.a(x)), after="hardswish", settings={"bias": False}),
    "gate of samples": Case(lambda n, x, z: n.a(x) * z, after="mul", more=((2, 1, 1, 1),)),
    "gate of channels and samples": Case(lambda n, x, z: n.a(x) * z, after="mul", more=((2, 3, 1, 1),), kinds=LAST),
    "gate of pixels": Case(lambda n, x, z: n.a(x) * z, after="mul", more=((5, 6),)),
    "gate of rows": Case(lambda n, x, z: n.a(x) * z, after="mul", more=((2, 1, 5, 1),), kinds=EACH),
    "full gate": Case(lambda n, x, z: n.a(x) * torch.tanh(z), after="mul", more=(LAYER,), kinds=LAST),
    "expanded gate": Case(lambda n, x, z: n.a(x) * z.expand(LAYER), after="mul", more=((2, 1, 5, 6),)),
    "scalar behind": Case(lambda n, x: n.a(x) * n.g + n.b, after="mul add", layers=gains(1)),
    "residual": Case(lambda n, x: n.a(x) + x, after="add"),
    "residual of another layout": Case(lambda n, x, z: z - n.a(x), after="sub", more=(LAYER,), kinds=LAST),
    "bias again": Case(lambda n, x: pixels(n.a(x)) * n.a.bias, after="permute mul", kinds=LAST),
    "another convolution": Case(lambda n, x: n.a(x) * torch.sigmoid(n.a(x)), after="sigmoid mul"),
    "conditions": Case(lambda n, x, z: torch.where(z > 0, n.a(x), x), after="where", more=(LAYER,)),
    "masks and numbers": Case(
        lambda n, x, k, m: n.a(x) * k + m, after="mul add",
        more=(lambda: torch.randint(-9, 9, (3, 1, 1)), lambda: torch.rand(5, 6) > 0.5),
    ),
    "norm": Case(lambda n, x: n.ln(pixels(n.a(x))), after="permute layer_norm", layers=norm(), kinds=PLAIN[1:]),
    "norm without weights": Case(
        lambda n, x: n.ln(pixels(n.a(x))), after="permute layer_norm", layers=norm(elementwise_affine=False),
        kinds=PLAIN[1:],
    ),
    "norm without bias": Case(
        lambda n, x, z: F.gelu(n.ln(pixels(n.a(x) + x))) * z, after="add permute layer_norm gelu mul",
        layers=norm(bias=False, eps=0.1), more=((2, 5, 6, 1),), kinds=PLAIN[1:],
    ),
    "norm and back": Case(
        lambda n, x: n.ln(pixels(n.a(x))).permute(0, 3, 1, 2) + x, after="permute layer_norm permute add",
        layers=norm(), kinds=PLAIN[1:],
    ),
    "norm in front of others": Case(
        lambda n, x: (lambda y: (y, n.ln(pixels(y)) * 2))(n.a(x)), after="permute layer_norm mul",
        layers=norm(), kinds=PLAIN[1:],
    ),
    "channels last behind": Case(
        lambda n, x, z: F.gelu(pixels(n.a(x)) + z), after="permute add gelu", more=((2, 5, 6, 3),), kinds=LAST
    ),
    "copied": Case(lambda n, x: pixels(n.a(x)).contiguous() * 2, after="permute clone mul"),
    "tokens": Case(
        lambda n, x, z: n.a(x).flatten(2).transpose(1, 2) + z, after="reshape transpose add", more=((2, 30, 3),),
        kinds=LAST,
    ),
    "rows of pixels": Case(lambda n, x: F.relu(n.a(x).flatten(2) + n.g), after="reshape add relu", layers=gains(30)),
    "one column": Case(lambda n, x: F.relu(n.a(x[..., :1]).flatten(2)), after="reshape relu"),
    "all in a row": Case(lambda n, x: n.a(x).flatten(1) * 2, after="reshape mul"),
    "sizes of one": Case(
        lambda n, x: F.relu(n.a(x).unflatten(1, (3, 1)).unflatten(3, (1, 5)).flatten(2, 3)),
        after="reshape reshape reshape relu",
    ),
    "transposed": Case(lambda n, x: F.relu(n.a(x).transpose(0, 1)), after="transpose relu"),
    "several": Case(twice, after="relu mul reshape add", layers=gains(3, 1, 1), kinds=EACH),
    "read outside": Case(read_outside, after="relu mul", layers=gains(3, 1, 1)),
    "given as it is": Case(lambda n, x: (lambda y: (y, F.gelu(y)))(n.a(x)), after="gelu"),
    "a view": Case(lambda n, x: (lambda y: (pixels(F.gelu(y)), y.flatten(1)))(n.a(x)), after="gelu"),
    "a view in the middle": Case(
        lambda n, x: (lambda v: (v, v * 2))(pixels(F.relu(n.a(x)))), after="relu permute mul", kinds=LAST
    ),
    "half": Case(lambda n, x: (lambda y: (y.half(), F.relu(y)))(n.a(x)), after="cast relu"),
    "whole numbers": Case(lambda n, x: (3 * n.a(x)).to(torch.int32), after="mul cast"),
    "cast between": Case(lambda n, x: (3 * n.a(x)).to(torch.int32) * 0.5, after="mul cast mul"),
    "comparison": Case(lambda n, x: n.a(x) > x, after="gt"),
    # sums
    "averages": Case(excited, after="silu", totals="adaptive_avg_pool2d", kinds=PLAIN),
    "two sums": Case(two_sums, after="relu", totals="sum mean sum", kinds=PLAIN),
    "average only": Case(lambda n, x: F.relu(n.a(x)).mean((2, 3)), after="relu", totals="mean", kinds=PLAIN),
    "average of pixels in a row": Case(
        lambda n, x: (lambda y: (y, y.mean(1)))(F.relu(n.a(x).flatten(2).transpose(1, 2))),
        after="reshape transpose relu", totals="mean", kinds=PLAIN,
    ),
    "average behind a swap": Case(
        lambda n, x: F.relu(n.a(x).transpose(0, 1)).mean((2, 3)), after="transpose relu", totals="mean", kinds=PLAIN
    ),
}  # fmt: skip


def quick(number: int, case: Case) -> set[str]:
    """The kinds of a case that are tried each time, which take turns: one of two, two of more."""
    turn = number % len(case.kinds)
    return {case.kinds[turn], case.kinds[(turn + 2) % len(case.kinds)]}


@pytest.mark.parametrize(("name", "kind"), [
    pytest.param(name, kind, id=f"{name}-{kind}", marks=[] if kind in quick(number, case) else [pytest.mark.slow])
    for number, (name, case) in enumerate(CASES.items()) for kind in case.kinds
])  # fmt: skip
def test_all_of_it_is_one_kernel(name, kind):
    check_fused(CASES[name], kind)


def check_fused(case: Case, kind: str) -> None:
    """Its largest region holds what it says, and gives what it should."""
    model, inputs = case.model(), case.inputs()
    module = module_of(model, *inputs)
    region = regions_of(module)[-1]
    found = tuple(words(nodes) for nodes in (region.prologue, region.epilogue, region.totals))
    assert found == (case.before, case.after, case.totals)
    _, outputs = run(module, region, [SCHEDULES[kind]], *inputs)
    check(model, inputs, outputs)


WINDOWS = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}


@pytest.mark.parametrize("number", WINDOWS)
@pytest.mark.parametrize("kind", PLAIN)
def test_what_is_not_finite_stays_in_its_window(kind, number):
    """And in its channel; products on tensor cores add zeros times everything in a row."""
    model = Net(lambda n, x: F.relu(n.a(x) + 1), a=depthwise(3, (3, 5), padding=(1, 2), dilation=(1, 1)))
    x = torch.randn(2, 3, 5, 9)
    x[0, 1, 2, 3] = x[1, 0, 0, 8] = WINDOWS[number]
    reached = F.conv2d((~x.isfinite()).float(), torch.ones(3, 1, 3, 5), None, 1, (1, 2), 1, 3) > 0
    module = module_of(model, x)
    _, (y,) = run(module, regions_of(module)[-1], [SCHEDULES[kind]], x)
    assert y[~reached].isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(y, model(x), rtol=1e-5, atol=1e-5, equal_nan=True)


def shared(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What stands in front of the convolution is also given."""
    y = F.relu(x)
    return net.a(y), y


def apart(net: nn.Module, x: Tensor) -> Tensor:
    """A part of the result that other operators make something of."""
    y = F.relu(net.a(x))
    return y * net.fc(y.flatten(1))[:, :, None, None]


def square(net: nn.Module, x: Tensor) -> Tensor:
    """The same gains for columns and then for channels, of which there are as many."""
    return pixels(net.a(x) * net.g) + net.g


LEFT = {
    "what others make of it": Case(apart, after="relu", layers=lambda: {"fc": nn.Linear(90, 3)}),
    "a gate from its sums": Case(excited, after="silu", totals="adaptive_avg_pool2d"),
    "what others read in front": Case(shared),
    "float64 behind": Case(lambda n, x: n.a(x).double() * 2),
    "a part of it": Case(lambda n, x: F.relu(n.a(x)[:, :2]) * 2),
    "a larger value": Case(lambda n, x, z: n.a(x) * z, more=((4, 2, 3, 5, 6),)),
    "a row in parts": Case(lambda n, x: F.relu(n.a(x).unflatten(3, (2, 3)))),
    "its own transpose": Case(lambda n, x: (lambda y: y + y.transpose(2, 3))(n.a(x[..., :5]))),
    "a norm over pixels": Case(lambda n, x: n.ln(n.a(x)), layers=lambda: {"ln": nn.LayerNorm(6)}),
    "a norm over all": Case(lambda n, x: n.ln(n.a(x)), layers=lambda: {"ln": nn.LayerNorm((3, 5, 6))}),
    "softmax": Case(lambda n, x: n.a(x).softmax(1)),
    "sums of channels": Case(lambda n, x: F.relu(n.a(x)).sum(1), after="relu"),
    "sums of rows": Case(lambda n, x: F.relu(n.a(x)).sum(2), after="relu"),
    "the largest": Case(lambda n, x: F.relu(n.a(x)).amax((2, 3)), after="relu"),
    "what is read in two ways": Case(lambda n, x: square(n, x[..., :3]), after="mul", layers=gains(3)),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_a_kernel_cannot_hold_is_left(name):
    check_fused(LEFT[name], "streaming")


def test_other_dtypes_are_no_kernels():
    model = Net(lambda n, x: n.a(x), a=depthwise(3, 3)).double()
    module = module_of(model, torch.randn(LAYER).double())
    assert not list(FAMILY.mains(module.graph))
    assert [reason for node in module.graph.nodes if (reason := FAMILY.why_not(node))] == ["it is torch.float64"]


def crossed(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """To each of two convolutions something is added that is made of the other."""
    y, z = net.a(x), net.c(x)
    return y + z.softmax(1), z + y.softmax(1)


def test_kernels_do_not_wait_for_one_another():
    model, x = Net(crossed, a=depthwise(3, 3), c=depthwise(3, 5)), torch.randn(LAYER)
    module = module_of(model, x)
    largest = [list(FAMILY.regions(main))[-1] for main in FAMILY.mains(module.graph)]
    assert [words(region.nodes) for region in largest] == ["conv2d add", "conv2d add"]
    plan = planned(module.graph, REFERENCE, [FAMILY])
    assert [words(each.region.nodes) for each in plan.regions] == ["conv2d add"]
    assert len(plan.declined) == 1
    bind(module, [each.candidates[0].emit() for each in plan.regions], interpreted, "CPU")
    with watched() as launches, torch.no_grad():
        found = module(x)
    assert len(launches) == 1
    check(model, [x], found)
