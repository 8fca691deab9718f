"""Kernels in optimized networks: chosen by prediction and by measurement, called in every way that results are."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.kernels.budget import Budget
from benchmarks.kernels.gpu_kernels import is_alive
from codegen.triton.source import Source
from rewrite import load as load_result
from rewrite import optimize
from tests.corpus import input_for, load, randomize

DEVICE = "cuda"
SECONDS = 120.0
"""After which no further test begins."""

_BUDGET: list[Budget] = []

NETWORKS = [
    ("convnext_atto", torch.bfloat16, "quick"), ("mobilenetv3_small_050", torch.bfloat16, "off"),
    ("mixnet_s", torch.bfloat16, "off"), ("inception_next_atto", torch.bfloat16, "quick"),
    ("convnext_atto", torch.float32, "off"), ("mobilenetv3_small_050", torch.float32, "quick"),
    ("inception_next_atto", torch.float32, "off"), ("mixnet_s", torch.float32, "quick"),
]  # fmt: skip
"""With the way in which kernels are chosen: by prediction where nothing is measured."""

# of the largest output
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.05}


@pytest.fixture(scope="module", autouse=True)
def budget() -> None:
    _BUDGET.append(Budget(SECONDS))


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Full precision, a time limit, and nothing left of what was compiled."""
    if not is_alive():
        pytest.skip("an earlier test has left the GPU in an error, which fails every test in this process")
    if _BUDGET[-1].left < 0:
        pytest.skip(f"left out: the {SECONDS:.0f} s for networks are over")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    yield
    torch.compiler.reset()


class Block(nn.Module):
    """A stem, a ConvNeXt block and a squeezed MobileNet block: small, and with three kinds of regions."""

    def __init__(self, channels: int = 64):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 4, 4)
        self.mix = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.depth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.batch = nn.BatchNorm2d(channels)
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        x = x + self.narrow(nn.functional.gelu(self.wide(y))).permute(0, 3, 1, 2)
        x = nn.functional.silu(self.batch(self.depth(x)))
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


def block(dtype: torch.dtype = torch.bfloat16, batch: int = 8) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Block().eval().to(DEVICE, dtype).to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, 112, 112, device=DEVICE).to(dtype)
    return model, x.contiguous(memory_format=torch.channels_last)


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


def close(found: Tensor, model: nn.Module, x: Tensor) -> None:
    """No worse than the model itself, or as good as its dtype allows."""
    exact = copy.deepcopy(model).double()(x.double())
    assert found.shape == exact.shape
    assert distance(found, exact) <= max(BOUNDS[x.dtype], 2 * distance(model(x), exact))


@pytest.mark.parametrize("tune", ["off", "quick"])
def test_a_block(tune: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_REWRITE_TUNE", tune)
    model, x = block()
    with torch.no_grad():
        fast = optimize(model, x)
        close(fast(x), model, x)
        assert torch.equal(fast(x), fast(x))
        close(fast(x[:3]), model, x[:3])
    assert all("tl." in kernel.source for kernel in fast.kernels)
    if tune == "off":
        assert len(fast.kernels) >= 2


@pytest.fixture(scope="module")
def ready() -> tuple[Any, nn.Module, Tensor]:
    """A block with kernels, the model and an input; nobody changes the model."""
    model, x = block()
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_REWRITE_TUNE", "off")
        fast = optimize(model, x)
        fast(x)
    assert fast.kernels
    return fast, model, x


def test_on_another_stream(ready: tuple[Any, nn.Module, Tensor]) -> None:
    fast, _, x = ready
    with torch.no_grad():
        wanted = fast(x).clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = fast(x)
        stream.synchronize()
        assert torch.equal(found, wanted)


def test_in_a_graph_of_the_callers(ready: tuple[Any, nn.Module, Tensor]) -> None:
    fast, _, x = ready
    with torch.no_grad():
        other = torch.randn_like(x)
        wanted = fast(other).clone()
        held = x.clone(memory_format=torch.preserve_format)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            fast(held)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = fast(held)
        held.copy_(other)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, wanted)


def test_in_several_threads(ready: tuple[Any, nn.Module, Tensor]) -> None:
    fast, _, x = ready
    inputs = [x * scale for scale in (1.0, -1.0, 0.5, 2.0)]
    with torch.no_grad():
        wanted = [fast(each).clone() for each in inputs]
    found: dict[int, Tensor] = {}

    def run(number: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                found[number] = fast(inputs[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    assert all(torch.equal(found[number], each) for number, each in enumerate(wanted))


def test_an_input_that_is_not_aligned(ready: tuple[Any, nn.Module, Tensor]) -> None:
    fast, model, x = ready
    memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:]
    moved = memory.as_strided(x.shape, x.stride()).copy_(x)
    assert moved.data_ptr() % 16
    with torch.no_grad():
        close(fast(moved), model, x)


def test_gradients_of_inputs(ready: tuple[Any, nn.Module, Tensor]) -> None:
    fast, model, x = ready
    mine, theirs = (x.detach().clone().requires_grad_() for _ in range(2))
    fast(mine).float().square().mean().backward()
    model(theirs).float().square().mean().backward()
    assert mine.grad is not None
    assert distance(mine.grad, theirs.grad.double()) <= 0.05  # type: ignore[union-attr]


def test_inside_of_torch_compile(ready: tuple[Any, nn.Module, Tensor]) -> None:
    fast, _, x = ready
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.compile(lambda given: fast(given) * 2 + 1)(x)
        torch.testing.assert_close(found, fast(x) * 2 + 1, rtol=0.02, atol=0.02)


def test_saved_and_loaded(ready: tuple[Any, nn.Module, Tensor], tmp_path: Path) -> None:
    fast, model, x = ready
    fast.save(tmp_path / "block")
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_REWRITE_TUNE", "off")
        found = load_result(tmp_path / "block")
        close(found(x), model, x)
        again = load_result(tmp_path / "block", model)
        close(again(x), model, x)
    assert found.kernels
    assert [kernel.name for kernel in found.kernels] == [kernel.name for kernel in fast.kernels]


def test_exported_kernels_run(ready: tuple[Any, nn.Module, Tensor], tmp_path: Path) -> None:
    fast, _, _ = ready
    files = fast.export_kernels(tmp_path)
    assert len(files) == len(fast.kernels)
    for path in files[:2]:
        done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr[-2000:]
        assert re.search(r"relative error \d", done.stdout)
        assert "kernel " in done.stdout


def test_changed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_REWRITE_TUNE", "off")
    model, x = block()
    with torch.no_grad():
        fast = optimize(model, x)
        before = fast(x).clone()
        model.mix.weight.mul_(-2)  # type: ignore[operator, union-attr]
        model.batch.running_mean.add_(0.5)  # type: ignore[operator, union-attr]
        close(fast(x), model, x)
        assert not torch.equal(fast(x), before)
        model.norm.weight.data = model.norm.weight.data * 0.5  # type: ignore[operator, union-attr, assignment]
        fast.refold()
        close(fast(x), model, x)


def test_another_size_and_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_REWRITE_TUNE", "off")
    model, x = block()
    with torch.no_grad():
        fast = optimize(model, x)
        first = x.contiguous()
        close(fast(first), model, first)
        odd = torch.randn(3, 3, 92, 116, device=DEVICE).to(x.dtype)
        close(fast(odd), model, odd)


def test_a_kernel_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_REWRITE_TUNE", "off")
    model, x = block(batch=7)  # whose kernels no other test has compiled
    given = Source.kernel

    def broken(source: Source) -> Any:
        given(source)  # it can be read all the same

        class Refuses:
            def __getitem__(self, grid: Any) -> Any:
                raise RuntimeError("no such instruction")

        return Refuses()

    monkeypatch.setattr(Source, "kernel", broken)
    with torch.no_grad():
        fast = optimize(model, x)
        with pytest.warns(RuntimeWarning, match="no such instruction"):
            found = fast(x)
        close(found, model, x)
        assert fast.kernels
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*no such instruction")
            close(fast(x), model, x)


def test_on_the_second_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    monkeypatch.setenv("TORCH_REWRITE_TUNE", "off")
    model, x = block()
    model, x = model.to("cuda:1"), x.to("cuda:1")
    with torch.no_grad():
        fast = optimize(model, x)
        assert fast(x).device == x.device
        close(fast(x), model, x)
        assert torch.cuda.current_device() == 0


@pytest.mark.parametrize(("name", "dtype", "tune"), NETWORKS, ids=str)
def test_networks(name: str, dtype: torch.dtype, tune: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_REWRITE_TUNE", tune)
    network = randomize(load(name))
    x = input_for(network, 16)
    with torch.no_grad():
        model = network.to(DEVICE, dtype).to(memory_format=torch.channels_last)
        x = x.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)
        fast = optimize(model, x)
        close(fast(x), model, x)
    if not fast.kernels and tune != "off":
        pytest.xfail("no kernel was faster than the operators, as measured")
    assert fast.kernels
