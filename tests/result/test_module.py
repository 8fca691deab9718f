"""The result as a module: calls, attributes, state_dict, modes."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rewrite.errors import CaptureError, InputError, RewriteError
from rewrite.result import OptimizedModule, TransformedModule
from tests.result.programs import Compiler, Net, close, image, net, optimize, spread, transform


@pytest.fixture
def model() -> nn.Module:
    return net()


def test_any_batch_runs_on_one_program(model: nn.Module) -> None:
    fast = optimize(model, image(1))
    for batch in (1, 2, 5, 0):
        x = image(batch)
        assert fast(x).shape == model(x).shape
        assert batch == 0 or close(fast(x), model(x))
    assert fast._engine._compile_program.calls == 1


def test_another_size_is_captured_once(model: nn.Module) -> None:
    fast = optimize(model, image())
    for size in (12, 8, 12, 10, 10):
        assert close(fast(image(2, size)), model(image(2, size)))
    assert fast._engine._compile_program.calls == 3
    assert fast.report == "report 1"


def test_the_first_call_captures(model: nn.Module) -> None:
    fast = optimize(model)
    with pytest.raises(RewriteError, match="has not been captured yet"):
        _ = fast.report
    with pytest.raises(RewriteError, match="has not been captured yet"):
        _ = fast.graph_module
    assert close(fast(image()), model(image()))
    assert (fast.report, fast._engine._compile_program.calls) == ("report 1", 1)


class Signature(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: dict[str, Tensor], *rest: Tensor, scale: Tensor | None = None, flip: bool = False) -> Any:
        y = self.linear(x["a"]) + sum(rest)
        if scale is not None:
            y = y * scale
        return {"y": y.flip(0) if flip else y, "x": x["a"], "n": None, "pair": (y.relu(), x["a"].shape[1])}


def test_the_signature_is_the_users() -> None:
    model = Signature().eval()
    fast = optimize(model)
    a, b, scale = torch.randn(3, 4), torch.randn(3, 4), torch.randn(4)
    for rest, kwargs in (((), {}), ((b,), {}), ((b, b), {"scale": scale}), ((), {"flip": True})):
        found, expected = fast({"a": a}, *rest, **kwargs), model({"a": a}, *rest, **kwargs)
        assert close(found["y"], expected["y"])
        assert close(found["pair"][0], expected["pair"][0])
        assert found["x"] is a
        assert (found["n"], found["pair"][1]) == (None, 4)
    assert fast._engine._compile_program.calls == 4
    fast({"a": a}, flip=True)
    fast({"a": a}, flip=False)
    assert fast._engine._compile_program.calls == 5


def test_arguments_that_no_graph_can_take() -> None:
    with pytest.raises(InputError, match="an argument is a bytearray, which a graph cannot take"):
        optimize(Signature().eval())({"a": torch.randn(3, 4)}, flip=bytearray(1))


def test_state_dict_has_the_keys_of_the_model_in_order(model: nn.Module) -> None:
    fast = optimize(model, image())
    mine, theirs = fast.state_dict(), model.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert mine._metadata == theirs._metadata
    assert [name for name, _ in fast.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert [name for name, _ in fast.named_buffers()] == [name for name, _ in model.named_buffers()]
    copy.deepcopy(model).load_state_dict(mine)


def test_the_tree_follows_a_replaced_parameter_before_the_next_call(model: nn.Module) -> None:
    fast = optimize(model, image())
    model.fc.weight = nn.Parameter(torch.ones(5, 8))
    assert torch.equal(fast.fc.weight, torch.ones(5, 8))
    model.fc.weight = nn.Parameter(torch.zeros(5, 8))
    assert torch.equal(fast.state_dict()["fc.weight"], torch.zeros(5, 8))
    assert close(fast(image()), model(image()))


def test_attributes_read_through(model: nn.Module) -> None:
    fast = optimize(model, image())
    assert (fast.num_classes, fast.pretrained_cfg["input_size"]) == (5, (3, 8, 8))
    model.num_classes = 9
    assert fast.num_classes == 9
    assert not hasattr(fast, "forward_features")
    with pytest.raises(AttributeError, match="'forward_features' of Net would run the model as it was"):
        fast.forward_features(image())
    with pytest.raises(AttributeError, match="neither the rewritten module nor its Net has 'nothing'"):
        _ = fast.nothing


def test_parts_hold_tensors_only(model: nn.Module) -> None:
    fast = optimize(model, image())
    assert len(fast.stem) == 3
    assert torch.equal(fast.stem[0].weight, model.stem[0].weight)
    assert [type(part).__name__ for part in model.stem] == [part._get_name() for part in fast.stem]
    with pytest.raises(RewriteError, match="Sequential is a part of an optimized module and holds tensors only"):
        fast.stem(image())
    with pytest.raises(RewriteError, match="the structure of an optimized module is fixed, so 'fc'"):
        fast.fc = nn.Linear(8, 3)


def test_modes(model: nn.Module) -> None:
    fast = optimize(model, image())
    assert fast.eval() is fast
    assert fast.train(False) is fast
    assert not any(part.training for part in fast.modules())
    for part in (fast, fast.stem):
        with pytest.raises(RewriteError, match=r"use rewrite\.transform to train"):
            part.train()


def test_graph_module_runs_by_itself(model: nn.Module) -> None:
    fast = optimize(model, image())
    alone = fast.graph_module
    assert close(alone(image(3)), model(image(3)))
    assert {str(node.target) for node in alone.graph.nodes if "batch_norm" in str(node.target)} == set()
    assert {"folded_1.weight", "folded_1.bias"} <= dict(alone.named_buffers()).keys()
    assert dict(alone.named_parameters()).keys() == {"fc.weight", "fc.bias"}
    assert fast.graph_module is alone
    with torch.no_grad():
        model.stem[1].weight.mul_(2)
    assert fast.graph_module is not alone
    assert close(fast.graph_module(image()), model(image()))


def test_outputs_require_no_gradient_of_weights(model: nn.Module) -> None:
    fast = optimize(model, image())
    assert not fast(image()).requires_grad


def test_gradients_reach_the_inputs(model: nn.Module) -> None:
    fast = optimize(model, image())
    x, y = image().requires_grad_(), image().requires_grad_()
    fast(x).square().sum().backward()
    model(y).square().sum().backward()
    assert close(x.grad, y.grad)
    assert all(parameter.grad is None for parameter in fast.parameters())


def test_modes_of_the_caller(model: nn.Module) -> None:
    x = image()
    expected = model(x)
    for first in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        fast = optimize(model)
        with first():
            assert close(fast(x), expected)
        with torch.no_grad():
            model.stem[0].weight.mul_(1.0)
        with torch.inference_mode():
            assert close(fast(x), expected)
            assert close(fast(image()), expected)
        assert not fast.graph_module.get_buffer("folded_1.weight").is_inference()
        leaf = image().requires_grad_()
        fast(leaf).sum().backward()
        assert leaf.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast(model: nn.Module, dtype: torch.dtype) -> None:
    fast, x = optimize(model), image().to(dtype)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        out = fast(x)
        assert out.dtype is model(x).dtype is torch.bfloat16
        assert close(out, model(x), 3e-2)
    full = optimize(model, image()).graph_module
    assert torch.equal(fast.graph_module.get_buffer("folded_1.bias"), full.get_buffer("folded_1.bias"))
    assert close(fast(image()), model(image()))
    assert fast._engine._compile_program.calls == 1


def test_capture_is_in_the_callers_thread_of_modes(model: nn.Module) -> None:
    """A model that is in training mode when a new size comes cannot be captured, and the message says what to do."""
    fast = optimize(model, image())
    model.train()
    fast(image())
    with pytest.raises(InputError, match=r"training mode; call model\.eval"):
        fast(image(2, 14))


def test_layouts(model: nn.Module) -> None:
    fast = optimize(model, image())
    x = image().to(memory_format=torch.channels_last)
    assert close(fast(x), model(x))
    assert close(fast(x.transpose(2, 3)), model(x.transpose(2, 3)))
    assert close(fast(image(4)[::2]), model(image(4)[::2]))


def test_wrappers_are_taken_off(model: nn.Module) -> None:
    compiled = torch.compile(model, backend="eager")
    fast = OptimizedModule(compiled, Compiler(model))
    assert list(fast.state_dict()) == list(model.state_dict())
    assert close(fast(image()), model(image()))


def test_the_result_inside_torch_compile(model: nn.Module) -> None:
    fast = optimize(model, image())

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = fast

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x * 2) + 1

    outer = torch.compile(Outer(), backend="eager")
    with torch.no_grad():
        assert close(outer(image()), model(image() * 2) + 1)
        model.fc.weight.mul_(2)
        assert close(outer(image()), model(image() * 2) + 1)


def test_whoever_inspects_finds_the_users_signature() -> None:
    model = Signature().eval()
    assert inspect.signature(optimize(model).forward) == inspect.signature(model.forward)
    trained = transform(model, {"a": torch.randn(3, 4)})
    assert inspect.signature(trained.forward) == inspect.signature(model.forward)
    assert isinstance(trained, TransformedModule)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_transforms_of_the_result(model: nn.Module) -> None:
    fast, x = optimize(model, image()), image()
    jacobian = torch.func.jacrev(lambda x: fast(x).sum(0))(x)
    assert close(jacobian, torch.func.jacrev(lambda x: model(x).sum(0))(x))
    assert close(torch.func.jvp(fast, (x,), (x,))[1], torch.func.jvp(model, (x,), (x,))[1])
    assert close(torch.func.vmap(lambda x: fast(x[None])[0])(x), model(x))


def test_tensors_without_an_address(model: nn.Module) -> None:
    model.register_buffer("adjacency", torch.eye(3).to_sparse())
    fast = optimize(model, image())
    assert close(fast(image()), model(image()))
    assert fast.state_dict()["adjacency"].layout is torch.sparse_coo
    assert close(copy.deepcopy(fast)(image()), model(image()))


def test_lazy_modules_are_refused() -> None:
    with pytest.raises(CaptureError, match="'weight' is not initialized; call the model once"):
        optimize(nn.LazyLinear(3).eval())


def test_plain_tensor_attributes_are_followed() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.scale = torch.rand(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.scale

    model, x = Scaled().eval(), torch.randn(2, 4)
    fast = optimize(model, x)
    assert close(fast(x), model(x))
    model.scale.add_(1)
    assert close(fast(x), model(x))
    model.scale = torch.rand(4)
    assert close(fast(x), model(x))
    twin = copy.deepcopy(fast)
    before = fast(x)
    model.scale = torch.rand(4)
    assert torch.equal(twin(x), before)
    assert close(fast(x), model(x))


def test_constants_of_two_programs_do_not_mix() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * torch.tensor([float(x.shape[1]), 2.0, 3.0, 4.0])

    model = Table().eval()
    fast = OptimizedModule(model, Compiler(model))
    for size in (3, 5, 3, 5):
        x = torch.randn(2, size, 4)
        assert close(fast(x), model(x))


def test_a_model_without_weights() -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu()

    fast = optimize(Plain().eval(), image())
    assert torch.equal(fast(image(4)), image(4).relu())
    assert list(fast.state_dict()) == []


def test_a_net_with_another_width_reads_its_own_program() -> None:
    one, two = spread(Net(classes=2)).eval(), spread(Net(classes=4)).eval()
    assert close(optimize(one)(image()), one(image()))
    assert close(optimize(two)(image()), two(image()))
