"""Copies of results: deep ones, pickles and files, of results alone and as parts of other modules."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rewrite import RewriteError, optimize, transform
from tests.habits.models import Counting, counting
from tests.result.programs import close, image, net


def through_file(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": through_file,
    "release": lambda module: optimize(module, release=True),
}


@pytest.fixture(scope="module")
def made() -> tuple[Counting, Any]:
    model = counting()
    return model, optimize(model, image(), lower="eager")


@pytest.mark.parametrize("way", COPIES)
def test_copies_compute_the_same_on_weights_of_their_own(made: Any, way: str) -> None:
    model, fast = made
    found = COPIES[way](fast)
    assert close(found(image(3))["y"], model(image(3))["y"])
    before = float(fast.count)
    found(image())
    assert float(fast.count) == before
    twin = copy.deepcopy(found)
    twin.fc.weight.data.zero_()
    twin.refold()
    assert close(found(image())["y"], model(image())["y"])


@pytest.mark.parametrize("way", COPIES)
def test_copies_of_what_was_exported(made: Any, way: str) -> None:
    model, fast = made
    for strict in (False, True):
        torch.export.export(fast, (image(),), strict=strict)
    found = COPIES[way](fast)
    assert close(found(image())["y"], model(image())["y"])
    assert not [key for key in vars(found) if key.startswith(("folded", "_exported", "_named"))]
    program = torch.export.export(found, (image(),))
    assert close(program.module()(image())["y"], model(image())["y"])


@pytest.mark.parametrize("way", [way for way in COPIES if way != "release"])
def test_copies_inside_other_modules(way: str) -> None:
    model = net()
    outer = nn.Sequential(optimize(model, image(), lower="eager"), nn.Softmax(1)).eval()
    found = COPIES[way](outer)
    assert close(found(image(3)), model(image(3)).softmax(1))
    assert list(outer.state_dict()) == [f"0.{name}" for name in model.state_dict()]
    assert found[0].num_classes == 5


def test_methods_released_and_copied() -> None:
    model = net()
    fast = optimize(model, image(), method="forward_features", release=True, on_new_shape="eager", lower="eager")
    expected = model.forward_features(image(3))
    del model
    for way in COPIES.values():
        assert close(way(fast)(image(3)), expected)


def test_transformed_modules_are_copied_with_their_model() -> None:
    model = counting().train()
    trained = transform(model, image())
    twin = copy.deepcopy(trained)
    twin(image())["y"].sum().backward()
    assert all(value.grad is None for value in model.parameters())
    assert {value.grad is None for value in twin.parameters()} == {False}
    assert float(model.count) == 0
    for way in (pickle.dumps, through_file):
        with pytest.raises(RewriteError, match="cannot be pickled; pickle the model, and transform it again"):
            way(trained)
