"""Every way in which weights change is noticed at the next call; what is not noticed is shown as such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewrite.result import staleness
from tests.result.glances import available
from tests.result.programs import Net, close, image, net, optimize, spread


@pytest.fixture(params=["python", "compiled"], autouse=True)
def who_looks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything has to be seen by Python, which looks at first, and by compiled code, which does it from then on."""
    if request.param == "python":
        monkeypatch.setattr(staleness, "ready", lambda: False)
    elif not available():
        pytest.skip("nothing can be compiled here")
    else:
        monkeypatch.setattr(staleness, "WORTH", 1)
    return str(request.param)


KERNEL = "stem.0.weight"  # folded
HEAD = "fc.weight"  # read as it is


def parameter(model: nn.Module, name: str) -> Any:
    return model.get_parameter(name)


def in_place(model: nn.Module, name: str) -> None:
    with torch.no_grad():
        parameter(model, name).mul_(1.5)


def one_element(model: nn.Module, name: str) -> None:
    with torch.no_grad():
        parameter(model, name).view(-1)[7] += 1


def through_detach(model: nn.Module, name: str) -> None:
    parameter(model, name).detach().add_(0.1)


def in_inference_mode(model: nn.Module, name: str) -> None:
    with torch.inference_mode():
        parameter(model, name).add_(0.1)


def through_data(model: nn.Module, name: str) -> None:
    parameter(model, name).data.add_(0.1)


def clamp_through_data(model: nn.Module, name: str) -> None:
    weight = parameter(model, name).data
    weight.clamp_(max=float(weight.max()) * 0.9)


def prune_through_data(model: nn.Module, name: str) -> None:
    weight = parameter(model, name).data
    weight[weight.abs() < weight.abs().mean() * 0.5] = 0


def other_data(model: nn.Module, name: str) -> None:
    parameter(model, name).data = parameter(model, name).data * 1.5


def vector(model: nn.Module, name: str) -> None:
    flat = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(flat * 1.1, model.parameters())


def replaced(model: nn.Module, name: str) -> None:
    path, _, key = name.rpartition(".")
    setattr(model.get_submodule(path), key, nn.Parameter(parameter(model, name).detach() * 1.5))


def loaded(model: nn.Module, name: str) -> None:
    model.load_state_dict(net(7).state_dict())


def assigned(model: nn.Module, name: str) -> None:
    model.load_state_dict(net(7).state_dict(), assign=True)


def initialized(model: nn.Module, name: str) -> None:
    nn.init.normal_(parameter(model, name))


def numpy_like(model: nn.Module, name: str) -> None:
    # writes to the storage without telling torch
    storage = parameter(model, name).untyped_storage()
    storage.copy_((parameter(model, name).detach() * 1.5).contiguous().untyped_storage())


CHANGES = [in_place, one_element, through_detach, in_inference_mode, through_data, clamp_through_data,
           prune_through_data, other_data, vector, replaced, loaded, assigned, initialized, numpy_like]  # fmt: skip


@pytest.mark.parametrize("name", [KERNEL, HEAD])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_result_follows_the_model(change: Callable[[nn.Module, str], None], name: str) -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    before = fast(x)
    change(model, name)
    assert not close(model(x), before), "the change does not change the output"
    assert close(fast(x), model(x))
    assert fast._engine._compile_program.calls == 1


OPTIMIZERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (kind, {option: True})
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
    for option in ("fused", "foreach")
] + [
    (kind, {"foreach": True})
    for kind in (torch.optim.Adadelta, torch.optim.Adamax, torch.optim.ASGD, torch.optim.NAdam, torch.optim.RAdam,
                 torch.optim.RMSprop, torch.optim.Rprop)
] + [(torch.optim.SGD, {}), (torch.optim.LBFGS, {})]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_optimizer_steps_are_noticed(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    before = fast(x)
    optimizer = kind(model.parameters(), lr=0.1, **options)  # type: ignore[call-arg]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure) if kind is torch.optim.LBFGS else (closure(), optimizer.step())
    assert not close(model(x), before)
    assert close(fast(x), model(x))


def test_every_fused_optimizer_of_torch_is_tried() -> None:
    fused = {name for name, kind in vars(torch.optim).items()
             if isinstance(kind, type) and "fused" in kind.__init__.__code__.co_varnames}  # fmt: skip
    assert fused <= {kind.__name__ for kind, options in OPTIMIZERS if "fused" in options} | {"Muon"}


def test_an_optimizer_of_another_model_costs_no_refold() -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    fast(x)
    snapshot = fast._engine._snapshot
    other = net(3)
    optimizer = torch.optim.AdamW(other.parameters(), fused=True)
    other(x).sum().backward()
    optimizer.step()
    fast(x)
    assert fast._engine._snapshot is snapshot


def test_nothing_is_recomputed_while_nothing_changes() -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    fast(x)
    snapshot = fast._engine._snapshot
    model(x)
    fast(x)
    fast.state_dict()
    fast(x)
    assert fast._engine._snapshot is snapshot


def test_statistics_that_training_updates_are_noticed() -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    model.train()
    model(image(4, seed=9))
    model.eval()
    assert close(fast(x), model(x))


def test_a_model_moved_to_double_is_followed() -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    fast(x)
    model.to(torch.float64)
    out = fast(x.double())
    assert out.dtype is torch.float64
    assert close(out, model(x.double()), 1e-12)
    assert fast._engine._compile_program.calls == 1
    model.to(torch.float32)
    assert close(fast(x), model(x))


class Mixed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.forward_features(x).mean((2, 3)).to(self.fc.weight.dtype))


def test_a_model_converted_in_part_is_captured_anew() -> None:
    model, x = spread(Mixed()).eval(), image()
    fast = optimize(model, x)
    model.fc.double()
    assert close(fast(x), model(x), 1e-6)
    assert fast._engine._compile_program.calls == 2


def test_another_head_is_captured_anew() -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    model.fc = nn.Linear(8, 11).eval()
    assert close(fast(x), model(x))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert fast._engine._compile_program.calls == 2


def test_a_parameter_of_another_shape_is_captured_anew() -> None:
    model, x = net(), image()
    fast = optimize(model, x)
    model.fc.weight, model.fc.bias = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(3))
    assert close(fast(x), model(x))


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, bias=False)
        self.norm = nn.BatchNorm2d(64)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def test_the_blind_spot_and_its_remedy() -> None:
    """One element of a large tensor, written through ``.data``: not noticed, as documented; ``refold`` helps."""
    model, x = spread(Wide()).eval(), image()
    fast = optimize(model, x)
    before = fast(x)
    weights = model.conv.weight.data.view(-1)
    middling = int((weights.abs() - weights.abs().median()).abs().argmin())
    weights[middling] += 0.05
    assert torch.equal(fast(x), before)
    fast.refold()
    assert close(fast(x), model(x))


def test_a_rule_that_reads_values_is_captured_anew() -> None:
    from rewrite.result import OptimizedModule
    from tests.result.programs import Compiler

    model, x = net(), image()
    fast = OptimizedModule(model, Compiler(model, value_rules=("low-rank",)))
    fast(x)
    in_place(model, KERNEL)
    assert close(fast(x), model(x))
    assert fast._engine._compile_program.calls == 2


def test_inference_tensors_are_watched_by_their_bytes() -> None:
    x = image()
    with torch.inference_mode():
        model = net()
        with pytest.raises(RuntimeError, match="version"):
            _ = model.fc.weight._version
    from rewrite.result.staleness import Watch

    watch = Watch(model)
    assert not watch.changed()
    with torch.inference_mode():
        model.stem[0].weight.add_(0.1)
    assert watch.changed()
    assert x.shape[0] == 2
