"""Nothing done to the result reaches the model, and a result with weights of its own is right."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewrite.errors import ArtifactError, RewriteError
from rewrite.result import OptimizedModule
from tests.result.programs import Compiler, Net, close, image, net, optimize, spread


def fingerprint(model: nn.Module) -> Any:
    """All that a user could see change in a model."""
    tensors = {
        name: (id(tensor), tensor.data_ptr(), tensor.dtype, tensor.requires_grad, tensor._version, tensor.clone())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    flags = {name: (module.training, sorted(module.__dict__)) for name, module in model.named_modules()}
    return tensors, flags


def same(a: Any, b: Any) -> bool:
    (first, flags), (second, others) = a, b
    return (
        flags == others
        and first.keys() == second.keys()
        and all(
            first[name][:-1] == second[name][:-1] and torch.equal(first[name][-1], second[name][-1]) for name in first
        )
    )


def set_parameter(fast: OptimizedModule) -> None:
    fast.fc.weight = nn.Parameter(torch.zeros(5, 8))


def set_data(fast: OptimizedModule) -> None:
    fast.fc.weight.data = torch.zeros(5, 8)


def set_vector(fast: OptimizedModule) -> None:
    flat = nn.utils.parameters_to_vector(fast.parameters())
    nn.utils.vector_to_parameters(flat * 2, fast.parameters())


def part_to_double(fast: OptimizedModule) -> None:
    fast.fc.double()


DEEDS: list[Callable[[OptimizedModule], Any]] = [
    lambda fast: fast.to(torch.bfloat16),
    lambda fast: fast.half(),
    lambda fast: fast.double(),
    lambda fast: fast.to("meta"),
    lambda fast: fast.to_empty(device="cpu"),
    lambda fast: fast.share_memory(),
    lambda fast: fast.load_state_dict(net(5).state_dict()),
    lambda fast: fast.load_state_dict(net(5).state_dict(), assign=True),
    lambda fast: fast.fc.load_state_dict(net(5).fc.state_dict()),
    lambda fast: fast.requires_grad_(False),
    lambda fast: fast.eval(),
    lambda fast: fast.zero_grad(),
    lambda fast: fast.graph_module.double(),
    lambda fast: fast(image(3)),
    lambda fast: copy.deepcopy(fast).to(torch.bfloat16)(image().bfloat16()),
    lambda fast: fast.register_forward_hook(lambda *_: None),
    lambda fast: setattr(fast, "note", "mine"),
    lambda fast: delattr(fast.fc, "bias"),
    set_parameter, set_data, set_vector, part_to_double,
]  # fmt: skip


@pytest.mark.parametrize("deed", range(len(DEEDS)))
def test_the_model_stays_as_it_is(deed: int) -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    fast(x)
    before = fingerprint(model)
    DEEDS[deed](fast)
    assert same(fingerprint(model), before)


def test_parameters_are_aliases() -> None:
    model = net()
    fast = optimize(model)
    mine, theirs = dict(fast.named_parameters()), dict(model.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, parameter in mine.items():
        assert isinstance(parameter, nn.Parameter)
        assert parameter is not theirs[name]
        assert parameter.data_ptr() == theirs[name].data_ptr()


def test_a_conversion_that_changes_nothing_keeps_following() -> None:
    model, x = net(), image()
    fast = optimize(model, x).to(torch.float32).to("cpu").float()
    with torch.no_grad():
        model.fc.weight.mul_(2)
    assert close(fast(x), model(x))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float64, 1e-12)])
def test_a_converted_result(dtype: torch.dtype, tolerance: float) -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    before = model(x)
    out = fast.to(dtype)(x.to(dtype))
    assert out.dtype is dtype
    assert close(out, copy.deepcopy(model).to(dtype)(x.to(dtype)), tolerance)
    with torch.no_grad():
        model.fc.weight.mul_(2)
    assert close(fast(x.to(dtype)), before.to(dtype), 3e-2), "it still follows the model"
    assert fast._engine._compile_program.calls == 1


def test_folding_after_a_conversion_rounds_once() -> None:
    """In bfloat16 the folded kernel is the float64 product of the rounded weights, rounded once."""
    model, x = net(), image()
    fast = optimize(model, x).to(torch.bfloat16)
    fast(x.bfloat16())
    rounded = copy.deepcopy(model).to(torch.bfloat16).double()
    norm = rounded.stem[1]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = (rounded.stem[0].weight * scale.view(-1, 1, 1, 1)).bfloat16()
    assert torch.equal(fast.graph_module.get_buffer("folded_1.weight"), expected)


def test_loading_into_the_result() -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    fast(x)
    other = net(5)
    assert str(fast.load_state_dict(other.state_dict())) == "<All keys matched successfully>"
    assert close(fast(x), other(x))
    assert fast._engine._compile_program.calls == 1
    with pytest.raises(RuntimeError, match="size mismatch"):
        fast.load_state_dict(spread(Net(classes=7)).state_dict())


@pytest.mark.parametrize("change", [set_parameter, set_data])
def test_weights_given_to_the_result(change: Callable[[OptimizedModule], None]) -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    fast(x)
    change(fast)
    assert close(fast(x), model.fc.bias.detach().expand(2, -1))
    with torch.no_grad():
        model.stem[0].weight.mul_(3)
        model.fc.bias.mul_(3)
    assert not close(fast(x), model.fc.bias.detach().expand(2, -1))


def test_a_vector_given_to_the_result() -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    set_vector(fast)
    twin = copy.deepcopy(model)
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(twin.parameters()) * 2, twin.parameters())
    assert close(fast(x), twin(x))


def test_writes_into_weights_of_its_own_are_noticed() -> None:
    model, x = net(), image()
    fast = copy.deepcopy(optimize(model, x))
    with torch.no_grad():
        fast.stem[0].weight.mul_(2)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.stem[0].weight.mul_(2)
    assert close(fast(x), twin(x))


def test_a_part_converted_alone_is_refused_at_the_call() -> None:
    fast = optimize(net(), image())
    fast.fc.double()
    with pytest.raises(RewriteError, match=r"is torch.float.* optimize it again"):
        fast(image())


def test_a_deleted_weight_is_refused_at_the_call() -> None:
    fast = optimize(net(), image())
    del fast.fc.bias
    with pytest.raises(RewriteError, match=r"no 'fc.bias' any more"):
        fast(image())


def test_deepcopy_does_not_follow() -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    before = fast(x)
    twin = copy.deepcopy(fast)
    with torch.no_grad():
        model.stem[0].weight.mul_(2)
        model.fc.weight.mul_(2)
    assert torch.equal(twin(x), before)
    assert close(fast(x), model(x))
    assert list(twin.state_dict()) == list(model.state_dict())
    assert twin.num_classes == 5
    assert repr(twin) == repr(fast)


def test_deepcopy_keeps_what_was_set_on_the_result() -> None:
    fast = optimize(net(), image())
    fast.tags = ["a"]
    calls: list[int] = []
    fast.register_forward_hook(lambda *_: calls.append(1))
    twin = copy.deepcopy(fast)
    twin.tags.append("b")
    twin(image())
    assert (fast.tags, twin.tags, calls) == (["a"], ["a", "b"], [1])


def test_a_copy_captures_other_sizes_from_the_model_and_runs_its_own_weights() -> None:
    model, x = net(), image(2, 12)
    twin = copy.deepcopy(optimize(model, image())).double()
    reference = copy.deepcopy(model).double()
    with torch.no_grad():
        model.fc.weight.mul_(2)
    assert close(twin(x.double()), reference(x.double()), 1e-12)


def test_a_copy_does_not_keep_the_original_result() -> None:
    fast = optimize(net(), image())
    twin, gone = copy.deepcopy(fast), weakref.ref(fast)
    del fast
    gc.collect()
    assert gone() is None
    twin(image())


def test_a_program_that_was_not_kept_as_captured_does_not_pickle() -> None:
    with pytest.raises(ArtifactError, match=r"make the result with rewrite\.optimize"):
        pickle.dumps(optimize(net(), image()))


def test_old_tensors_are_let_go() -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    fast(x)
    gone = weakref.ref(model.fc.weight)
    model.fc.weight = nn.Parameter(torch.randn(5, 8))
    fast(x)
    gc.collect()
    assert gone() is None


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    model, x = Tied().eval(), torch.randn(2, 4)
    fast = OptimizedModule(model, Compiler(model))
    assert close(fast(x), model(x))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert [name for name, _ in fast.named_parameters()] == [name for name, _ in model.named_parameters()]
    twin = copy.deepcopy(fast)
    assert twin.a.weight is twin.b.weight
    with torch.no_grad():
        twin.a.weight.mul_(2)
        expected = model.b.bias + (x @ (2 * model.a.weight).T + model.a.bias) @ (2 * model.a.weight).T
    assert close(twin(x), expected)


def test_extra_state_is_kept() -> None:
    class Inner(nn.Linear):
        state = "of the model"

        def get_extra_state(self) -> Any:
            return {"value": self.state}

        def set_extra_state(self, state: Any) -> None:
            self.state = state["value"]

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = Outer().eval()
    fast = optimize(model)
    state = fast.state_dict()
    assert list(state) == list(model.state_dict())
    state["inner._extra_state"] = {"value": "loaded"}
    fast.load_state_dict(state)
    assert fast.state_dict()["inner._extra_state"] == {"value": "loaded"}
    assert copy.deepcopy(fast).state_dict()["inner._extra_state"] == {"value": "loaded"}
    assert model.inner.state == "of the model"
