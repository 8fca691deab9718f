"""What capture refuses: one sentence that names the value, the constraint and the remedy, and nothing is changed."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rewrite.errors import CaptureError, InputError
from rewrite.trace import capture
from tests.trace.support import Picture, assert_captures, module
from tests.trace.test_kept import Sevenfold

X = torch.randn(3, 4)


def assert_refuses(model: Any, error: type[Exception], *phrases: str, args: Any = (X,), kwargs: Any = None,
                   training: bool = False) -> str:  # fmt: skip
    picture = Picture(model) if isinstance(model, nn.Module) else None
    with pytest.raises(error) as caught:
        capture(model, args, {} if kwargs is None else kwargs, training=training)
    assert type(caught.value) is error
    text = str(caught.value)
    for phrase in phrases:
        assert phrase in text, text
    assert "\n" not in text
    if picture is not None:
        picture.assert_same()
    return text


# -- before anything runs ---------------------------------------------------------------------------------------------


def test_not_a_module() -> None:
    assert_refuses(torch.relu, InputError, "not an nn.Module", "forward")
    assert_refuses(nn.ReLU, InputError, "ReLU is a class", "ReLU(...)")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_module() -> None:
    scripted = torch.jit.script(nn.Linear(4, 4).eval())
    with pytest.raises(CaptureError, match="the model is a ScriptModule"):
        capture(scripted, (X,))
    with pytest.raises(CaptureError, match="module '0' is a ScriptModule"):
        capture(nn.Sequential(scripted), (X,))


def test_sharded_module() -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    model = nn.Sequential(FullyShardedDataParallel()).eval()
    assert_refuses(model, CaptureError, "module '0' is sharded (FSDP)", "before sharding")


def test_wrappers_are_taken_off() -> None:
    inner = nn.Linear(4, 4).eval()

    class DistributedDataParallel(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module):
            nn.Module.__init__(self)
            self.module = module

    for wrapped in (
        nn.DataParallel(inner).eval(),
        DistributedDataParallel(inner).eval(),
        torch.compile(inner, backend="eager"),
    ):
        captured = capture(wrapped, (X,))
        assert captured.model is inner
        assert set(captured.graph.weights) == {"weight", "bias"}


def test_wrong_arguments_of_capture() -> None:
    linear = nn.Linear(4, 4).eval()
    assert_refuses(linear, InputError, "args is a Tensor, not a tuple", "(x,)", args=X)
    assert_refuses(linear, InputError, "kwargs", args=(X,), kwargs=[("x", 1)])


def test_training_mode_names_the_first_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Dropout())).eval()
    model[1][1].train()
    assert_refuses(model, InputError, "module '1.1' is in training mode", "model.eval()", "transform")
    assert_refuses(nn.Linear(4, 4), InputError, "the model is in training mode")


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = nn.Linear(4, 4).eval()
    with pytest.raises(CaptureError, match=r"'weight' was made in inference mode .*; build the model outside"):
        capture(model, (X,))


def test_two_devices() -> None:
    linear = nn.Linear(4, 4, device="meta").eval()
    assert_refuses(linear, CaptureError, "'weight' is on the meta device", "load")
    model = module(lambda self, x: x, a=torch.zeros(3))
    assert_refuses(model, InputError, "input 0 is on meta", "'a'".strip("'"), args=(torch.zeros(3, device="meta"),))


def test_lazy_module() -> None:
    model = nn.Sequential(nn.LazyLinear(4)).eval()
    with pytest.raises(CaptureError, match=r"'0\.weight' is not initialized; call the model once"):
        capture(model, (X,))
    with torch.no_grad():
        model(X)
    assert_captures(model, X)


def test_inputs_that_no_rule_understands() -> None:
    model = module(lambda self, x: x)
    assert_refuses(model, CaptureError, "input 0 is sparse", "dense", args=(X.to_sparse(),))
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    assert_refuses(model, CaptureError, "nested", args=(nested,))


# -- while the model is called ----------------------------------------------------------------------------------------


def test_inputs_that_do_not_fit_quote_line_and_torch() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.linear(x)

    model = module(forward, linear=nn.Linear(5, 4))
    text = assert_refuses(model, InputError, "test_refusals.py:", "return self.linear(x)", "RuntimeError")
    assert "cannot be multiplied (3x4 and 5x4)" in text


def test_missing_argument() -> None:
    assert_refuses(nn.Linear(4, 4).eval(), InputError, "TypeError", "forward", args=())
    assert_refuses(nn.Linear(4, 4).eval(), InputError, "unexpected keyword", kwargs={"y": X})


def test_module_without_forward() -> None:
    assert_refuses(nn.Module().eval(), InputError, "Module has no forward")


# -- while it is traced -----------------------------------------------------------------------------------------------


def test_branch_on_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1

    assert_refuses(module(forward), CaptureError, "value of a tensor", "if x.sum() > 0", "torch.where")
    assert_refuses(module(lambda self, x: x * float(x.sum())), CaptureError, "value of a tensor", "torch.where")
    assert capsys.readouterr() == ("", "")


def test_size_that_depends_on_values() -> None:
    assert_refuses(module(lambda self, x: x[x > 0]), CaptureError, "depends on the values", "torch.where")
    assert_refuses(module(lambda self, x: torch.nonzero(x)), CaptureError, "values", "torch.where")


@dataclasses.dataclass
class Unregistered:
    value: Tensor


def test_dataclass_result() -> None:
    assert_refuses(module(lambda self, x: Unregistered(x + 1)), CaptureError, "Unregistered", "register_dataclass")


def test_unknown_argument_type() -> None:
    assert_refuses(module(lambda self, x, o: x + 1), CaptureError, "Fixture", args=(X, Fixture()))


class Fixture:
    pass


def test_numpy_in_forward() -> None:
    model = module(lambda self, x: torch.from_numpy(np.sin(x.detach().numpy())))
    assert_refuses(model, CaptureError, "numpy", "np.sin(x.detach().numpy())")


def test_forward_that_differentiates() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.autograd.grad(self.linear(x).sum(), self.linear.weight)[0]

    assert_refuses(module(forward, linear=nn.Linear(4, 4)), CaptureError, "differentiates on its own", "autograd.grad(")


def test_nested_graphs() -> None:
    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))  # type: ignore[no-any-return]

    assert_refuses(Chooses().eval(), CaptureError, "'cond' at test_refusals.py:", "return torch.cond", "torch.where")


def test_custom_backward_in_training() -> None:
    model = module(lambda self, x: Sevenfold.apply(x)).train()
    assert_refuses(model, CaptureError, "'Sevenfold'", "backward", training=True)


def test_foreign_random_numbers() -> None:
    state = random.getstate()
    assert_refuses(module(lambda self, x: x * random.random()), CaptureError, "'random'", "draw with torch")
    assert random.getstate() == state
    before = np.random.get_state()[2]
    assert_refuses(module(lambda self, x: x * np.random.rand()), CaptureError, "'numpy.random'")
    assert np.random.get_state()[2] == before


def test_writes_through_data() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.table.data = x[0].clone()
        return x + self.table

    assert_refuses(module(forward, table=torch.zeros(4)), CaptureError, "'table'", "tracing does not see")
    # the same again on a model that has seen the example
    warm = module(forward, table=torch.zeros(4))
    warm(X)
    assert_refuses(warm, CaptureError, "'table'", "tracing does not see")

    def out_of_sight(self: Any, x: Tensor) -> Tensor:
        self.table.data = x[0].clone()
        return x + 1

    assert_refuses(module(out_of_sight, table=torch.zeros(4)), CaptureError, "'table'", "tracing does not see")


def test_mutated_input_that_is_returned_is_never_captured_wrongly() -> None:
    model = module(lambda self, x: x.relu_())
    try:
        run = capture(model, (X,)).graph.to_module()
    except CaptureError:
        assert_refuses(model, CaptureError, "output 0", "input 0", "return a copy")
    else:
        x = X.clone()
        assert run(x) is x
