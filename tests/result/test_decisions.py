"""A program holds for the flags that Python decided on in forward; with others the model is captured anew."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rewrite import RewriteError, load, optimize, transform
from rewrite.errors import CaptureError
from rewrite.result import OptimizedModule
from tests.result.programs import close

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Flagged(nn.Module):
    """A scale that is normalized by what the first call finds, and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))
        self.register_buffer("norm", torch.tensor(1.0))
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("switch", torch.tensor([1, 0]))

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            with torch.no_grad():
                self.norm.copy_(self.scale.norm())
                self.ready.fill_(True)
        scale = self.scale / self.norm
        return (x * scale).sin() if self.switch[0] == 1 else (x + scale).exp()


@pytest.fixture
def model() -> Flagged:
    model = Flagged().eval()
    model(X)
    return model


def eager(model: nn.Module) -> OptimizedModule:
    return optimize(model, X, lower="eager")


def agree(fast: nn.Module, model: nn.Module) -> bool:
    with torch.no_grad():
        return close(fast(X), model(X), 1e-6)


def test_another_value_is_another_program(model: Flagged) -> None:
    fast = eager(model)
    report = fast.report
    for value in (0, 1, 5):
        before = fast(X)
        model.switch[0] = value
        assert not close(model(X), before)
        assert agree(fast, model)
        assert fast.report is not report
        report = fast.report
    assert any("decides on the value of 'switch'" in note for note in report.notes)


def test_other_weights_are_the_same_program(model: Flagged) -> None:
    fast = eager(model)
    report = fast.report
    model.switch[1] = 0  # written, with the value that it has
    with torch.no_grad():
        model.scale.mul_(1.5)
        model.norm.mul_(0.5)
    assert agree(fast, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    optimizer.step()
    assert agree(fast, model)
    other = Flagged().eval()
    other(2 * X)
    model.load_state_dict(other.state_dict())
    assert agree(fast, model)
    assert fast.report is report


def test_a_model_that_would_initialize_itself_again_is_refused_until_it_has(model: Flagged) -> None:
    fast = eager(model)
    model.load_state_dict(Flagged().state_dict())
    with pytest.raises(CaptureError, match="initializes itself on its first call"):
        fast(X)
    assert not model.ready
    model(X)
    assert agree(fast, model)


def test_another_dtype_is_the_same_program(model: Flagged) -> None:
    fast = eager(model)
    report = fast.report
    model.double()
    assert close(fast(X.double()), model(X.double()), 1e-12)
    assert fast.report is report


def test_a_copy_has_flags_of_its_own(model: Flagged) -> None:
    fast = eager(model)
    twin = copy.deepcopy(fast)
    expected = fast(X)
    model.switch[0] = 0
    assert close(twin(X), expected)
    assert agree(fast, model)
    with torch.no_grad():
        twin.scale.mul_(1.0)
    assert close(twin(X), expected)
    twin.switch[0] = 0
    with pytest.raises(RewriteError, match="forward decides on the value of 'switch', which was another one"):
        twin(X)


def test_pickled_and_saved_results_keep_the_branch(model: Flagged, tmp_path: Path) -> None:
    fast = eager(model)
    expected = fast(X)
    fast.save(tmp_path / "flagged.rewrite")
    for alone in (pickle.loads(pickle.dumps(fast)), load(tmp_path / "flagged.rewrite", lower="eager")):
        assert close(alone(X), expected)
        assert close(alone.double()(X.double()).float(), expected, 1e-6)


def test_a_file_is_captured_anew_over_a_model(model: Flagged, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    eager(model).save(tmp_path / "flagged.rewrite")
    model.switch[0] = 0
    with caplog.at_level(logging.DEBUG, "rewrite"):
        fast = load(tmp_path / "flagged.rewrite", model, lower="eager")
    assert any("decides on the value of" in record.getMessage() for record in caplog.records)
    assert agree(fast, model)


def test_the_cache_keeps_no_such_program(
    model: Flagged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCH_REWRITE_CACHE", "1")
    monkeypatch.setenv("TORCH_REWRITE_CACHE_DIR", str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO, "rewrite"):
        eager(model)
    reasons = [r.__dict__["data"]["reason"] for r in caplog.records if r.__dict__.get("event") == "cache-off"]
    assert reasons == ["forward decides on the value of 'ready', which no key has"]
    assert not list((tmp_path / "cache").rglob("*.rewrite"))


def test_a_transformed_module_says_so(model: Flagged) -> None:
    step = transform(model, X)
    assert agree(step, model)
    step(X).sum().backward()
    assert model.scale.grad is not None
    torch.export.export(step, (X,))
    model.switch[0] = 0
    with pytest.raises(RewriteError, match=r"decides on the value of .switch..*transform it again"):
        step(X)
    model.switch[0] = 1
    assert agree(step, model)
