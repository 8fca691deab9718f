"""`save` and `load` as a user calls them, with and without the model, in this process and in a fresh one."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import random
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewrite
from rewrite import ArtifactError, Fidelity, InputError, RewriteError, Rule, VerificationError, load, optimize
from rewrite.artifact.container import packed, unpacked
from rewrite.pattern import Call, Var
from rewrite.result import OptimizedModule, Program
from rewrite.trace import capture
from tests.corpus import randomize
from tests.golden import models
from tests.result.programs import close, image, net
from tests.result.test_state import Counter

aten = torch.ops.aten


def eager(model: nn.Module, *args: Any, **kwargs: Any) -> OptimizedModule:
    return optimize(model, *args, lower="eager", **kwargs)


def saved(result: OptimizedModule, path: Path) -> OptimizedModule:
    """The result from its file, without the model."""
    result.save(path)
    return load(path, lower="eager")


def edit(path: Path, change: Any) -> None:
    """Let ``change`` edit ``programs.json`` as data, and write the file with right checksums."""
    members = unpacked(path.read_bytes(), "it")
    data = json.loads(members["programs.json"])
    change(data)
    path.write_bytes(packed({**members, "programs.json": json.dumps(data).encode()}, {}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, OptimizedModule, Path]:
    """A model, its result, and the file of that. Tests do not change them."""
    torch.manual_seed(0)
    model = net()
    fast = eager(model, image())
    path = tmp_path_factory.mktemp("saved") / "net.rewrite"
    fast.save(path)
    return model, fast, path


# -- without the model ------------------------------------------------------------------------------------------------


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
            x = self.conv(x).mean((2, 3))
            return self.b(self.a(x)) * self.low.sum() + self.high.sum()

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


# -- over the model ---------------------------------------------------------------------------------------------------


def test_over_the_model_it_is_what_optimize_gives(made: Any) -> None:
    _, fast, path = made
    model, x = net(), image()
    found = load(path, model, lower="eager")
    assert list(found.state_dict()) == list(model.state_dict())
    assert torch.equal(found(x), fast(x))
    with torch.no_grad():
        model.stem[1].weight.mul_(2)
    assert close(found(x), model(x))
    other = image(2, 12)
    assert close(found(other), model(other))
    report = load(path, model, lower="eager").report
    assert any("loaded from" in note for note in report.notes)
    assert set(report.time) == {"loading", "verification"}
    assert report.model_verdict.accepted


def test_over_a_model_with_other_weights(made: Any) -> None:
    other = net(5)
    state = copy.deepcopy(other.state_dict())
    found = load(made[2], other, lower="eager")
    assert close(found(image(3)), other(image(3)))
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_a_method_is_loaded_as_one(tmp_path: Path) -> None:
    model, x = net(), image()
    fast = eager(model, x, method="forward_features")
    fast.save(tmp_path / "net")
    found = load(tmp_path / "net", model, method="forward_features", lower="eager")
    assert torch.equal(found(x), fast(x))
    assert torch.equal(load(tmp_path / "net", lower="eager")(x), fast(x))
    with pytest.raises(InputError, match=r"method=None is not what .* pass method='forward_features' if that is meant"):
        load(tmp_path / "net", model)


def test_other_sizes_are_made_as_the_saved_ones_were(tmp_path: Path) -> None:
    model = randomize(models.RepVGG().eval(), inputs=torch.randn(2, 8, 8, 8))
    text = "reparameterize{max_kernel=1}, fold-constants"
    eager(model, torch.randn(2, 8, 8, 8), pipeline=text, exclude="identity").save(tmp_path / "net")
    found = load(tmp_path / "net", model, lower="eager")
    x = torch.randn(2, 8, 12, 12)
    assert close(found(x), model(x))
    specials = list(found._engine._snapshot.weights)
    assert [special.program.report.pipeline for special in specials] == [text, text]
    assert specials[0].program.settings == specials[1].program.settings
    assert specials[0].program.settings.exclude == ("identity",)


class Resized(nn.Module):
    """The names of `Net` with one other layer."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.__dict__.update(net().__dict__)
        self._modules = dict(self._modules)
        if change == "shape":
            self._modules["fc"] = nn.Linear(8, 6)
        if change == "name":
            self._modules["head"] = self._modules.pop("fc")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (self.fc if "fc" in self._modules else self.head)((x - self.body(x)).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (
            "shape",
            ArtifactError,
            r"'fc.(weight|bias)' is float32\[6(, 8)?\] in the model and float32\[5(, 8)?\] in the saved program",
        ),
        ("name", ArtifactError, r"'fc.(weight|bias)' is nothing in the model and float32\[5"),
    ],
    ids=["shape", "name"],
)
def test_another_model(made: Any, change: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        load(made[2], Resized(change).eval())


def anew(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Why programs were made anew."""
    reasons = [each.__dict__["data"]["reason"] for each in caplog.records if each.__dict__.get("event") == "load-anew"]
    caplog.clear()
    return reasons


def test_another_model_of_the_same_weights(made: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, x = Resized("forward").eval(), image()
    with caplog.at_level(logging.INFO, "rewrite"):
        found = load(made[2], model, lower="eager")
    assert anew(caplog) == ["the model is not the one that was saved"]
    assert close(found(x), model(x))
    assert not close(found(x), made[1](x))


class Limited(nn.Module):
    """Its attributes and lists decide over what the example does not show."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.limit = limit
        self.bounds = [torch.tensor(-limit)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(self.layer(x).relu().relu().clamp(max=self.limit) - self.limit, self.bounds[0])


class Scaled(Limited):
    """Random, so that no values are compared."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu().relu() * self.limit + torch.rand_like(x) * 1e-3


def test_what_the_model_is_has_to_be_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, large = torch.randn(3, 4), torch.randn(3, 4) * 1e4
    eager(Limited(60.0).eval(), x).save(tmp_path / "net")
    with caplog.at_level(logging.INFO, "rewrite"):
        load(tmp_path / "net", Limited(60.0).eval(), lower="eager")
        assert anew(caplog) == []
        model = Limited(600.0).eval()
        found = load(tmp_path / "net", model, lower="eager")
        assert anew(caplog) == ["the model is not the one that was saved"]
        assert close(found(large), model(large))
        model = Limited(60.0).eval()
        model.bounds[0] = torch.tensor(-1.0)
        assert close(load(tmp_path / "net", model, lower="eager")(large), model(large))
        assert anew(caplog) == ["the model is not the one that was saved"]
        hooked = Limited(60.0).eval()
        hooked.register_forward_hook(lambda module, args, output: output + 1)
        assert close(load(tmp_path / "net", hooked, lower="eager")(x), hooked(x))
        assert anew(caplog) == ["Limited has hooks"]


def test_a_file_knows_the_model_as_it_was_captured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not as it was when it was saved, and also over a file that was saved again."""
    model, large = Limited(60.0).eval(), torch.randn(3, 4) * 1e4
    fast = eager(model, torch.randn(3, 4))
    model.limit = 600.0
    saved(fast, tmp_path / "net").save(tmp_path / "again")
    with caplog.at_level(logging.INFO, "rewrite"):
        for path in (tmp_path / "net", tmp_path / "again"):
            found = load(path, model, lower="eager")
            assert anew(caplog) == ["the model is not the one that was saved"]
            assert close(found(large), model(large))
            found = load(path, Limited(60.0).eval(), lower="eager")
            assert anew(caplog) == []
            found.save(tmp_path / "third")
            load(tmp_path / "third", Limited(60.0).eval(), lower="eager")
            assert anew(caplog) == []


def test_random_programs_are_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.rand(3, 4)
    eager(Scaled(1.0).eval(), x).save(tmp_path / "net")
    with caplog.at_level(logging.INFO, "rewrite"):
        for limit in (1.0, 50.0):
            model = Scaled(limit).eval()
            found = load(tmp_path / "net", model, lower="eager")
            assert ["draws random numbers" in reason for reason in anew(caplog)] == [True]
            assert torch.allclose(found(x), model(x), atol=2e-3)


def test_a_model_in_training_mode(made: Any) -> None:
    with pytest.raises(InputError, match=r"call model\.eval\(\) first"):
        load(made[2], net().train())


@dataclass(frozen=True)
class KeepRelu(Rule):
    """A rule that no registry knows."""

    fidelity = Fidelity.BITWISE
    pattern = Call(aten.relu.default, self=Var("x"))

    def rewrite(self, match: Any, g: Any) -> Any:
        return g(aten.clamp_min.default, match.x, 0)


@dataclass(frozen=True)
class OfValues(KeepRelu):
    """One that holds for the present weights only."""

    reads_values = True


def test_rules_that_no_registry_knows(tmp_path: Path) -> None:
    model, x = net(), image()
    fast = eager(model, x, pipeline=KeepRelu())
    fast.save(tmp_path / "net")
    found = load(tmp_path / "net", model, lower="eager")
    assert torch.equal(found(x), fast(x))
    with pytest.raises(InputError, match="others cannot be made: there is no pass 'keep-relu'"):
        found(image(2, 12))


def test_programs_for_certain_values(tmp_path: Path) -> None:
    model, x = net(), image()
    fast = eager(model, x, pipeline=OfValues())
    fast.save(tmp_path / "net")
    found = load(tmp_path / "net", lower="eager")
    assert torch.equal(found(x), fast(x))
    with torch.no_grad():
        found.fc.weight.mul_(2)
    with pytest.raises(RewriteError, match="'of-values' held for the weights"):
        found(x)
    with pytest.raises(InputError, match="no pass 'of-values'"):
        load(tmp_path / "net", model, lower="eager")


# -- what cannot be saved or loaded -----------------------------------------------------------------------------------


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no program yet"):
        eager(net()).save(tmp_path / "net")
    model = net()
    bare = OptimizedModule(model, lambda args, kwargs: Program(capture(model, args, kwargs).graph))
    bare(image())
    with pytest.raises(ArtifactError, match="without the graph that it was captured as"):
        bare.save(tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "net"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(ArtifactError, match=f"'{path}' is a zip archive, but nothing that torch-rewrite saved"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")


def programs_of(path: Path) -> Any:
    return json.loads(unpacked(path.read_bytes(), "it")["programs.json"])


def written(path: Path, original: Path, member: str, data: Any) -> Path:
    """A copy of a file with another member: bytes, or data for JSON."""
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    path.write_bytes(packed({**unpacked(original.read_bytes(), "it"), member: text}, {}))
    return path


FIELDS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "model with NUL": (("model",), "a\0b"),
    "model of a number": (("model",), 3),
    "no programs": (("programs",), []),
    "level": (("settings", "verify"), 3),
    "weight of every module": (("weights", "__class__.forward"), None),
    "no sample": (("programs", 0, "sample"), []),
    "other sample": (("programs", 0, "sample"), [3]),
    "no outputs": (("programs", 0, "outputs"), []),
    "device": (("programs", 0, "graphs", "graphs", "captured", "nodes", 0, "value", "tensor", "device"), "x"),
    "graph": (("programs", 0, "graphs", "graphs", "rewritten"), None),
}


OF_THE_MODEL = ("level", "no sample", "other sample", "device", "graph")
"""Of the fields, those that are read over a model too."""


@pytest.mark.parametrize(("name", "over"), [(name, False) for name in FIELDS] + [(name, True) for name in OF_THE_MODEL])
def test_a_field_of_another_kind(made: Any, tmp_path: Path, name: str, over: bool) -> None:
    *path, key = FIELDS[name][0]
    data = programs_of(made[2])
    target = data
    for each in path:
        target = target[each]
    target[key] = FIELDS[name][1]
    file = written(tmp_path / "net", made[2], "programs.json", data)
    with pytest.raises((ArtifactError, VerificationError)):
        load(file, net() if over else None, lower="eager")


@pytest.mark.parametrize("member", ["programs.json", "plan.json", "report.json", "weights.safetensors"])
def test_members_that_are_something_else(made: Any, tmp_path: Path, member: str) -> None:
    for data in (b"", b"[" * 100_000, b"\xff\xfe", b"1" * 5000, b"null", b"[]", b"{}", b"[[]]"):
        with pytest.raises(ArtifactError):
            load(written(tmp_path / "net", made[2], member, data))


def test_members_that_are_missing_or_too_many(made: Any, tmp_path: Path) -> None:
    members = unpacked(made[2].read_bytes(), "it")
    for changed in ({**members, "more.json": b""}, {key: each for key, each in members.items() if key != "plan.json"}):
        (tmp_path / "net").write_bytes(packed(changed, {}))
        with pytest.raises(ArtifactError, match="the archive holds"):
            load(tmp_path / "net")


def test_attributes_of_the_file_replace_nothing_of_a_module(made: Any, tmp_path: Path) -> None:
    data = programs_of(made[2])
    data["attributes"] |= {"_parameters": 3, "training": True, "forward": 4, "__class__": 5, "eval": None}
    found = load(written(tmp_path / "net", made[2], "programs.json", data), lower="eager")
    assert (found.num_classes, found.training) == (5, False)
    assert torch.equal(found.eval()(image()), made[1](image()))


def test_a_file_does_not_choose_what_of_the_model_is_called(made: Any, tmp_path: Path) -> None:
    class Logs(type(made[0])):  # type: ignore[misc]
        def log(self, *args: Any) -> Any:
            raise AssertionError

    data = programs_of(made[2])
    data["settings"]["method"] = "log"
    model = Logs().eval()
    with pytest.raises(InputError, match="method=None is not what"):
        load(written(tmp_path / "net", made[2], "programs.json", data), model, lower="eager")


def test_an_allocation_that_no_machine_can_make(made: Any, tmp_path: Path) -> None:
    data = programs_of(made[2])
    data["programs"][0]["graphs"]["graphs"]["rewritten"]["nodes"].append({
        "kind": "call", "name": "huge", "target": "aten.empty.memory_format", "args": [[1 << 50]], "kwargs": {},
        "type": f"float32[{1 << 50}]",
    })  # fmt: skip
    path = written(tmp_path / "net", made[2], "programs.json", data)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(path, lower="eager")
    with pytest.raises(RewriteError):
        load(path, net(), lower="eager")


VALUES: list[Any] = [
    None, -1, 0, 1.5, True, 1 << 63, "", "x", "s0", "a'b\n", [], [[]], {}, [0], {"node": "no"}, {"tuple": [1]},
    {"device": "meta"}, "meta", "float16", "complex64", "__class__", "operator.pow", "aten.unbind.int", [10**6, 10**6],
]  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> Any:
    """The paths of all items of JSON."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


@pytest.mark.parametrize("member", ["programs.json", "report.json", "plan.json"])
def test_any_damage_is_an_artifact_error_or_none(made: Any, tmp_path: Path, member: str) -> None:
    draw = random.Random(member)
    original = json.loads(unpacked(made[2].read_bytes(), "it")[member])
    for _ in range(60 if member == "programs.json" else 20):
        data = copy.deepcopy(original)
        *path, key = draw.choice(list(places(data)))
        target = data
        for each in path:
            target = target[each]
        if draw.random() < 0.2:
            del target[key]
        else:
            target[key] = copy.deepcopy(draw.choice(VALUES))
        file = written(tmp_path / "net", made[2], member, data)
        try:
            load(file, lower="eager")
        except (ArtifactError, VerificationError):
            continue
        except BaseException as error:
            raise AssertionError(f"{(*path, key)} became {target}") from error


def test_a_truncated_file(made: Any, tmp_path: Path) -> None:
    data = made[2].read_bytes()
    for part in (0.1, 0.5, 0.99):
        (tmp_path / "net").write_bytes(data[: int(part * len(data))])
        with pytest.raises(ArtifactError, match="is truncated or damaged"):
            load(tmp_path / "net")


def test_another_torch(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net"
    monkeypatch.setattr("rewrite.artifact.container.versions", lambda: {"torch": "2.0.1", "torch-rewrite": "0"})
    made[1].save(path)
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match=r"was saved with torch 2\.0\.1"):
        load(path)
    assert torch.equal(load(path, lower="eager", any_torch=True)(image()), made[1](image()))


def test_weights_of_another_shape(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(made[2].read_bytes())
    edit(path, lambda data: data["weights"]["fc.weight"].update(shape=[8, 5], stride=[5, 1]))
    with pytest.raises(ArtifactError, match=r"'fc.weight' is torch.float32\[5, 8\] in the file, which says"):
        load(path)
    members = unpacked(made[2].read_bytes(), "it")
    data = json.loads(members["programs.json"])
    for name in ("captured", "rewritten"):
        for node in data["programs"][0]["graphs"]["graphs"][name]["nodes"]:
            if node["target"] == "fc.weight":
                node["value"]["tensor"].update(shape=[6, 8])
            if node["target"] in ("fc.bias",):
                node["value"]["tensor"].update(shape=[6])
            node["type"] = node.get("type", "").replace(",5]", ",6]")
    path.write_bytes(packed({**members, "programs.json": json.dumps(data).encode()}, {}))
    with pytest.raises(ArtifactError, match=r"the weight 'fc.(weight|bias)' is f32\[5.*its program reads f32\[6"):
        load(path)


def test_a_program_that_computes_something_else(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "net"

    def change(data: Any) -> None:
        nodes = data["programs"][0]["graphs"]["graphs"]["rewritten"]["nodes"]
        relu = next(node for node in nodes if node.get("target") == "aten.relu.default")
        relu["target"] = "aten.silu.default"

    path.write_bytes(made[2].read_bytes())
    edit(path, change)
    with pytest.raises(VerificationError, match="does not give the outputs that were saved with it"):
        load(path)
    with pytest.raises(VerificationError, match="not equal to the model"):
        load(path, net())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without the device")
def test_a_file_of_a_device_that_is_not_here(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(made[2].read_bytes())
    members = unpacked(path.read_bytes(), "it")
    members["programs.json"] = members["programs.json"].replace(b'"device": "cpu"', b'"device": "cuda:0"')
    path.write_bytes(packed(members, {}))
    assert torch.equal(load(path, lower="eager")(image()), made[1](image()))
    assert torch.equal(load(path, net(), lower="eager")(image()), made[1](image()))


# -- pickling, and other processes ------------------------------------------------------------------------------------


def test_pickles_stand_alone(made: Any) -> None:
    fast = copy.deepcopy(made[1])
    fast.tags = ["a"]
    found = pickle.loads(pickle.dumps(fast))
    assert torch.equal(found(image()), fast(image()))
    assert found.tags == ["a"]
    assert isinstance(found, OptimizedModule)
    assert (found.num_classes, list(found.report.time)) == (5, list(fast.report.time))
    file = io.BytesIO()
    torch.save({"net": found}, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)["net"](image()), fast(image()))
    with pytest.raises(ArtifactError, match="has no program yet"):
        pickle.dumps(eager(net()))


FRESH = """
import pickle, sys, torch
from rewrite import load
for found in (load(sys.argv[1], lower="eager"), pickle.load(open(sys.argv[2], "rb"))):
    data = torch.load(sys.argv[3])
    assert torch.equal(found(data["x"]), data["y"])
    assert "simplify" in str(found.report)
assert not [name for name in sys.modules if name.startswith(("tests", "timm"))]
"""


def test_a_fresh_process_without_the_code_of_the_model(made: Any, tmp_path: Path) -> None:
    _, fast, path = made
    (tmp_path / "net.pickle").write_bytes(pickle.dumps(fast))
    torch.save({"x": image(3), "y": fast(image(3))}, tmp_path / "data")
    command = [
        sys.executable,
        "-W",
        "error::UserWarning",
        "-c",
        FRESH,
        path,
        tmp_path / "net.pickle",
        tmp_path / "data",
    ]
    root = Path(rewrite.__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
