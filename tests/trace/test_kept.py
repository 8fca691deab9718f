"""What capture keeps of a model: its values, its call, its memory, its gradients."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from rewrite.graph import Mutation
from rewrite.provenance import location
from rewrite.trace import capture
from tests.trace.support import assert_captures, assert_equal, module, own, targets

Pair = collections.namedtuple("Pair", "left right")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.norm(self.conv(x))).mean((2, 3)))


def test_weights_are_the_users_own_tensors() -> None:
    model = Block().eval()
    graph = assert_captures(model, torch.randn(2, 3, 8, 8)).graph
    assert graph.weights["conv.weight"] is model.conv.weight
    assert graph.weights["norm.running_mean"] is model.norm.running_mean
    assert set(graph.weights) == {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}


def test_nodes_have_values_modules_and_lines() -> None:
    graph = capture(Block().eval(), (torch.randn(2, 3, 8, 8),)).graph
    for node in graph.calls():
        assert {"val", "nn_module_stack", "stack_trace"} <= set(node.meta)
    conv = next(node for node in graph.calls() if node.target is torch.ops.aten.conv2d.default)
    assert list(conv.meta["nn_module_stack"].values())[-1][0] == "conv"
    assert "self.head(F.gelu(self.norm(self.conv(x)))" in conv.meta["stack_trace"]
    for node in graph.nodes:
        assert node.op == "output" or "val" in node.meta


def helper(model: Any, x: Tensor) -> Tensor:
    y = model.conv(x)
    return F.gelu(y)


class Delegating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def implementation(self, x: Tensor) -> Tensor:
        return helper(self, x) + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.implementation(x)


def test_the_line_is_that_of_the_helper_which_forward_calls() -> None:
    graph = capture(Delegating().eval(), (torch.randn(2, 3, 8, 8),)).graph
    lines = [found.text for node in graph.calls() if (found := location(node)) is not None]
    assert lines == ["y = model.conv(x)", "return F.gelu(y)", "return helper(self, x) + 1"]


def test_a_line_in_another_installed_package_is_the_callers() -> None:
    def trace(*frames: tuple[str, str]) -> str:
        return "\n".join(f'  File "{file}", line 3, in {name}\n    text of {file}' for file, name in frames)

    def line(*frames: tuple[str, str]) -> str:
        node = torch.fx.Graph().placeholder("x")
        node.meta["stack_trace"] = trace(*frames)
        found = location(node)
        return found.file if found else ""

    mine, theirs, others = "/home/net.py", "/v/site-packages/timm/net.py", "/v/site-packages/einops/einops.py"
    assert line((mine, "forward"), (others, "rearrange")) == mine
    assert line((theirs, "forward"), ("/v/site-packages/timm/layers.py", "drop")) == "/v/site-packages/timm/layers.py"
    assert line((theirs, "forward"), (others, "rearrange")) == theirs
    assert line((others, "forward"), (mine, "called_back")) == mine


def test_plain_tensor_attributes_keep_identity_and_name() -> None:
    model = module(lambda self, x: x + self.table[0] + self.bare)
    model.table = [torch.ones(4)]
    object.__setattr__(model, "bare", torch.full((4,), 2.0))
    graph = assert_captures(model, torch.randn(2, 4)).graph
    assert any(tensor is model.table[0] for tensor in graph.weights.values())
    assert graph.weights["bare"] is model.bare


def test_arguments_and_results_keep_their_structure() -> None:
    def forward(self: Any, x: Any, *, scale: Tensor, mask: Any = None, flag: bool = True) -> Any:
        y = x["a"] * scale + x["b"][0]
        return {"y": y, "nested": [(y + 1, None)], "pair": Pair(y * 2, 7), "flag": flag}

    x = {"a": torch.randn(3, 4), "b": (torch.randn(3, 4),)}
    captured = assert_captures(module(forward), x, scale=torch.ones(4), mask=None, flag=False)
    assert captured.notes == ("argument 'flag' is fixed at False",)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_registered_dataclass_is_returned() -> None:
    @dataclasses.dataclass
    class Result:
        value: Tensor

    torch.export.register_dataclass(Result, serialized_type_name="tests.trace.Result")
    captured = capture(module(lambda self, x: Result(x + 1)), (torch.ones(2, 2),))
    assert torch.equal(captured.graph.to_module()(torch.ones(2, 2)).value, torch.full((2, 2), 2.0))


def test_tied_weights_are_one_value() -> None:
    a, b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    b.weight = a.weight
    graph = assert_captures(module(lambda self, x: self.b(self.a(x)), a=a, b=b), torch.randn(3, 4)).graph
    assert len(graph.weights) == 1
    assert next(iter(graph.weights.values())) is a.weight


def test_one_tensor_under_two_names_is_one_value() -> None:
    table = torch.randn(4)
    model = module(lambda self, x: x * self.a + self.b + self.listed[0], a=table, b=table)
    model.listed = [table]
    graph = assert_captures(model, torch.randn(3, 4)).graph
    assert [id(tensor) for tensor in graph.weights.values()] == [id(table)]


def test_shared_module_keeps_both_calls() -> None:
    conv, first, second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    for norm in (first, second):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.weight)
    model = module(lambda self, x: self.first(self.conv(x)) + self.second(self.conv(x)), conv=conv, first=first,
                   second=second)  # fmt: skip
    captured = assert_captures(model, torch.randn(2, 3, 4, 4))
    assert targets(captured).count("aten.conv2d.default") == 2


def test_unused_weights_are_dropped() -> None:
    model = module(lambda self, x: self.a(x), a=nn.Linear(4, 4), unused=nn.Linear(4, 4), spare=torch.ones(3))
    assert set(assert_captures(model, torch.randn(3, 4)).graph.weights) == {"a.weight", "a.bias"}


@pytest.mark.parametrize("style", ["old", "new", "spectral"])
def test_reparametrized_weights(style: str) -> None:
    linear = nn.Linear(4, 4)
    if style == "old":
        with pytest.warns(FutureWarning):
            linear = nn.utils.weight_norm(linear)
    elif style == "new":
        linear = parametrizations.weight_norm(linear)
    else:
        linear = parametrizations.spectral_norm(linear)
    model = module(lambda self, x: self.linear(x), linear=linear)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    captured = assert_captures(model, torch.randn(3, 4))
    assert captured.notes == () or style == "old"
    # the graph reads the sources, not the product
    sources = {id(t) for t in model.parameters()}
    assert {id(t) for t in captured.graph.weights.values()} & sources


def test_hooks_are_part_of_the_model() -> None:
    inner = nn.Linear(4, 4)
    inner.register_forward_hook(lambda m, args, out: out * 3)
    inner.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    model = module(lambda self, x: self.inner(x), inner=inner)
    model.register_forward_hook(lambda m, args, out: out - 5)
    assert_captures(model, torch.randn(3, 4))


def test_constants_and_creation() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = x + torch.tensor([1.0, 2, 3, 4]) + torch.arange(4) + torch.eye(4)[1] + torch.linspace(0, 1, 4)
        return y + torch.ones(x.shape[0], 4) + torch.full((4,), 0.5) + torch.zeros_like(x) + x.new_ones(4)

    captured = assert_captures(module(forward), torch.randn(3, 4))
    assert "lifted_tensor_0" in captured.graph.weights


def test_custom_module_outside_nn_is_seen_through() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (1, 1, 1, 1))) * 2

    assert_captures(module(lambda self, x: self.conv(x), conv=Doubled(3, 4, 3)), torch.randn(2, 3, 5, 5))


# -- writes -----------------------------------------------------------------------------------------------------------


def test_in_place_operators_and_views() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = x * 2
        view = y[:, 1:]
        view.add_(1)
        y[0] = 7
        y += 1
        y.relu_()
        return y, view, F.relu(y, inplace=True)

    graph = assert_captures(module(forward), torch.randn(3, 4)).graph
    assert graph.signature.mutations == ()


def test_input_that_is_written() -> None:
    captured = assert_captures(module(lambda self, x: x.relu_() * 2), torch.randn(3, 4))
    assert captured.graph.signature.mutations == (Mutation("input", captured.graph.inputs[0].target),)


def test_buffer_that_is_written_stays_the_users() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.steps.add_(1)
        return x * self.steps

    model = module(forward, steps=torch.zeros(()))
    captured = capture(model, (torch.randn(3, 4),))
    assert captured.graph.signature.mutations == (Mutation("weight", "steps"),)
    assert model.steps == 0
    run = captured.graph.to_module()
    x = torch.randn(3, 4)
    assert torch.equal(run(x), x * 1)
    assert torch.equal(run(x), x * 2)
    assert model.steps == 2


def test_buffer_that_is_assigned() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.steps = self.steps + x.sum()
        return x * self.steps

    graph = assert_captures(module(forward, steps=torch.zeros(())), torch.randn(3, 4)).graph
    assert graph.signature.mutations == (Mutation("weight", "steps"),)


def test_buffer_that_is_only_written() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.last.copy_(x[0])
        return x + 1

    model = module(forward, last=torch.zeros(4))
    run = assert_captures(model, torch.randn(3, 4)).graph.to_module()
    x = torch.randn(3, 4)
    run(x)
    assert torch.equal(model.last, x[0])


def test_batch_norm_in_training_updates_its_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    captured = assert_captures(model, torch.randn(4, 3, 5, 5), training=True)
    written = {mutation.target for mutation in captured.graph.signature.mutations}
    assert written == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    x = torch.randn(4, 3, 5, 5)
    eager = own(model)
    with torch.no_grad():
        eager(x)
        captured.graph.to_module()(x)
    assert_equal(dict(model[1].named_buffers()), dict(eager[1].named_buffers()))


def test_dropout_in_training_stays_random() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)).train()
    run = capture(model, (torch.randn(8, 64),), training=True).graph.to_module()
    x = torch.randn(8, 64)
    assert not torch.equal(run(x), run(x))
    assert 0.3 < float((run(x) == 0).float().mean()) < 0.7


# -- memory -----------------------------------------------------------------------------------------------------------


def test_outputs_alias_what_they_aliased() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = x + 1
        return x, x.view(-1), x[0], y, y, y.t(), self.table, y.clone()

    model = module(forward, table=torch.ones(2))
    run = assert_captures(model, torch.randn(3, 4)).graph.to_module()
    x = torch.randn(3, 4)
    same, flat, row, y, again, turned, table, copied = run(x)
    assert same is x
    assert again is y
    assert flat.data_ptr() == row.data_ptr() == x.data_ptr()
    assert turned.data_ptr() == y.data_ptr() != x.data_ptr()
    assert table is model.table
    assert copied.data_ptr() != y.data_ptr()


@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5), nn.Identity()])
def test_modules_that_return_their_input_still_do(dropout: nn.Module) -> None:
    run = assert_captures(module(lambda self, x: self.drop(x), drop=dropout), torch.randn(2, 3, 4, 4)).graph.to_module()
    x = torch.randn(2, 3, 4, 4)
    assert run(x).data_ptr() == x.data_ptr()


def test_copies_stay_copies() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return x.clone().view(-1), x.clone(memory_format=torch.contiguous_format).flatten(), x.t().reshape(-1)

    run = assert_captures(module(forward), torch.randn(3, 4)).graph.to_module()
    x = torch.randn(3, 4)
    assert all(out.data_ptr() != x.data_ptr() for out in run(x))


def test_conversion_that_changes_nothing_returns_the_input() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return x.to(torch.float32), x.float(), x.contiguous(), x.type_as(x), x.cpu()

    run = assert_captures(module(forward), torch.randn(3, 4)).graph.to_module()
    x = torch.randn(3, 4)
    assert all(out.data_ptr() == x.data_ptr() for out in run(x))


# -- gradients --------------------------------------------------------------------------------------------------------


def gradients(run: Any, model: nn.Module, x: Tensor) -> list[Tensor | None]:
    x = x.clone().requires_grad_()
    out = run(x)
    found = torch.autograd.grad(out.square().sum(), [x, *model.parameters()], allow_unused=True)
    return list(found)


@pytest.mark.parametrize("kind", ["no_grad", "detach", "enable inside", "decorated", "autocast inside"])
def test_gradients_are_the_models(kind: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        if kind == "detach":
            return y * torch.sigmoid(y).detach()
        with torch.no_grad():
            gate = torch.sigmoid(self.b(y))
            if kind == "enable inside":
                with torch.enable_grad():
                    y = y * self.b(gate)
                gate = gate + y.detach()
            elif kind == "autocast inside":
                with torch.autocast("cpu", torch.bfloat16):
                    gate = gate * self.b(y).float()
        return y * gate

    def decorated(self: Any, x: Tensor) -> Tensor:
        return self.a(x) * gate_of(self, x)

    @torch.no_grad()
    def gate_of(self: Any, x: Tensor) -> Tensor:
        return torch.sigmoid(self.b(x))

    model = module(decorated if kind == "decorated" else forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).train()
    x = torch.randn(3, 4)
    run = capture(model, (x,), training=True).graph.to_module()
    expected = gradients(model, model, x)
    assert any(g is None for g in expected) or kind in ("enable inside", "detach")
    for found, right in zip(gradients(run, model, x), expected, strict=True):
        torch.testing.assert_close(
            torch.zeros(()) if found is None else found, torch.zeros(()) if right is None else right
        )


def test_caller_without_gradients_does_not_change_them() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = torch.sigmoid(x)
        return self.a(x) * gate

    model = module(forward, a=nn.Linear(4, 4))
    x = torch.randn(3, 4)
    with torch.no_grad():
        run = capture(model, (x,)).graph.to_module()
    for found, right in zip(gradients(run, model, x), gradients(model, model, x), strict=True):
        torch.testing.assert_close(found, right)


def test_gradients_of_a_block() -> None:
    model = Block().eval()
    x = torch.randn(2, 3, 8, 8)
    run = capture(model, (x,)).graph.to_module()
    for found, right in zip(gradients(run, model, x), gradients(model, model, x), strict=True):
        torch.testing.assert_close(found, right)


def test_checkpoints_are_noted_in_training() -> None:
    from torch.utils.checkpoint import checkpoint

    for reentrant in (True, False):
        model = module(
            lambda self, x, reentrant=reentrant: checkpoint(self.a, x, use_reentrant=reentrant), a=nn.Linear(4, 4)
        ).train()
        notes = capture(model, (torch.randn(3, 4),), training=True).notes
        assert any("checkpoint" in note for note in notes)


class Sevenfold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 7 * grad


def test_custom_backward_is_noted_for_inference() -> None:
    notes = assert_captures(module(lambda self, x: Sevenfold.apply(x)), torch.randn(3, 4)).notes
    assert notes == ("the backward of the autograd function 'Sevenfold' is not kept",)
    assert "watched" not in repr(torch.autograd.Function.apply)


# -- the surroundings -------------------------------------------------------------------------------------------------


def test_capture_does_not_depend_on_the_callers_modes() -> None:
    model, x = Block().eval(), torch.randn(2, 3, 8, 8)
    plain = str(capture(model, (x,)).graph.fx)
    with torch.no_grad():
        assert str(capture(model, (x,)).graph.fx) == plain
    with torch.inference_mode():
        assert str(capture(model, (x,)).graph.fx) == plain
    with torch.autocast("cpu", torch.bfloat16):
        assert str(capture(model, (x,)).graph.fx) == plain


def test_autocast_inside_forward_is_kept_and_outside_is_obeyed() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.a(x)

    captured = assert_captures(module(forward, a=nn.Linear(4, 4)), torch.randn(3, 4))
    assert captured.graph.outputs[0].meta["val"].dtype == torch.bfloat16
    plain = capture(nn.Linear(4, 4).eval(), (torch.randn(3, 4),)).graph.to_module()
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(torch.randn(3, 4)).dtype == torch.bfloat16


def test_input_made_in_inference_mode() -> None:
    model = Block().eval()
    with torch.inference_mode():
        x = torch.randn(2, 3, 8, 8)
        expected = model(x)
    with torch.no_grad():
        assert_equal(capture(model, (x,)).graph.to_module()(x), expected)


def test_a_number_read_from_a_tensor() -> None:
    assert_captures(
        module(lambda self, x: x * x.sum().item() + self.scale.item(), scale=torch.tensor(3.0)), torch.ones(3, 4)
    )


def test_a_weight_given_as_input() -> None:
    model = module(lambda self, x, w: x @ w + self.linear(x), linear=nn.Linear(4, 4))
    run = capture(model, (torch.randn(3, 4), model.linear.weight)).graph.to_module()
    x, w = torch.randn(3, 4), torch.randn(4, 4)
    assert_equal(run(x, w), model(x, w))


def test_random_models_draw_anew() -> None:
    captured = capture(module(lambda self, x: x + torch.randn(4) * torch.rand_like(x)), (torch.randn(3, 4),))
    run = captured.graph.to_module()
    x = torch.zeros(3, 4)
    assert not torch.equal(run(x), run(x))
