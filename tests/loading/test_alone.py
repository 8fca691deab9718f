"""`save` and `load` without the model."""

from __future__ import annotations

import copy
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewrite import ArtifactError, InputError, load, optimize
from rewrite.artifact.container import unpacked
from tests.loading.files import eager, saved
from tests.result.programs import close, image
from tests.result.test_state import Counter


def test_a_loaded_result_computes_the_same(made: Any) -> None:
    model, fast, path = made
    found = load(path, lower="eager")
    for batch in (1, 2, 5):
        assert torch.equal(found(image(batch)), fast(image(batch)))
        assert close(found(image(batch)), model(image(batch)))
    x = image().requires_grad_()
    found(x).sum().backward()
    assert x.grad is not None


def test_it_holds_folded_and_needed_weights_only(made: Any) -> None:
    _, fast, path = made
    found = load(path, lower="eager")
    assert set(found.state_dict()) == {"fc.weight", "fc.bias", *(
        name for name, _ in fast.graph_module.named_buffers() if name.startswith("folded.")
    )}  # fmt: skip
    assert {name for name, _ in found.named_parameters()} == {"fc.weight", "fc.bias"}
    assert all(torch.equal(tensor, fast.graph_module.state_dict()[name]) for name, tensor in found.state_dict().items())
    with zipfile.ZipFile(path) as file:
        assert set(file.namelist()) == {"manifest.json", "programs.json", "plan.json", "report.json",
                                        "weights.safetensors", "samples.safetensors"}  # fmt: skip


def test_what_it_reports_is_what_was_done(made: Any) -> None:
    _, fast, path = made
    found = load(path, lower="eager").report
    assert str(found.diff()) == str(fast.report.diff())
    assert found.diff()
    assert found.refusals() == fast.report.refusals()
    assert str(found).splitlines()[:-1] == str(fast.report).splitlines()[:-1]
    assert (found.before, found.after, found.records) == (fast.report.before, fast.report.after, fast.report.records)
    assert found.reproduce(1) == fast.report.reproduce(1)


def test_its_plan_makes_the_rewrites_again(made: Any) -> None:
    model, fast, path = made
    plan = load(path, lower="eager").plan
    assert plan == fast.plan == load(path, model, lower="eager").plan
    assert plan.decisions
    assert torch.equal(eager(model, image(), plan=plan)(image()), fast(image()))


def test_attributes_that_are_plain_values_are_kept(made: Any) -> None:
    found = load(made[2], lower="eager")
    assert (found.num_classes, found.pretrained_cfg) == (5, {"input_size": (3, 8, 8)})
    with pytest.raises(AttributeError, match="neither the rewritten module nor its Net has 'forward_features'"):
        _ = found.forward_features
    assert repr(found).startswith("OptimizedNet(")


def test_it_is_a_module_like_any_result(made: Any) -> None:
    model, fast, path = made
    found, x = load(path, lower="eager"), image()
    expected = model(x)
    twin = copy.deepcopy(found).half()
    assert twin(x.half()).dtype is torch.float16
    assert close(twin(x.half()).float(), expected, 1e-2)
    assert torch.equal(found(x), fast(x))
    assert close(found.double()(x.double()).float(), expected)
    found = load(path, lower="eager")
    with torch.no_grad():
        found.fc.weight.zero_()
    assert close(found(x), found.fc.bias.expand(2, -1))
    found.load_state_dict(load(path, lower="eager").state_dict())
    assert torch.equal(found(x), fast(x))
    found.refold()
    assert torch.equal(found(x), fast(x))
    assert optimize(found) is found


def test_it_can_be_saved_again(made: Any, tmp_path: Path) -> None:
    model, fast, path = made
    again = tmp_path / "again"
    load(path, lower="eager").save(again)
    first, second = (unpacked(each.read_bytes(), "it") for each in (path, again))
    assert {name for name in first if first[name] != second[name]} <= {"report.json"}, "times are not the same"
    assert torch.equal(load(again, model, lower="eager")(image()), fast(image()))


def test_a_call_that_was_not_saved(made: Any) -> None:
    found = load(made[2], lower="eager")
    for x in (image(2, 12), image().double()):
        with pytest.raises(
            InputError, match=r"takes \(f\d+\[2, 3, .*those for \(f32\[N, 3, 8, 8\]\).*load\(path, model"
        ):
            found(x)
    with pytest.raises(InputError, match="no saved program"):
        found(image(), 1)


def test_tied_weights_and_layouts(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=torch.channels_last)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            joint = torch.randn(8)
            self.register_buffer("low", joint[:6])
            self.register_buffer("high", joint[2:])

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).relu().mean((2, 3))
            return self.b(self.a(x).relu()).relu() * self.low.sum() + self.high.sum()

    model, x = Tied().eval(), torch.randn(2, 4, 6, 6)
    found = saved(eager(model, x), tmp_path / "net")
    assert torch.equal(found(x), eager(model, x)(x))
    weights = found.state_dict()
    assert weights["conv.weight"].is_contiguous(memory_format=torch.channels_last)
    if "low" in weights and "high" in weights:
        found.low[2] = 7
        assert found.high[0] == 7


def test_state_goes_on_where_it_was(tmp_path: Path) -> None:
    model, x = Counter().eval(), torch.randn(3, 4)
    fast = eager(model, x)
    for _ in range(3):
        fast(x)
    found = saved(fast, tmp_path / "net")
    assert int(found.steps) == 3
    assert torch.equal(found(x), fast(x))
    assert int(found.steps) == int(fast.steps) == 4


def test_programs_for_several_sizes(tmp_path: Path) -> None:
    """Constants and folded values of the same name differ from program to program."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(16, 3))
            self.scale = torch.randn(3)

        def forward(self, x: Tensor) -> Tensor:
            table = self.table[: x.shape[1]].softmax(0) * torch.tensor([float(x.shape[1]), 2.0, 3.0])
            return (x + table) * self.scale

    model = Positions().eval()
    fast = eager(model)
    calls = [torch.randn(2, size, 3) for size in (4, 7, 9)]
    expected = [fast(x).clone() for x in calls]
    found = saved(fast, tmp_path / "net")
    for x, want in zip(calls, expected, strict=True):
        assert torch.equal(found(x), want)
        assert close(found(x), model(x))
    again = saved(found, tmp_path / "again")
    over = load(tmp_path / "again", model, lower="eager")
    for x, want in zip(calls, expected, strict=True):
        assert torch.equal(again(x), want)
        assert torch.equal(over(x), want)


def test_keywords_trees_and_constants(tmp_path: Path) -> None:
    class Options(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: dict[str, Tensor], *rest: Tensor, shift: Tensor | None = None, flip: bool = False) -> Any:
            y = self.linear(x["a"]) + sum(rest)
            return {"y": y.flip(0) if flip else y, "none": None, "pair": (y if shift is None else y + shift, 4)}

    model, a = Options().eval(), torch.randn(3, 4)
    calls = [(({"a": a}, a), {"shift": torch.randn(4)}), (({"a": a},), {"flip": True})]
    fast = eager(model)
    for args, kwargs in calls:
        fast(*args, **kwargs)
    found = saved(fast, tmp_path / "net")
    for args, kwargs in calls:
        assert torch.equal(found(*args, **kwargs)["pair"][0], fast(*args, **kwargs)["pair"][0])
        assert torch.equal(found(*args, **kwargs)["y"], fast(*args, **kwargs)["y"])
    with pytest.raises(InputError, match="no saved program"):
        found({"a": a}, flip=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_converted_result_is_saved_as_it_is(made: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    model, fast, _ = made
    twin, x = copy.deepcopy(fast).to(dtype), image().to(dtype)
    found = saved(twin, tmp_path / "net")
    assert {tensor.dtype for tensor in found.parameters()} == {dtype}
    assert torch.equal(found(x), twin(x))
    converted = copy.deepcopy(model).to(dtype)
    assert torch.equal(load(tmp_path / "net", converted, lower="eager")(x), eager(converted, x)(x))
    with pytest.raises(ArtifactError, match=rf"is float32\[.* in the model and {str(dtype)[6:]}\["):
        load(tmp_path / "net", model)


def test_complex_and_integer_weights(tmp_path: Path) -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Parameter(torch.randn(5, dtype=torch.complex64))
            self.register_buffer("order", torch.randperm(8))
            self.register_buffer("mask", torch.rand(8) < 0.5)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=8)
            return torch.where(self.mask, y, x)[:, self.order]

    model, x = Spectrum().eval(), torch.randn(2, 8)
    found = saved(eager(model, x), tmp_path / "net")
    assert torch.equal(found(x), eager(model, x)(x))
    assert {str(tensor.dtype) for tensor in found.state_dict().values()} >= {"torch.complex64", "torch.int64"}


def test_numbers_that_depend_on_values(tmp_path: Path) -> None:
    class Total(nn.Module):
        def forward(self, x: Tensor) -> Any:
            n = x.sum().to(torch.int64).item()
            return x + n * 2 + (n + 1) // 3, x.shape[0] * 3

    x = torch.ones(4, 4)
    found = saved(eager(Total().eval(), x), tmp_path / "net")
    assert torch.equal(found(x)[0], x + 37)
    assert found(torch.ones(5, 4))[1] == 15


def test_saving_draws_no_random_numbers(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    fast = eager(Noisy().eval(), torch.zeros(2, 3))
    before = torch.get_rng_state()
    found = saved(fast, tmp_path / "net")
    assert torch.equal(torch.get_rng_state(), before)
    y = found(torch.zeros(2, 3))
    assert 0 < float(y.min()) < float(y.max()) < 1
