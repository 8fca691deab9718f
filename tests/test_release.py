"""`optimize(..., release=True)`: the result knows nothing of the model, and the model is as it was."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewrite import InputError, load, optimize
from rewrite.result import OptimizedModule
from tests.result.programs import close, image, net
from tests.result.test_ownership import fingerprint, same
from tests.result.test_state import Counter


def released(model: nn.Module, *args: Any, **kwargs: Any) -> OptimizedModule:
    return optimize(model, *args, lower="eager", release=True, **kwargs)


def memory() -> dict[int, int]:
    """The bytes of every storage of a living tensor, by address."""
    gc.collect()
    kinds = (Tensor, nn.Parameter, nn.Buffer)
    tensors = [each for each in gc.get_objects() if type(each) in kinds and each.layout is torch.strided]
    found = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors if not each.is_meta}
    return {address: size for address, size in found.items() if address}


def test_the_model_is_let_go() -> None:
    model, x = net(), image()
    expected = model(x).detach()
    before = fingerprint(model)
    fast = released(model, x)
    assert same(before, fingerprint(model))
    del before
    gone = [weakref.ref(model), *map(weakref.ref, (*model.modules(), *model.parameters(), *model.buffers()))]
    addresses = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    del model
    gc.collect()
    assert all(each() is None for each in gone)
    assert not addresses & {tensor.data_ptr() for tensor in (*fast.parameters(), *fast.buffers())}
    assert close(fast(x), expected)


def test_only_what_is_needed_is_kept() -> None:
    x = image()
    released(net(), x)
    before = memory()
    model = net()
    fast = released(model, x)
    theirs = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    del model
    after = memory()
    new = {address: size for address, size in after.items() if address not in before}
    assert not theirs & set(new)
    needed = sum(tensor.untyped_storage().nbytes() for tensor in fast.state_dict().values())
    sample = x.nbytes
    assert needed <= sum(new.values()) <= needed + sample
    assert set(fast.state_dict()) == {"fc.weight", "fc.bias", *(name for name in fast.state_dict() if "folded" in name)}


def test_what_is_converted_leaves_nothing_behind() -> None:
    before = memory()
    fast = released(net(), image())
    addresses = {tensor.data_ptr() for tensor in fast.state_dict().values()}
    assert addresses <= set(memory())
    fast.half()
    fast(image().half())
    kept = sum(size for address, size in memory().items() if address not in before)
    needed = sum(tensor.untyped_storage().nbytes() for tensor in fast.state_dict().values())
    assert kept <= needed + image().nbytes
    assert not addresses & set(memory())


def test_changes_do_not_reach_the_other_side() -> None:
    model, x = net(), image()
    fast = released(model, x)
    before, expected = fast(x).clone(), model(x)
    with torch.no_grad():
        model.fc.weight.mul_(2)
        model.stem[0].weight.mul_(2)
    assert torch.equal(fast(x), before)
    assert close(before, expected)
    with torch.no_grad():
        fast.fc.weight.zero_()
        assert bool(model.fc.weight.any())
        assert close(fast(x), fast.fc.bias.expand(2, -1))


def test_state_is_copied_once() -> None:
    model, x = Counter().eval(), torch.randn(3, 4)
    reference = copy.deepcopy(model)
    fast = released(model, x)
    for _ in range(3):
        assert close(fast(x), reference(x))
    assert (int(fast.steps), int(model.steps)) == (3, 0)


def test_plain_tensor_attributes_are_copied() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.rand(4)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    model, x = Scaled().eval(), torch.randn(2, 4)
    fast = released(model, x)
    before = fast(x).clone()
    model.scale.zero_()
    assert torch.equal(fast(x), before)


def test_it_is_a_result_like_any(tmp_path: Path) -> None:
    model, x = net(), image()
    fast = released(model, x)
    assert torch.equal(fast(image(5)), optimize(model, x, lower="eager")(image(5)))
    assert fast.report.diff()
    assert torch.equal(copy.deepcopy(fast)(x), fast(x))
    assert torch.equal(pickle.loads(pickle.dumps(fast))(x), fast(x))
    fast.save(tmp_path / "net")
    assert torch.equal(load(tmp_path / "net", model, lower="eager")(x), fast(x))
    with pytest.raises(InputError, match=r"optimize without release=True captures other calls"):
        fast(image(2, 12))


def test_a_result_can_be_released_later() -> None:
    model, x = net(), image()
    fast = optimize(model, x, lower="eager")
    fast(image(2, 12))
    found = optimize(fast, release=True)
    assert found is not fast
    assert torch.equal(found(x), fast(x))
    assert torch.equal(found(image(2, 12)), fast(image(2, 12)))


def test_an_example_is_needed() -> None:
    with pytest.raises(InputError, match="release=True needs an example"):
        released(net())
