"""What users of timm do with a model, done with its result, and loops in the manner of timm's own scripts."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rewrite import optimize, transform
from tests.corpus import load, randomize, timm
from tests.result.programs import close

NAMES = ("test_byobnet", "test_efficientnet")
SIZE = 32


def picture(batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@functools.cache
def built(name: str) -> tuple[nn.Module, Any]:
    """A network and its result; who changes either takes a copy."""
    model = randomize(load(name), inputs=picture(4))
    return model, optimize(model, picture(), lower="eager")


@pytest.fixture(params=NAMES)
def made(request: Any) -> tuple[nn.Module, Any]:
    return built(request.param)


@pytest.fixture
def small() -> tuple[nn.Module, Any]:
    return built(NAMES[0])


# -- attributes -------------------------------------------------------------------------------------------------------


def test_attributes_read_through(made: Any) -> None:
    model, fast = made
    for name in ("pretrained_cfg", "default_cfg", "num_classes", "num_features", "head_hidden_size", "feature_info"):
        assert getattr(fast, name) is getattr(model, name), name
    assert timm.data.resolve_data_config(model=fast) == timm.data.resolve_data_config(model=model)
    assert [(name, value.shape) for name, value in fast.named_parameters()] == [
        (name, value.shape) for name, value in model.named_parameters()
    ]
    assert sum(p.numel() for p in fast.parameters()) == sum(p.numel() for p in model.parameters())
    assert fast.eval() is fast
    assert not fast.training
    assert timm.utils.unwrap_model(fast) is fast
    assert list(timm.utils.get_state_dict(fast)) == list(model.state_dict())


def test_methods_of_the_model_name_the_remedy(made: Any) -> None:
    model, fast = made
    for name in ("forward_features", "forward_head", "forward_intermediates"):
        with pytest.raises(AttributeError, match=f"pass method='{name}' to optimize or transform"):
            getattr(fast, name)
    for name in ("get_classifier", "reset_classifier", "set_grad_checkpointing"):
        with pytest.raises(AttributeError, match="use it on the model itself, and optimize that again"):
            getattr(fast, name)
    with pytest.raises(AttributeError, match=r"neither .* has 'no_such_thing'"):
        fast.no_such_thing  # noqa: B018
    assert isinstance(model.get_classifier(), nn.Linear)


def test_methods_are_optimized_by_name(small: Any) -> None:
    model, fast = small
    features = optimize(model, picture(), method="forward_features", lower="eager")
    given = model.forward_features(picture(3))
    assert close(features(picture(3)), given, 1e-4)
    assert features.num_classes == model.num_classes
    head = optimize(model, given.detach(), method="forward_head", lower="eager")
    assert close(head(given), fast(picture(3)), 1e-4)
    pooled = optimize(model, (given.detach(),), {"pre_logits": True}, method="forward_head", lower="eager")
    assert close(pooled(given, pre_logits=True), model.forward_head(given, pre_logits=True), 1e-4)


def test_reset_classifier_of_the_model(small: Any) -> None:
    model = copy.deepcopy(small[0])
    fast = optimize(model, picture(), lower="eager", verify="off")
    model.reset_classifier(7)
    assert fast(picture()).shape == (2, 7)
    assert close(fast(picture()), model(picture()), 1e-4)
    assert fast.num_classes == 7


def test_devices_dtypes_and_layouts(made: Any) -> None:
    model, fast = made
    expected = model(picture())
    last = copy.deepcopy(fast).to(device="cpu", dtype=torch.float64, memory_format=torch.channels_last)
    x = picture().double().contiguous(memory_format=torch.channels_last)
    assert close(last(x).float(), expected, 1e-4)
    kernels = [value for value in last.parameters() if value.dim() == 4 and value.shape[2] > 1]
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in kernels)
    assert all(value.dtype == torch.float32 for value in model.parameters())
    for kind in (torch.bfloat16, torch.float16):
        low = copy.deepcopy(fast).to(kind)
        with torch.inference_mode():
            found = low(picture().to(kind))
        assert found.dtype == kind
        assert close(found.float(), expected, 0.1)


# -- loops ------------------------------------------------------------------------------------------------------------


class InferenceRun:
    """Timed steps of a model: warm-up, precision, layout and compilation as command-line switches would have it."""

    def __init__(self, model: nn.Module, *, precision: str = "float32", channels_last: bool = False,
                 torchcompile: str | None = None, warm: int = 2, steps: int = 3) -> None:  # fmt: skip
        amp = precision in ("amp", "amp_bfloat16")
        self.dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)
        self.autocast: Callable[[], Any] = (
            functools.partial(torch.autocast, device_type="cpu", dtype=torch.bfloat16) if amp else nullcontext
        )
        self.model = model
        self.num_classes = model.num_classes
        self.parameters = sum(m.numel() for m in model.parameters())
        self.channels_last, self.warm, self.steps = channels_last, warm, steps
        self.input_size = (3, SIZE, SIZE)
        assert timm.data.resolve_data_config({"input_size": self.input_size}, model=model)["input_size"] == (3, 32, 32)
        self.model.to(device="cpu", dtype=self.dtype)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.model.eval()
        if torchcompile:
            torch._dynamo.reset()
            self.model = torch.compile(self.model, backend=torchcompile)

    def run(self, batch: int) -> dict[str, Any]:
        x = picture(batch).to(dtype=self.dtype)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            for _ in range(self.warm):
                with self.autocast():
                    output = self.model(x)
            started, samples = time.perf_counter(), 0
            for _ in range(self.steps):
                with self.autocast():
                    output = self.model(x)
                samples += batch
            spent = time.perf_counter() - started
        return {"output": output, "samples_per_sec": samples / spent, "param_count": round(self.parameters / 1e6, 2)}


@pytest.mark.parametrize(
    "switches",
    [{}, {"channels_last": True}, {"precision": "amp"}, {"precision": "bfloat16"}, {"torchcompile": "aot_eager"},
     {"precision": "amp_bfloat16", "channels_last": True, "torchcompile": "aot_eager"}],
    ids=["plain", "channels-last", "amp", "bfloat16", "compile", "all"],
)  # fmt: skip
def test_a_benchmark_loop(small: Any, switches: Any) -> None:
    model, fast = copy.deepcopy(small[0]), copy.deepcopy(small[1])
    theirs, ours = (InferenceRun(each, **switches).run(batch=4) for each in (model, fast))
    assert ours["param_count"] == theirs["param_count"]
    low = "precision" in switches
    assert ours["output"].dtype == theirs["output"].dtype
    assert close(ours["output"].float(), theirs["output"].float(), 0.1 if low else 1e-4)


@pytest.mark.slow
def test_a_benchmark_loop_on_compiled_code(small: Any) -> None:
    model, fast = copy.deepcopy(small[0]), optimize(small[0], picture(4), lower="inductor", on_new_shape="error")
    switches = {"channels_last": True}
    ours, theirs = InferenceRun(fast, **switches), InferenceRun(model, **switches)
    fast.warmup(picture(4).contiguous(memory_format=torch.channels_last))
    assert close(ours.run(4)["output"], theirs.run(4)["output"], 1e-4)


def digits() -> TensorDataset:
    """A hundred digits as coloured pictures."""
    data = load_digits()
    images = torch.from_numpy(data.images[:100]).float()[:, None] / 16
    images = nn.functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear").expand(-1, 3, -1, -1)
    return TensorDataset(images.contiguous(), torch.from_numpy(data.target[:100]))


def validate(model: nn.Module, loader: DataLoader[Any], autocast: Callable[[], Any] = nullcontext) -> dict[str, Any]:
    """Top-1, top-5 and loss over a loader."""
    criterion = nn.CrossEntropyLoss()
    batch_time, losses, top1, top5 = (timm.utils.AverageMeter() for _ in range(4))
    model.eval()
    outputs: list[Tensor] = []
    with torch.inference_mode():
        model(torch.randn(5, 3, SIZE, SIZE))
        end = time.time()
        for images, target in loader:
            with autocast():
                output = model(images)
                loss = criterion(output, target)
            acc1, acc5 = timm.utils.accuracy(output.detach(), target, topk=(1, 5))
            losses.update(loss.item(), images.size(0))
            top1.update(acc1.item(), images.size(0))
            top5.update(acc5.item(), images.size(0))
            batch_time.update(time.time() - end)
            end = time.time()
            outputs.append(output.float())
    return {
        "top1": top1.avg,
        "top5": top5.avg,
        "loss": losses.avg,
        "count": losses.count,
        "outputs": torch.cat(outputs),
    }


@pytest.fixture(scope="module")
def classifier() -> tuple[nn.Module, Any]:
    """A network that has learned a little of the digits, and its result."""
    torch.manual_seed(0)
    model = timm.create_model(NAMES[0], num_classes=10).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5  # there are few steps
    images, target = digits()[:]
    trained = transform(model, images[:8])
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(8):
        for part in torch.randperm(100).split(25):
            optimizer.zero_grad()
            nn.functional.cross_entropy(trained(images[part]), target[part]).backward()
            optimizer.step()
    model.eval()
    return model, optimize(model, picture(), lower="eager")


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "amp"])
def test_a_validation_loop(classifier: tuple[nn.Module, Any], amp: bool) -> None:
    autocast: Any = functools.partial(torch.autocast, device_type="cpu", dtype=torch.bfloat16) if amp else nullcontext
    loader = DataLoader(digits(), batch_size=32)
    expected, found = (validate(each, loader, autocast) for each in classifier)
    assert found["count"] == expected["count"] == 100
    assert close(found["outputs"], expected["outputs"], 0.05 if amp else 1e-4)
    assert abs(found["loss"] - expected["loss"]) < (0.05 if amp else 1e-4)
    if not amp:
        assert (found["top1"], found["top5"]) == (expected["top1"], expected["top5"])
        assert found["top1"] > 30, "the network has learned something, so that the accuracy says something"


def test_data_parallel_on_the_cpu(small: Any) -> None:
    model, fast = small
    wrapped = nn.DataParallel(fast)
    assert close(wrapped(picture(3)), model(picture(3)), 1e-4)
    assert list(wrapped.state_dict()) == [f"module.{name}" for name in model.state_dict()]
