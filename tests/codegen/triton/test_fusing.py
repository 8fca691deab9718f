"""Kernels in programs on a GPU, as far as it shows without one: what is chosen, what is said, what runs instead."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from codegen.inductor import Inductor
from codegen.triton import device, fusing, launching, tuning
from codegen.triton.depthwise import Depthwise
from codegen.triton.depthwise.streaming import Streaming
from codegen.triton.device import DEVICES, REFERENCE, Work
from codegen.triton.launching import Launch
from rewrite.lowered import Choice, Chosen, Fused, Generated, kernels_of
from tests.codegen.triton.kernels import emitted, module_of, regions_of
from tests.select.scripted import Scripted


class Net(nn.Module):
    """Two depthwise convolutions with an activation, and a linear layer over channels between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(2))
        self.mix = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.mix(torch.relu(self.a(x)))))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> GraphModule:
    """A program that seems to be on a GPU."""
    monkeypatch.setattr(fusing, "_device", lambda module, examples: torch.device("cuda", 0))
    monkeypatch.setattr(fusing.device, "of", lambda on: REFERENCE)
    monkeypatch.setattr(fusing, "_TOLD", set())
    monkeypatch.setattr("rewrite.target.target.facts", lambda on: {"device": str(on)})
    monkeypatch.setattr(tuning, "current", lambda on: contextlib.nullcontext())
    return module_of(Net(), torch.randn(2, 8, 9, 9))


def kernels_in(module: GraphModule) -> int:
    return sum("torch_rewrite" in str(node.target) for node in module.graph.nodes)


def fuse(module: GraphModule, target: Any = None) -> tuple[Generated, ...]:
    return fusing.fuse(module, (torch.randn(2, 8, 9, 9),), target)


def test_kernels_far_ahead_are_taken_unmeasured(module: GraphModule) -> None:
    told = fuse(module)
    assert kernels_in(module) == 2
    assert [kernel.name.startswith("depthwise_3x3") for kernel in told] == [True, True]


def test_others_are_not(module: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusing, "SURE", 1e9)
    assert fuse(module) == ()
    assert kernels_in(module) == 0


def priced(monkeypatch: pytest.MonkeyPatch, operators: float) -> Scripted:
    """A target for which every kernel takes a millisecond, and its operators so many."""
    names = lambda named, on: {**dict.fromkeys(named, print), tuning._ALTERNATIVE: print}  # noqa: E731
    monkeypatch.setattr(tuning, "_contenders", names)
    return Scripted(price=lambda what, name: operators if name == tuning._ALTERNATIVE else 1.0, noise=0.02)


def test_measurement_decides(module: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(fuse(module, priced(monkeypatch, operators=1.2))) == 2


def test_no_kernel_where_its_operators_are_as_fast(module: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fuse(module, priced(monkeypatch, operators=1.02)) == ()


def test_predictions_decide_where_measuring_fails(module: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(named: Any, on: Any) -> Any:
        raise RuntimeError("no driver")

    monkeypatch.setattr(tuning, "_contenders", broken)
    assert len(fuse(module, Scripted())) == 2


def test_one_warning_without_triton(module: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusing.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match=r"Triton is not installed: 2 regions .* microseconds longer") as said:
        assert fuse(module) == ()
    assert len(said) == 1
    assert fuse(module) == ()  # said once
    assert kernels_in(module) == 0


def test_one_warning_for_an_old_device(module: GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusing.device, "of", lambda on: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda on: "GTX 480")
    with pytest.warns(RuntimeWarning, match="no kernels for GTX 480, .* from compute capability 8.0 on"):
        assert fuse(module) == ()


def test_programs_on_the_cpu_are_left_alone() -> None:
    module = module_of(Net(), torch.randn(2, 8, 9, 9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fuse(module) == ()
    assert kernels_in(module) == 0


def test_elementwise_forbids_products_with_zeros() -> None:
    model = nn.Conv2d(16, 16, 13, padding=6, groups=16)
    region = regions_of(module_of(model, torch.randn(8, 16, 32, 32)))[0]
    free = Depthwise().candidates(region, REFERENCE)
    bound = Depthwise().candidates(region, REFERENCE, elementwise=True)
    assert any("Toeplitz" in str(each.schedules) for each in free)
    assert bound
    assert not any("Toeplitz" in str(each.schedules) for each in bound)


class Broken:
    """A function that Triton cannot compile."""

    def __getitem__(self, grid: object) -> Any:
        def call(*arguments: object, **constants: object) -> None:
            raise RuntimeError("ptxas failed\nwith many lines")

        return call


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> tuple[Launch, list[Sequence[Tensor]]]:
    """A launch on a device that seems to be there, and what its reference was asked for."""
    monkeypatch.setattr(torch.cuda, "device", lambda on: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    region = regions_of(module_of(nn.Conv2d(4, 4, 3, groups=4), torch.randn(1, 4, 5, 5)))[0]
    asked: list[Sequence[Tensor]] = []

    def reference(operands: Sequence[Tensor]) -> Sequence[Tensor]:
        asked.append(operands)
        return [torch.zeros(1)]

    kernel = emitted(region, (Streaming(4, 4, 3, False),)).launchable
    return Launch(kernel, reference), asked


def test_reference_runs_where_a_kernel_cannot_be_compiled(launch: Any) -> None:
    run, asked = launch
    run._function = Broken()
    operands = [torch.randn(1, 4, 5, 5)]
    with pytest.warns(RuntimeWarning, match=r"'depthwise_3x3' of 1 operators around 'conv2d'.*: ptxas failed$"):
        run(operands)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(operands)  # said once
    assert len(asked) == 2


class Compiled:
    """What a launch gives: launched again with addresses alone."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def __getitem__(self, grid: object) -> Any:
        return lambda *arguments: self.calls.append((grid, *arguments))


def test_compiled_code_is_launched_directly(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = launch
    compiled, first = Compiled(), []

    class Function:
        def __getitem__(self, grid: object) -> Any:
            return lambda *arguments, **constants: first.append((grid, constants)) or compiled

    run._function = Function()
    index = SimpleNamespace(index=0)
    monkeypatch.setattr(launching, "empty", lambda results, on: [torch.zeros(4)])
    operand = SimpleNamespace(device=index, data_ptr=lambda: 64)
    monkeypatch.setattr(launching, "_are_aligned", lambda tensors: True)
    run([operand])
    run([operand])
    assert len(first) == 1
    assert first[0][1]["num_warps"] == 4
    (call,) = compiled.calls
    assert call[0] == run._grid
    assert call[-len(run._constants) - 1 :] == (1, *run._constants)  # samples, then constants
    monkeypatch.setattr(launching, "_are_aligned", lambda tensors: False)
    run([operand])
    assert len(first) == 2  # other addresses take Triton's own way


def test_fused_executables_tell_their_kernels() -> None:
    kernel = Generated("depthwise_3x3_0", "text", "what it does", "file")
    fused = Fused(lambda inputs, weights: [], (kernel,))
    assert kernels_of(fused) == (kernel,)
    assert kernels_of(Chosen(fused, Choice("inductor", {"inductor": 1.0}, 0.0))) == (kernel,)
    assert kernels_of(lambda inputs, weights: []) == ()
    assert fused([], []) == []


def test_devices_by_name_and_by_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.named("NVIDIA H200") is DEVICES["H200"]
    assert device.of(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda on: "NVIDIA L4")
    facts = SimpleNamespace(major=8, minor=9, multi_processor_count=54)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda on: facts)
    found = device.of(torch.device("cuda"))
    assert found is not None
    assert (found.name, found.architecture, found.processors) == ("NVIDIA L4", "sm_89", 54)
    assert found.copy == DEVICES["A100"].copy * 54 / 108
    facts.major = 7
    assert device.of(torch.device("cuda")) is None


def test_names_of_devices_are_whole_words() -> None:
    assert device.named("NVIDIA RTX A1000 Laptop GPU") is None
    assert device.named("NVIDIA A100-SXM4-80GB") is DEVICES["A100"]
    assert device.named("AMD Instinct MI300X") is DEVICES["MI300X"]


def test_a_part_of_a_gpu_is_that_much_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda on: "NVIDIA H200 MIG 1g.18gb")
    facts = SimpleNamespace(major=9, minor=0, multi_processor_count=33, shared_memory_per_block_optin=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda on: facts)
    found = device.of(torch.device("cuda"))
    assert found is not None
    assert (found.processors, found.shared, found.copy) == (33, 1000, DEVICES["H200"].copy / 4)


def test_one_kernel_that_does_not_run_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    region = regions_of(module_of(nn.Conv2d(4, 4, 3, groups=4), torch.randn(1, 4, 5, 5)))[0]
    kernels = [emitted(region, (Streaming(columns, 4, 3, False),)) for columns in (2, 4)]
    named = {kernel.operator: kernel for kernel in kernels}
    broken = kernels[0].operator
    ran: list[Any] = []

    def launch(kernel: Any, reference: Any) -> Any:
        if kernel is kernels[0].launchable:
            raise RuntimeError("ptxas failed")
        return lambda operands: ran.append(operands) or [torch.zeros(1)]

    def compiled(module: GraphModule, inputs: Sequence[Tensor], options: Any) -> Any:
        assert [tuple(x.shape) for x in inputs] == [(1, 4, 5, 5)]  # weights are constants, as in the program
        assert options == {"freezing": True}
        return module

    monkeypatch.setattr(tuning, "Launch", launch)
    monkeypatch.setattr(tuning, "captured", lambda call: call)
    monkeypatch.setattr(tuning.compat, "inductor_compile", compiled)
    calls = tuning._contenders(named, torch.device("cpu"))
    assert set(calls) == {*named, tuning._ALTERNATIVE}
    assert calls[broken] is calls[tuning._ALTERNATIVE]
    ran.clear()
    calls[kernels[1].operator]()
    assert len(ran) == 1
    assert [tuple(y.shape) for y in calls[broken]()] == [(1, 4, 3, 3)]


def test_bounds_and_their_names() -> None:
    moved = Work(bytes=4.3e9)
    assert REFERENCE.seconds(moved, torch.bfloat16) == pytest.approx(1e-3, rel=0.01)
    assert REFERENCE.bound(moved, torch.bfloat16) == "bytes"
    assert REFERENCE.bound(Work(tensor=7.9e12), torch.bfloat16) == "tensor cores"
    assert REFERENCE.bound(Work(bytes=10), torch.bfloat16) == "launch"
    both = moved + Work(lines=1e9)
    assert REFERENCE.seconds(both, torch.bfloat16) > REFERENCE.seconds(moved, torch.bfloat16)


def test_cuda_graphs_are_an_option_of_the_lowering() -> None:
    assert Inductor(cudagraphs=True)._options == {"triton.cudagraphs": True}
    assert Inductor()._options == {}
