"""The transformed module trains the model, and the model trains it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from codegen import Eager, Inductor
from rewrite.errors import GraphError, InputError, RewriteError
from rewrite.result import Program, TransformedModule
from rewrite.trace import capture
from tests.result.programs import Net, close, fold_norms, image, spread, transform


def trained(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return spread(Net(), seed).double().train()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss: Tensor = model(x).square().sum()
    loss.backward()
    optimizer.step()
    return loss.detach()


def distance(a: nn.Module, b: nn.Module) -> float:
    mine, theirs = a.state_dict(), b.state_dict()
    assert list(mine) == list(theirs)
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


@pytest.mark.parametrize(
    "lowering", [None, Eager(), pytest.param(Inductor(), marks=pytest.mark.slow)], ids=["none", "eager", "inductor"]
)
@pytest.mark.parametrize("whose", ["model", "result"])
def test_training_steps_equal_those_of_the_model(lowering: Any, whose: str) -> None:
    model = trained()
    reference = copy.deepcopy(model)
    result = transform(model, image().double(), lowering=lowering)
    optimizer = torch.optim.SGD((model if whose == "model" else result).parameters(), lr=0.01, momentum=0.9)
    other = torch.optim.SGD(reference.parameters(), lr=0.01, momentum=0.9)
    for turn in range(3):
        x = image(4, seed=turn).double()
        assert close(step(result, optimizer, x), step(reference, other, x), 1e-9)
    assert distance(model, reference) < 1e-9
    assert distance(result, reference) < 1e-9
    assert int(model.stem[1].num_batches_tracked) == 3


def test_parameters_buffers_and_parts_are_the_models() -> None:
    model = trained()
    result = transform(model, image().double())
    assert list(map(id, result.parameters())) == list(map(id, model.parameters()))
    assert list(map(id, result.buffers())) == list(map(id, model.buffers()))
    assert result.fc is model.fc
    assert list(result.state_dict()) == list(model.state_dict())
    result.load_state_dict(trained(3).state_dict())
    assert distance(model, trained(3)) == 0


class Twice(nn.Module):
    """One norm that is called twice, so that the second call reads the statistics that the first one wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(self.norm(self.a(x)).relu()))


def test_a_norm_that_is_called_twice() -> None:
    model = Twice().double().train()
    reference = copy.deepcopy(model)
    result = transform(model, image().double())
    for turn in range(2):
        x = image(4, seed=turn).double()
        for module in (result, reference):
            module(x).square().sum().backward()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert close(mine.grad, theirs.grad, 1e-9)
    assert distance(model, reference) < 1e-12


class ReadsStatistics(Twice):
    """Reads a running statistic besides, before the norm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        old = self.norm.running_mean.clone()
        return self.norm(self.a(x)) + old[:, None, None]


def test_a_statistic_that_is_read_elsewhere_keeps_its_old_value_there() -> None:
    model = ReadsStatistics().double().train()
    reference = copy.deepcopy(model)
    result = transform(model, image().double())
    for turn in range(3):
        x = image(4, seed=turn).double()
        mine, theirs = result(x), reference(x)
        assert close(mine, theirs, 1e-12)
        mine.square().sum().backward()
        theirs.square().sum().backward()
        assert close(model.a.weight.grad, reference.a.weight.grad, 1e-9)
    assert distance(model, reference) < 1e-12


def test_evaluation_mode() -> None:
    model = trained().eval()
    result = transform(model, image().double())
    before = copy.deepcopy(model)
    assert close(result(image(3).double()), model(image(3).double()), 1e-12)
    assert distance(model, before) == 0
    result(image().double()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_other_mode_is_another_program() -> None:
    result = transform(trained(), image().double())
    assert result.train() is result
    with pytest.raises(RewriteError, match=r"in training mode, .* call model\.eval\(\) and transform it again"):
        result.eval()
    result = transform(trained().eval(), image().double())
    assert result.eval() is result
    with pytest.raises(RewriteError, match=r"in evaluation mode, .* call model\.train\(\)"):
        result.train()


def test_the_mode_of_the_model_is_that_of_the_program() -> None:
    model = trained()
    result = transform(model, image().double())
    model.eval()
    with pytest.raises(RewriteError, match=r"in training mode and is in evaluation mode.*call train\(True\)"):
        result(image().double())
    model.train()
    result(image().double())


def test_other_sizes_are_refused() -> None:
    result = transform(trained(), image().double())
    result(image(7).double())
    with pytest.raises(InputError, match=r"\[2, 3, 12, 12\].*call transform with such an example"):
        result(image(2, 12).double())


def test_a_model_converted_after_transform() -> None:
    model = trained()
    result = transform(model, image().double())
    result(image().double())
    result.float()
    assert model.fc.weight.dtype is torch.float32
    reference = copy.deepcopy(model)
    assert close(result(image()), reference(image()))
    model.double()
    assert result(image().double()).dtype is torch.float64


def test_replaced_parameters_are_used_and_replaced_modules_refused() -> None:
    model = trained().eval()
    result = transform(model, image().double())
    model.fc.weight = nn.Parameter(torch.zeros(5, 8, dtype=torch.float64))
    assert close(result(image().double()), model.fc.bias.expand(2, -1))
    model.fc = nn.Linear(8, 5).double()
    with pytest.raises(RewriteError, match="module 'fc' was replaced after the model was transformed"):
        result(image().double())


def test_a_missing_parameter_is_named() -> None:
    model = trained().eval()
    result = transform(model, image().double())
    del model.fc.bias
    with pytest.raises(RewriteError, match=r"no 'fc\.bias' any more"):
        result(image().double())


def test_folded_weights_are_refused() -> None:
    model = trained().eval()
    graph = capture(model, (image().double(),), {}).graph
    assert fold_norms(graph) == 2
    with pytest.raises(GraphError, match="was folded, and transform keeps weights trainable"):
        TransformedModule(model, Program(graph))


def test_deepcopy_trains_a_copy_of_the_model() -> None:
    model = trained()
    result = transform(model, image().double())
    before = copy.deepcopy(model)
    twin = copy.deepcopy(result)
    step(twin, torch.optim.SGD(twin.parameters(), lr=0.1), image().double())
    assert distance(model, before) == 0
    assert distance(twin, before) > 0


def test_functional_call_and_per_sample_weights() -> None:
    model = trained().eval()
    result = transform(model, image().double())
    swapped = {name: parameter.detach() * 1.1 for name, parameter in model.named_parameters()}
    x = image().double()
    assert close(torch.func.functional_call(result, swapped, x), torch.func.functional_call(model, swapped, x), 1e-9)
    assert close(result(x), model(x), 1e-9)


def test_attributes_report_and_pickling() -> None:
    model = trained()
    result = transform(model, image().double())
    assert (result.num_classes, result.report, repr(result).split("(")[0]) == (5, "report", "TransformedNet")
    assert not hasattr(result, "forward_features")
    with pytest.raises(RewriteError, match="cannot be pickled"):
        pickle.dumps(result)
    assert dict(result.graph_module.named_parameters())["fc.weight"] is model.fc.weight


def test_written_attributes_and_dropout_stay_random() -> None:
    class Drop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(self.linear(x), 0.5, self.training)

    model, x = Drop().train(), torch.randn(4, 16)
    result = transform(model, x)
    assert not torch.equal(result(x), result(x))
    torch.manual_seed(3)
    mine = result(x)
    torch.manual_seed(3)
    assert torch.equal(mine, model(x))
