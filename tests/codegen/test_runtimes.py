"""Runtimes compute what the model computes in float64, and are not trusted before they have done so once."""

from __future__ import annotations

import copy
import gc
import os
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rewrite
from codegen import OnnxRuntime, OpenVINO, openvino
from codegen.partition import Facts
from codegen.runtime import Runtime, Session
from rewrite import InputError
from tests.result.programs import close, image, net, optimize

RUNTIMES = [
    pytest.param(kind, marks=pytest.mark.skipif(bool(kind.missing()), reason=f"needs {kind.missing()}"), id=kind.key)
    for kind in (OnnxRuntime, OpenVINO)
]
runtimes = pytest.mark.parametrize("kind", RUNTIMES)
generic = pytest.mark.parametrize("kind", [
    pytest.param(*each.values, id=each.id, marks=[*each.marks, *([pytest.mark.slow] if number else [])])
    for number, each in enumerate(RUNTIMES)
])  # fmt: skip
"""For what is done alike for each of them: one tells."""


def exact(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the model gives in float64."""
    double = copy.deepcopy(model).double()
    wide = [arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args]
    with torch.no_grad():
        return double(*wide, **kwargs)


def right(found: Tensor, truth: Tensor, tolerance: float = 2e-5) -> bool:
    return close(found.double(), truth, tolerance)


def frozen_runs(fast: Any) -> list[tuple[str, bool]]:
    return [(lowered.lowering, lowered.frozen) for lowered in fast.lowerings]


class Layers(nn.Module):
    """Convolutions over one and two dimensions, with groups, strides and dilations, and maps in several layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(4, 8, 3, 2, 1, groups=2)
        self.point = nn.Conv2d(8, 6, 1)
        self.line = nn.Conv1d(6, 5, 3, dilation=2, padding=2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.point(self.wide(x).relu())
        z = self.line(y.flatten(2))
        return y, z, z.transpose(1, 2), z[:, 0], y.softmax(1)


@runtimes
def test_convolutions_in_either_layout(kind: type[Runtime]) -> None:
    model = Layers().eval()
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 4, 8, 8).contiguous(memory_format=layout)
        fast = optimize(model, x, lowering=kind())
        for value in (x, torch.randn(2, 4, 8, 8).contiguous(memory_format=layout)):
            found, truths, own = fast(value), exact(model, value), model(value)
            assert all(map(right, found, truths))
            assert [each.stride() for each in found] == [each.stride() for each in own]
        assert frozen_runs(fast) == [(kind.name, True)]
        # a view is a view of what it is one of in the model
        assert found[1].data_ptr() == found[2].data_ptr() == found[3].data_ptr()
        before = found[0].clone()
        found[4].zero_()
        fast(x)
        assert torch.equal(found[0], before)


class Tokens(nn.Module):
    """Integers in and out, a mask, a keyword, a number and None, and a parameter itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, ids: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> dict[str, Any]:
        x = self.table(ids) * scale
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0.0)
        y = self.head(x)
        return {"y": y, "best": y.argmax(-1), "large": y > 0.1, "count": ids.shape[1], "none": None,
                "table": self.table.weight, "double": self.head.weight * 2, "next": ids + 1}  # fmt: skip


@runtimes
def test_integers_keywords_and_constants(kind: type[Runtime]) -> None:
    model = Tokens().eval()
    ids, mask = torch.randint(11, (3, 5)), torch.rand(3, 5) > 0.5
    fast = optimize(model, ids, mask=mask, scale=0.5, lowering=kind())
    for given in (ids, torch.randint(11, (3, 5))):
        found, truth = fast(given, mask=mask, scale=0.5), exact(model, given, mask=mask, scale=0.5)
        assert right(found["y"], truth["y"])
        assert right(found["double"], truth["double"])
        for key in ("best", "large", "next"):
            assert found[key].dtype == truth[key].dtype
            assert torch.equal(found[key], truth[key])
        assert (found["count"], found["none"]) == (5, None)
        assert found["table"].data_ptr() == model.table.weight.data_ptr()
    assert frozen_runs(fast) == [(kind.name, True)]
    # the constant that the runtime gives is new memory each time
    assert fast(ids, mask=mask, scale=0.5)["double"].data_ptr() != found["double"].data_ptr()


class Running(nn.Module):
    """Writes a buffer and an input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.mean.mul_(0.5).add_(y.mean(0))
        x.add_(1)
        return y + self.mean


@runtimes
def test_state_is_written_once_a_call(kind: type[Runtime]) -> None:
    model = Running().eval()
    reference = copy.deepcopy(model).double()
    fast = optimize(model, torch.randn(4, 3), lowering=kind())
    assert not fast.mean.any()
    for _ in range(3):
        x = torch.randn(4, 3)
        wide = x.double()
        with torch.no_grad():
            assert right(fast(x), reference(wide))
        assert right(x, wide)
        assert right(fast.mean, reference.mean)
    assert frozen_runs(fast) == [(kind.name, True)]


@generic
def test_results_follow_the_weights(kind: type[Runtime]) -> None:
    model, x = net(), image()
    fast = optimize(model, x, lowering=kind())
    assert right(fast(x), exact(model, x))
    for _ in range(2):
        with torch.no_grad():
            model.stem[0].weight.mul_(1.5)
            model.fc.bias.add_(1)
        assert right(fast(x), exact(model, x))
    # weights that change by themselves are arguments, of one session for all their values
    assert frozen_runs(fast) == [(kind.name, False)]
    other = net(seed=3)
    twin = optimize(model, x, lowering=kind())
    twin(x)
    twin.load_state_dict(other.state_dict())
    assert right(twin(x), exact(other, x))
    assert frozen_runs(twin) == [(kind.name, True)]


@generic
def test_each_batch_has_a_session(kind: type[Runtime]) -> None:
    model = net()
    fast = optimize(model, image(), lowering=kind())
    for batch in (2, 1, 3):
        assert right(fast(image(batch)), exact(model, image(batch)))
    assert [lowered.sizes for lowered in fast.lowerings] == [((batch, 3, 8, 8),) for batch in (2, 1, 3)]
    assert fast(image(0)).shape == (0, 5)


@runtimes
def test_a_session_serves_several_threads(kind: type[Runtime]) -> None:
    model = net()
    fast = optimize(model, image(), lowering=kind())
    images = [image(seed=seed) for seed in range(24)]
    fast(images[0])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(fast, images))
    assert all(right(a, exact(model, x)) for a, x in zip(found, images, strict=True))


def test_nothing_of_the_caller_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    memory: list[weakref.ref[Any]] = []

    def tracked(*shape: int) -> Tensor:
        array = np.zeros(shape, np.float32)
        memory.append(weakref.ref(array))
        return torch.from_numpy(array)

    fast = optimize(net(), image(), lowering=OnnxRuntime())
    fast(image())
    # sessions hold tensors of their own over the memory of the caller's, so it is the memory that is watched
    monkeypatch.setattr(Facts, "empty", lambda facts: tracked(*facts.shape))
    x = tracked(2, 3, 8, 8)
    found = fast(x)
    assert len(memory) == 2
    assert [each() is None for each in memory] == [False, False]
    del x, found
    gc.collect()
    assert [each() for each in memory] == [None, None]


@pytest.mark.skipif(bool(OpenVINO.missing()), reason="needs OpenVINO")
def test_a_request_points_at_its_own_memory_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Any] = []
    init = openvino._Request.__init__

    def remembering(self: Any, request: Any, *args: Any) -> None:
        requests.append(request)
        init(self, request, *args)

    monkeypatch.setattr(openvino._Request, "__init__", remembering)
    fast = optimize(net(), image(), lowering=OpenVINO())
    x = image()
    found = fast(x)
    for request in requests:
        places = {request.get_input_tensor(0).data.ctypes.data, request.get_output_tensor(0).data.ctypes.data}
        assert places.isdisjoint({x.data_ptr(), found.data_ptr()})


@generic
def test_a_runtime_that_writes_to_its_arguments_is_found_out(
    kind: type[Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = kind.load

    def clobbering(self: Any, path: Path, arguments: list[Facts], results: list[Facts]) -> Session:
        session = load(self, path, arguments, results)

        def run(arguments: Any, results: Any) -> None:
            session(arguments, results)
            arguments[0].zero_()

        return run

    monkeypatch.setattr(kind, "load", clobbering)
    model, x = net(), image()
    kept = x.clone()
    with pytest.warns(RuntimeWarning, match="writes to its arguments"):
        found = optimize(model, x, lowering=kind())(x)
    assert torch.equal(x, kept)
    assert right(found, exact(model, x))


@generic
def test_no_file_stays(kind: type[Runtime], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fast = optimize(net(), image(), lowering=kind())
    fast(image())
    assert frozen_runs(fast) == [(kind.name, True)]
    assert not os.listdir(tmp_path)


@generic
def test_a_runtime_that_lies_is_found_out(kind: type[Runtime], monkeypatch: pytest.MonkeyPatch) -> None:
    load = kind.load

    def lying(self: Any, path: Path, arguments: list[Facts], results: list[Facts]) -> Session:
        session = load(self, path, arguments, results)

        def run(arguments: Any, results: Any) -> None:
            session(arguments, results)
            results[0][0, 0] += 0.01 * results[0].abs().max()

        return run

    monkeypatch.setattr(kind, "load", lying)
    model, x = net(), image()
    fast = optimize(model, x, lowering=kind())
    with pytest.warns(RuntimeWarning, match=rf"on the example {kind.name} gives another output 0: the error is"):
        assert right(fast(x), exact(model, x))
    assert fast.lowerings == ()
    assert right(fast(image(3)), exact(model, image(3)))


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * torch.view_as_complex(torch.ones(4, 2))).real


@pytest.mark.parametrize(("model", "reason"), [
    (Noisy(), "draws random numbers"), (Spectrum(), r"no torch\.complex64"),
])  # fmt: skip
def test_what_a_runtime_cannot_do_runs_eagerly(model: nn.Module, reason: str) -> None:
    x = torch.randn(3, 4)
    fast = optimize(model.eval(), x, lowering=OnnxRuntime())
    with pytest.warns(RuntimeWarning, match=f"ONNX Runtime cannot compile the model, which .* {reason}"):
        assert fast(x).shape == x.shape


@generic
def test_tensors_of_every_kind_of_grad_mode(kind: type[Runtime]) -> None:
    model = net()
    fast = optimize(model, image(), lowering=kind())
    with torch.inference_mode():
        x = image() * 1.0
        found = fast(x)
        assert found.is_inference()
        assert right(found, exact(model, x.clone()))
    leaf = image().requires_grad_()
    with torch.no_grad():
        assert right(fast(leaf), exact(model, leaf))
    (gradient,) = torch.autograd.grad(fast(leaf).sum(), leaf)
    assert close(gradient, torch.autograd.grad(model(leaf).sum(), leaf)[0])
    assert frozen_runs(fast) == [(kind.name, True)]


class Growth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp() * 2


def test_arguments_that_are_views() -> None:
    """A session reads memory as it lies, so strides, offsets and signs that torch keeps aside are resolved before."""
    fast = optimize(Growth().eval(), torch.randn(4, 3), lowering=OnnxRuntime())
    wide = torch.randn(4, 3, dtype=torch.complex64)
    for x in (torch.randn(3, 4).t(), torch.randn(5, 3)[1:], torch.randn(1, 3).expand(4, 3), wide.conj().imag):
        assert right(fast(x), exact(Growth(), x))
    single = optimize(Growth().eval(), torch.randn(1), lowering=OnnxRuntime())
    negative = torch.randn(1, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    assert negative.is_contiguous()
    assert right(single(negative), exact(Growth(), negative))


def test_autocast_runs_operator_by_operator() -> None:
    model, x = net(), image()
    fast = optimize(model, x, lowering=OnnxRuntime())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = fast(x)
        assert found.dtype is torch.bfloat16
        assert close(found, model(x), 3e-2)
    assert right(fast(x), exact(model, x))


def test_names_need_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    gone = {"openvino", "onnxscript"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in gone else find(name, *rest))
    with pytest.raises(
        InputError, match="lower='openvino' needs openvino and onnxscript, which are not installed; pip"
    ):
        rewrite.optimize(net(), lower="openvino")
    with pytest.raises(InputError, match="lower='onnxruntime' needs onnxscript, which is not installed; pip install"):
        rewrite.optimize(net(), lower="onnxruntime")
    with pytest.raises(InputError, match="did you mean 'onnxruntime'"):
        rewrite.optimize(net(), lower="onnx_runtime")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "fastest"])
def test_not_inside_torch_compile(name: str) -> None:
    from rewrite.backend import torch_rewrite

    module = torch.fx.symbolic_trace(nn.ReLU())
    with pytest.raises(InputError, match=f"lower='{name}' is not offered inside torch.compile"):
        torch_rewrite(module, [torch.randn(2)], options={"lower": name})


def test_by_name_and_from_a_file(tmp_path: Path) -> None:
    model, x = net(), image()
    fast = rewrite.optimize(model, x, lower="onnxruntime", release=True)
    assert right(fast(x), exact(model, x))
    fast.save(tmp_path / "net")
    loaded = rewrite.load(tmp_path / "net", lower="onnxruntime")
    assert right(loaded(x), exact(model, x))
    assert frozen_runs(fast) == frozen_runs(loaded) == [("ONNX Runtime", True)]
