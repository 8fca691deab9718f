"""Depthwise kernels at the sizes of networks, against float64: every kind, dtype and layout, and several schedules."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from benchmarks.kernels.ahead import Ahead
from benchmarks.kernels.bound import Setting, bound
from benchmarks.kernels.budget import Budget
from benchmarks.kernels.comparing import flat
from benchmarks.kernels.gpu_kernels import is_alive
from benchmarks.kernels.layers import image, mixed, mixer, sequence
from codegen.triton import device, launching
from codegen.triton.device import REFERENCE
from codegen.triton.launching import Launch
from tests.gpu import kernel_worker
from tests.gpu.kernel_cases import CANDIDATES, check, errors, exact, settings

DEVICE = "cuda"
SECONDS = 130.0
"""After which no further case begins: the others are told as skipped."""

INSTEAD = "torch's own operators run instead"
"""What a kernel says that does not run."""

_BUDGET: list[Budget] = []


@pytest.fixture(scope="module", autouse=True)
def compiled_ahead() -> Iterator[None]:
    """Compile all kernels in other processes first: one after the other they take minutes."""
    _BUDGET.append(Budget(SECONDS))
    if not torch.cuda.is_available():
        yield
        return
    major, minor = torch.cuda.get_device_capability()
    with Ahead(max(1, min(12, (os.cpu_count() or 1) - 2)), ("cuda", 10 * major + minor, 32)) as ahead:
        for _, setting in settings("cpu", rates()):
            with contextlib.suppress(Exception):  # which its own test tells
                for candidate in setting.plan().candidates[:CANDIDATES]:
                    ahead.add(candidate.emit().launchable)
        ahead.wait(45.0)
        yield


@pytest.fixture(autouse=True)
def working() -> None:
    """A GPU that an earlier test has not left in an error."""
    if not is_alive():
        pytest.skip("an earlier test has left the GPU in an error, which fails every test in this process")


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that kernels write has no numbers in it before."""
    monkeypatch.setattr(launching, "empty", kernel_worker.poisoned(launching.empty))


@pytest.fixture(scope="module")
def checker() -> Iterator[kernel_worker.Checker]:
    found = kernel_worker.Checker("tests.gpu.kernel_cases:settings", DEVICE)
    yield found
    found.close()


@pytest.fixture
def in_time() -> None:
    if _BUDGET[-1].left < 0:
        pytest.skip(f"left out: the {SECONDS:.0f} s for kernels are over")


def rates() -> device.Device:
    return (device.of(torch.device(DEVICE, 0)) if DEVICE == "cuda" else None) or REFERENCE


def setting(layer: object, dtype: torch.dtype = torch.bfloat16, last: bool = True, batch: int = 2) -> Setting:
    return Setting(layer, dtype, last, batch, DEVICE, rates())  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("number", [pytest.param(i, id=name) for i, (name, _) in enumerate(settings(DEVICE))])
def test_against_float64(number: int, checker: kernel_worker.Checker) -> None:
    assert checker.check(number)


def misaligned(x: Tensor) -> Tensor:
    """The same numbers with the same strides at an address that is no multiple of 16."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:]
    moved = memory.as_strided(x.shape, x.stride()).copy_(x)
    assert moved.data_ptr() % 16
    assert moved.stride() == x.stride()
    return moved


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("kernel", [3, 13])
def test_operands_that_are_not_aligned(kernel: int, last: bool) -> None:
    which = setting(image(64, 28, kernel, behind=("gelu",)), last=last)
    made, inputs = bound(which, 0), which.inputs()
    with torch.no_grad():
        first = made.module(*inputs)[0]
        moved = made.module(*map(misaligned, inputs))[0]
        again = made.module(*inputs)[0]
    torch.testing.assert_close(moved, first, rtol=0, atol=0)
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    check(which, 2, misaligned)


def test_results_are_the_same_each_time() -> None:
    which = setting(image(240, 28, 5, behind=("silu",), squeeze=True), batch=8)
    made, inputs = bound(which, 0), which.inputs()
    with torch.no_grad():
        first = made.module(*inputs)
        for _ in range(5):
            for one, other in zip(first, made.module(*inputs), strict=True):
                assert torch.equal(one, other)


def test_on_another_stream_and_in_a_graph() -> None:
    which = setting(mixer(mixed(120, 3, 5, 7), 28, "silu"))
    made, (x,) = bound(which, 0), which.inputs()
    with torch.no_grad():
        wanted = made.module(x)[0].clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = made.module(x)[0]
        stream.synchronize()
        assert torch.equal(found, wanted)
        graph, held = torch.cuda.CUDAGraph(), torch.zeros_like(x)
        with torch.cuda.graph(graph):
            given = made.module(held)[0]
        held.copy_(x)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(given, wanted)


def test_in_several_threads() -> None:
    which = setting(image(64, 28, 7, behind=("norm",)))
    made, inputs = bound(which, 1), [which.inputs(seed)[0] for seed in range(4)]
    found: dict[int, Tensor] = {}

    def run(number: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                found[number] = made.module(inputs[number])[0]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        for number, x in enumerate(inputs):
            assert torch.equal(found[number], made.module(x)[0])


def test_gradients() -> None:
    which = setting(image(32, 14, 5, behind=("gelu", "residual")), torch.float32)
    made, inputs = bound(which, 0), [x.requires_grad_() for x in which.inputs()]
    model = which.layer.module().double().to(DEVICE)
    doubled = [x.detach().double().requires_grad_() for x in inputs]
    with torch.backends.cudnn.flags(enabled=False, allow_tf32=False):
        made.module(*inputs)[0].square().sum().backward()
        flat(model(*doubled))[0].square().sum().backward()
    for x, wanted in zip(inputs, doubled, strict=True):
        torch.testing.assert_close(x.grad.double(), wanted.grad, rtol=1e-3, atol=1e-3)  # type: ignore[union-attr]


def test_inside_of_torch_compile() -> None:
    which = setting(sequence(256, 512, 4, behind="silu", gated=True))
    made, inputs = bound(which, 0), which.inputs()
    with torch.no_grad():
        wanted = made.module(*inputs)[0]
        compiled = torch.compile(lambda *given: made.module(*given)[0] * 2, fullgraph=True)
        torch.testing.assert_close(compiled(*inputs), wanted * 2)


def test_on_the_second_gpu() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    which = dataclasses.replace(setting(image(64, 28, 7)), device="cuda:1")
    made, inputs = bound(which, 0), which.inputs()
    assert torch.cuda.current_device() == 0
    with torch.no_grad():
        assert errors(flat(made.module(*inputs)), exact(which, inputs))[0] <= 0.02


def test_a_broken_kernel_warns_once_and_the_reference_runs() -> None:
    which = setting(image(32, 14, 3))
    kernel = bound(which, 0).kernel
    source = dataclasses.replace(kernel.source, text=kernel.source.text.replace("tl.store(", "tl.no_such_function("))
    asked = []

    def reference(operands: object) -> list[Tensor]:
        asked.append(operands)
        return [torch.zeros(1)]

    launch = Launch(dataclasses.replace(kernel.launchable, source=source), reference)
    operands = [
        torch.empty_strided(each.shape, each.stride, device=DEVICE, dtype=each.dtype).normal_() for each in kernel.reads
    ]
    with pytest.warns(RuntimeWarning, match=INSTEAD) as told:
        launch(operands)
    assert len([each for each in told if INSTEAD in str(each.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(launch(operands)[0], torch.zeros(1))
    assert len(asked) == 2
