"""`load` over a model: the one that was saved, one with other weights, and another one."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewrite import ArtifactError, Fidelity, InputError, RewriteError, Rule, load
from rewrite.pattern import Call, Var
from tests.corpus import randomize
from tests.golden import models
from tests.loading.files import eager, saved
from tests.result.programs import close, image, net

aten = torch.ops.aten


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
