"""Kernels as operators of torch: shapes, gradients, references, names, and what torch itself checks of operators."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from codegen.triton.binding import bind
from codegen.triton.depthwise import Depthwise
from codegen.triton.depthwise.copying import Copying
from codegen.triton.depthwise.emitting import emitted
from codegen.triton.interpreter import Interpreted
from codegen.triton.kernel import Kernel
from codegen.triton.launching import interpreted
from codegen.triton.operators import operator_of
from codegen.triton.reference import reference
from rewrite import compat, optimize
from tests.codegen.triton.kernels import (
    SCHEDULES,
    Net,
    depthwise,
    last,
    module_of,
    needs_interpreter,
    regions_of,
    watched,
)

pytestmark = needs_interpreter


def several(net: nn.Module, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """Two values and a sum, of something in front and behind."""
    y = F.silu(net.a(x * net.g)) + z
    return y, y.half().permute(0, 2, 3, 1), y.mean((2, 3), keepdim=True)


def mixed(net: nn.Module, x: Tensor, z: Tensor) -> Tensor:
    """A mixer with a channel that passes."""
    a, b = x.split((2, 1), 1)
    return F.gelu(torch.cat([net.b(a), b], 1)) * z


def swapped(net: nn.Module, x: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    """A sum with its coordinates in another order."""
    y = F.relu(net.a(x).transpose(0, 1))
    return y, y.sum((2, 3)) + z.sum()


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "one": lambda n, x, z: F.gelu(n.a(x)) * z, "several": several, "mixed": mixed, "swapped": swapped,
    "causal": lambda n, x, z: F.silu(n.a(F.pad(x, (2, 0, 2, 0)))[..., :6]) + z[:, :, :1],
    "tokens": lambda n, x, z: (n.a(x) * z).flatten(2).transpose(1, 2) + 1,
}  # fmt: skip


def made(name: str) -> tuple[nn.Module, GraphModule, Kernel, tuple[Tensor, ...]]:
    """A model, its flat module, the kernel of its largest region, and inputs."""
    torch.manual_seed(0)
    model = Net(FUNCTIONS[name], a=depthwise(3, 3), b=depthwise(2, 3), g=torch.randn(3, 1, 1))
    inputs = (last(torch.randn(2, 3, 5, 6)), torch.randn(2, 3, 5, 6))
    module = module_of(model, *inputs)
    region = regions_of(module)[-1]
    chosen = [Copying(16, 4, True) if branch.weight is None else SCHEDULES["streaming last"]
              for branch in region.main.branches]  # fmt: skip
    return model, module, emitted(region, chosen), inputs


def kernel_of(name: str) -> Kernel:
    """That of a function."""
    return made(name)[2]


def operands_of(kernel: Kernel) -> list[Tensor]:
    """Random operands with the strides that the kernel is for."""
    return [torch.empty_strided(like.shape, like.stride, dtype=like.dtype).normal_() for like in kernel.reads]


def listed(found: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


@pytest.fixture
def launches():
    """Kernels run on memory that holds nothing."""
    with watched() as found:
        yield found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_reference_gives_what_the_kernel_gives(name, launches):
    """The same values under the same strides; of sums in parts, the same sums."""
    kernel = kernel_of(name)
    operands = operands_of(kernel)
    found = listed(operator_of(kernel, interpreted, "CPU")(*operands))
    expected = reference(kernel)(*operands)
    assert len(found) == len(expected) == len(kernel.results)
    for node, mine, theirs, result in zip(kernel.region.outputs, found, expected, kernel.results, strict=True):
        assert (tuple(mine.shape), mine.stride(), mine.dtype) == (result.shape, result.stride, result.dtype)
        assert mine.shape == theirs.shape
        if node in kernel.region.totals:
            mine, theirs = mine.sum(1), theirs.sum(1)
        torch.testing.assert_close(mine, theirs, rtol=2e-3 if mine.dtype == torch.float16 else 1e-5, atol=1e-5)
    assert len(launches) == 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_finds_nothing_wrong(name):
    """In the schema, the registration of gradients, and in what fake tensors have, down to where memory begins."""
    kernel = kernel_of(name)
    call = operator_of(kernel, interpreted, "CPU")
    operands = [x.requires_grad_() for x in operands_of(kernel)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    assert set(torch.library.opcheck(call, operands, test_utils=checks).values()) == {"SUCCESS"}


def test_torch_compiles_calls():
    kernel = kernel_of("one")
    call, operands = operator_of(kernel, interpreted, "CPU"), operands_of(kernel)
    assert torch.library.opcheck(call, operands, test_utils="test_aot_dispatch_static") == {
        "test_aot_dispatch_static": "SUCCESS"
    }


@pytest.mark.parametrize("name", FUNCTIONS)
def test_shapes_are_known_without_running(name, launches):
    kernel = kernel_of(name)
    call = operator_of(kernel, interpreted, "CPU")
    with compat.FakeTensorMode() as mode:
        made = listed(call(*(mode.from_tensor(x) for x in operands_of(kernel))))
    assert [(tuple(x.shape), x.stride(), x.dtype) for x in made] == [
        (result.shape, result.stride, result.dtype) for result in kernel.results
    ]
    assert not launches


def test_other_devices_take_the_reference(launches):
    """Here one on which nothing is computed."""
    kernel = kernel_of("several")
    call = operator_of(kernel, interpreted, "CPU")
    made = call(*(x.to("meta") for x in operands_of(kernel)))
    assert all(x.is_meta for x in made)
    assert not launches
    call(*operands_of(kernel))
    assert len(launches) == 1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_the_operators(name):
    """For inputs and weights, against the whole model's in float64."""
    model, module, kernel, inputs = made(name)
    bind(module, [kernel], interpreted, "CPU")
    given = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    weights = {node.target: module.get_buffer(str(node.target)).requires_grad_()
               for node in module.graph.find_nodes(op="get_attr")}  # fmt: skip
    weight = lambda found, seed: sum(  # noqa: E731
        (y.double() * torch.randn(y.shape, generator=torch.Generator().manual_seed(i + seed)).double()).sum()
        for i, y in enumerate(found)
    )
    weight(listed(module(*given)), 0).backward()
    exact = model.double()
    wide = [x.double().detach().requires_grad_() for x in inputs]
    weight(listed(exact(*wide)), 0).backward()
    pairs = [*zip(given, wide, strict=True), *((weights[n], w) for n, w in exact.named_parameters() if n in weights)]
    assert len(pairs) > 3
    for mine, theirs in pairs:
        scale = float(theirs.grad.abs().max())
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=0, atol=2e-3 * scale)


def test_gradients_of_some_results_for_some_operands():
    kernel = kernel_of("several")
    call, operands = operator_of(kernel, interpreted, "CPU"), operands_of(kernel)
    for wanted, used in itertools.product(range(len(operands)), range(len(kernel.results))):
        mine = [
            x.clone(memory_format=torch.preserve_format).requires_grad_(i == wanted) for i, x in enumerate(operands)
        ]
        made = call(*mine)
        grad = torch.autograd.grad(made[used].float().sum(), mine[wanted])[0]
        theirs = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(operands)]
        expected = torch.autograd.grad(reference(kernel)(*theirs)[used].float().sum(), theirs[wanted])[0]
        torch.testing.assert_close(grad, expected)


def test_equal_kernels_are_one_operator():
    """Of the same source and results; others have names of their own."""
    first, again = (operator_of(kernel_of("one"), interpreted, "CPU") for _ in range(2))
    assert first is again
    others = [operator_of(kernel_of(name), interpreted, "CPU") for name in FUNCTIONS]
    assert others[0] is first
    assert len({str(each) for each in others}) == len(FUNCTIONS)
    assert operator_of(kernel_of("one"), interpreted, "CUDA") is not first


def test_operators_may_be_called_by_many_samples_only_as_they_were_made():
    """The name tells the sizes of results, which hold for one batch."""
    names = set()
    for batch in (1, 2, 3):
        module = module_of(nn.Sequential(depthwise(3, 3)), torch.randn(batch, 3, 5, 6))
        kernel = emitted(regions_of(module)[-1], [SCHEDULES["streaming"]])
        assert kernel.launchable.programs == 2 * (-(-3 * batch // 8))
        names.add(str(operator_of(kernel, interpreted, "CPU")))
    assert len(names) == 3


def test_a_family_that_fails_costs_no_result(monkeypatch):
    """The model runs operator by operator, and says so."""

    def broken(*arguments: object, **settings: object) -> None:
        raise ZeroDivisionError("no schedule")

    model, x = nn.Sequential(depthwise(32, 7), nn.GELU()).eval(), torch.randn(1, 32, 24, 24)
    monkeypatch.setattr(Depthwise, "candidates", broken)
    fast = optimize(model, x, lower=Interpreted())
    with pytest.warns(RuntimeWarning, match=r"Triton's interpreter cannot compile the model.*no schedule"):
        found = fast(x)
    torch.testing.assert_close(found, model(x))
