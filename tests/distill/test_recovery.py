"""What a student learns, and what happens to its teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rewrite
from rewrite.distillation import Observable
from rewrite.distillation.observing import is_observable
from tests.distill.models import SIZE, Blocks, Counting, Watched, Wrapped, assert_same, batches, error, pair, state

HELD = torch.randn(64, SIZE, generator=torch.Generator().manual_seed(3))


def quick(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)


def changed(student, before):
    return {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}


# -- learning ---------------------------------------------------------------------------------------------------------


def test_a_perturbed_student_recovers():
    student, teacher = pair()
    before = error(student, teacher, HELD)
    done = rewrite.distill(student, teacher, batches(), epochs=60)
    assert done.student is student
    assert error(student, teacher, HELD) < before / 20
    (stage,) = done.stages
    assert stage.name == "outputs"
    assert len(stage.losses) == 60 * 8
    assert len(stage.epochs) == 60
    assert stage.epochs[-1] < stage.epochs[0] / 20
    assert stage.epochs[1] == pytest.approx(sum(stage.losses[8:16]) / 8)


def test_the_loss_is_relative_to_the_energy_of_the_teacher():
    student, teacher = pair()
    x = batches(1)[0]
    expected = error(student, teacher, x)
    for factor in (1.0, 1e-3, 1e3):
        made = [copy.deepcopy(module) for module in (student, teacher)]
        for module in made:
            module.head.weight.data *= factor
            module.head.bias.data *= factor
        done = rewrite.distill(*made, [x], steps=1)
        assert done.stages[0].losses[0] == pytest.approx(expected, rel=1e-4)


def test_a_teacher_of_zeros_gives_a_finite_loss():
    student, teacher = pair()
    nn.init.zeros_(teacher.head.weight)
    nn.init.zeros_(teacher.head.bias)
    x = batches(1)[0]
    expected = student(x).square().mean().item()
    assert rewrite.distill(student, teacher, [x], steps=1).stages[0].losses == [pytest.approx(expected)]


def test_logits_are_compared_as_distributions_at_a_temperature():
    student, teacher = pair()
    x = batches(1)[0]
    logs = [torch.log_softmax(module(x) / 3, 1) for module in (student, teacher)]
    expected = 9 * (logs[1].exp() * (logs[1] - logs[0])).sum(1).mean().item()
    done = rewrite.distill(student, teacher, [x] * 100, loss="kl", temperature=3.0)
    assert done.stages[0].losses[0] == pytest.approx(expected, rel=1e-4)
    assert done.stages[0].losses[-1] < expected / 5


def test_what_is_no_logits_is_compared_by_squares():
    student, teacher = (Wrapped(one, lambda y: {"a": y, "b": y[:, :, None], "c": y.argmax(1)}) for one in pair())
    x = batches(1)[0]
    kl, mse = (rewrite.distill(copy.deepcopy(student), teacher, [x], loss=loss).stages[0].losses[0]
               for loss in ("kl", "mse"))  # fmt: skip
    one = rewrite.distill(copy.deepcopy(student.inner), teacher.inner, [x], loss="kl").stages[0].losses[0]
    assert mse == pytest.approx(2 * error(student.inner, teacher.inner, x))
    assert kl == pytest.approx(one + mse / 2)


def test_a_loss_of_ones_own_gets_both_outputs():
    student, teacher = pair()
    seen = []

    def loss(ours, theirs):
        seen.append((ours.requires_grad, theirs.requires_grad))
        return (ours[:, :1] - theirs[:, :1]).abs().mean()

    before = student.head.weight[1:].clone()
    losses = rewrite.distill(student, teacher, batches(), loss=loss, epochs=20, optimizer=quick).stages[0].losses
    assert seen[0] == (True, False)
    assert losses[-1] < losses[0] / 3
    assert torch.equal(student.head.weight[1:], before)


# -- block by block ---------------------------------------------------------------------------------------------------


def test_blocks_alone_train_what_is_before_boundaries():
    student, teacher = pair()
    before = state(student)
    done = rewrite.distill(student, teacher, batches(), boundaries=["first", "second"], blocks=60, epochs=0,
                           optimizer=quick)  # fmt: skip
    assert changed(student, before) == {name for name in before if not name.startswith("head")}
    (stage,) = done.stages
    assert stage.name == "blocks"
    assert set(stage.boundaries) == {"first", "second"}
    for first, last in stage.boundaries.values():
        assert last < first / 10
    assert sum(last for _, last in stage.boundaries.values()) == pytest.approx(stage.losses[-1])


def test_both_stages_follow_each_other():
    student, teacher = pair()
    done = rewrite.distill(student, teacher, batches(), boundaries=["second"], steps=20)
    assert [(stage.name, len(stage.losses)) for stage in done.stages] == [("blocks", 20), ("outputs", 20)]
    assert [stage.stopped for stage in done.stages] == ["after 20 steps"] * 2
    done = rewrite.distill(student, teacher, batches(), boundaries=["second"], blocks=0, epochs=2)
    assert [stage.name for stage in done.stages] == ["outputs"]


def test_boundaries_have_the_values_before_they_are_overwritten():
    """The layer before an activation in place, in a model of other names."""
    student, teacher = pair()
    other = nn.Sequential(*teacher.first, teacher.second[0], nn.ReLU(), teacher.head)
    x = batches(1)[0]
    linear = [module.second[0](module.first(x)).detach() for module in (student, teacher)]
    expected = float((linear[0] - linear[1]).square().mean() / linear[1].square().mean())
    done = rewrite.distill(student, other, [x], boundaries={"second.0": "2"}, steps=1)
    assert done.stages[0].losses[0] == pytest.approx(expected, rel=1e-5)


def test_a_module_that_is_called_twice_is_compared_twice():
    class Twice(Blocks):
        def forward(self, x):
            return self.head(self.second(self.second(self.first(x))))

    student, teacher = pair(make=Twice)
    done = rewrite.distill(student, teacher, batches(1), boundaries=["second"], steps=1)
    assert len(done.stages[0].boundaries) == 1
    single, other = pair()
    once = rewrite.distill(single, other, batches(1), boundaries=["second"], steps=1)
    assert done.stages[0].losses[0] > 1.2 * once.stages[0].losses[0]


def test_a_student_that_names_its_own_boundaries():
    inner, teacher = pair()
    source = Watched(teacher)
    student: Observable = Watched(inner, source)
    assert is_observable(student)
    assert not is_observable(teacher)
    before = state(student)
    done = rewrite.distill(student, teacher, batches(), blocks=30, epochs=0, optimizer=quick)
    assert set(student.asked) == {("one", "two")} == set(source.asked)
    assert done.stages[0].losses[-1] < done.stages[0].losses[0] / 5
    assert changed(student, before) == {name for name in before if "head" not in name}
    student.asked.clear()
    rewrite.distill(student, Watched(teacher), batches(), boundaries=["one"], blocks=1, epochs=0)
    assert set(student.asked) == {("one",)}


def test_an_observable_student_without_anything_to_compare_with_trains_end_to_end():
    inner, teacher = pair()
    done = rewrite.distill(Watched(inner), teacher, batches())
    assert [stage.name for stage in done.stages] == ["outputs"]
    with pytest.raises(rewrite.InputError, match=r"neither Watched.source nor the teacher"):
        rewrite.distill(Watched(inner), teacher, batches(), boundaries=["one"])
    with pytest.raises(rewrite.InputError, match="no boundary 'on'; did you mean 'one'"):
        rewrite.distill(Watched(inner, Watched(teacher)), teacher, batches(), boundaries=["on"])


# -- the teacher ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_the_teacher_is_left_as_it_was(fails):
    student, teacher = pair(make=Counting)
    teacher.train()
    teacher.norm.eval()
    teacher.fc.bias.requires_grad_(False)
    modes = {name: module.training for name, module in teacher.named_modules()}
    flags = {name: parameter.requires_grad for name, parameter in teacher.named_parameters()}
    ids = {name: id(value) for name, value in teacher.named_parameters()}
    before = state(teacher)
    during = []
    own = teacher.norm.register_forward_hook(lambda module, args, output: during.append(module.training))
    data = batches()
    if fails:
        data[3] = data[3] * float("nan")
        with pytest.raises(rewrite.InputError):
            rewrite.distill(student, teacher, data, boundaries=["norm"])
    else:
        rewrite.distill(student, teacher, data, boundaries=["norm"])
    assert during
    assert not any(during)
    assert_same(state(teacher), before)
    assert {name: module.training for name, module in teacher.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in teacher.named_parameters()} == flags
    assert {name: id(value) for name, value in teacher.named_parameters()} == ids
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert list(teacher.norm._forward_hooks) == [own.id]
    assert not student.norm._forward_hooks
    assert not teacher.fc._forward_hooks


def test_the_student_keeps_its_mode():
    for training in (False, True):
        student, teacher = pair(make=Counting)
        student.train(training)
        rewrite.distill(student, teacher, batches(), validation=batches(2))
        assert student.norm.training is training
        assert (student.norm.num_batches_tracked > 0) == training


def test_shared_weights_are_refused_and_frozen_ones_shared():
    student, teacher = pair()
    student.first = teacher.first
    with pytest.raises(rewrite.InputError, match=r"'first.0.weight' is the teacher's 'first.0.weight'.*deepcopy"):
        rewrite.distill(student, teacher, batches())
    teacher.first.requires_grad_(False)
    before = state(teacher)
    rewrite.distill(student, teacher, batches())
    assert_same(state(teacher), before)


# -- what is given ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrap", "inputs"), [
    (lambda x: x, None),
    (lambda x: (x, 1.0), None),
    (lambda x: [x], None),
    (lambda x: {"x": x, "scale": 1.0}, None),
    (lambda x: (x, torch.zeros(len(x))), lambda batch: batch[0]),
    (lambda x: {"image": x, "label": 3}, lambda batch: {"x": batch["image"]}),
])  # fmt: skip
def test_batches_of_every_form(wrap, inputs):
    plain, teacher = pair()
    student = copy.deepcopy(plain)
    rewrite.distill(plain, teacher, batches())
    rewrite.distill(student, teacher, [wrap(x) for x in batches()], inputs=inputs)
    assert_same(state(student), state(plain))


def test_loaders_and_iterators():
    student, teacher = pair()
    loader = DataLoader(TensorDataset(torch.cat(batches())), batch_size=16)
    plain = copy.deepcopy(student)
    rewrite.distill(student, teacher, loader, epochs=2)
    rewrite.distill(plain, teacher, batches(), epochs=2)
    assert_same(state(student), state(plain))
    done = rewrite.distill(student, teacher, iter(batches()), epochs=1)
    assert len(done.stages[0].losses) == 8
    assert len(rewrite.distill(student, teacher, iter(batches()), steps=5).stages[0].losses) == 5


def test_a_transformed_student_and_an_optimized_teacher():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    x = [torch.randn(4, 3, 6, 6) for _ in range(4)]
    twin = copy.deepcopy(model)
    twin[0].weight.data.mul_(1.3)
    student = rewrite.transform(twin, x[0])
    teacher = rewrite.optimize(model, x[0], lower="eager")
    done = rewrite.distill(student, teacher, x, epochs=30, validation=x[:1])
    assert done.stages[0].losses[-1] < done.stages[0].losses[0] / 5
    with pytest.raises(rewrite.InputError, match="no gradients for the student"):
        rewrite.distill(rewrite.optimize(twin, x[0], lower="eager"), model, x)


# -- optimization -----------------------------------------------------------------------------------------------------


def test_optimizer_and_scheduler_are_the_users():
    made = []

    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            made.append(self.param_groups[0]["lr"])
            return super().step(closure)

    student, teacher = pair()
    student.head.bias.requires_grad_(False)
    given = []

    def optimizer(parameters):
        given.append(parameters)
        return Mine(parameters, lr=1.0)

    rewrite.distill(
        student, teacher, batches(), boundaries=["first"], steps=3, optimizer=optimizer,
        scheduler=lambda one: torch.optim.lr_scheduler.ExponentialLR(one, 0.5),
    )  # fmt: skip
    expected = [parameter for name, parameter in student.named_parameters() if name != "head.bias"]
    assert [list(map(id, one)) for one in given] == [list(map(id, expected))] * 2
    assert made == [1.0, 0.5, 0.25] * 2


def test_steps_are_those_of_a_loop_by_hand():
    student, teacher = pair()
    by_hand = copy.deepcopy(student)
    sgd = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for x in batches():
        target = teacher(x).detach()
        loss = (by_hand(x) - target).square().mean() / target.square().mean()
        sgd.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.01)
        sgd.step()
        losses.append(loss.item())
    done = rewrite.distill(student, teacher, batches(), clip=0.01,
                           optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9))  # fmt: skip
    assert done.stages[0].losses == pytest.approx(losses)
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value)


def test_the_rate_of_ours_falls_to_zero(monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def watched(self, *args):
        (group,) = self.param_groups
        rates.append(group["lr"])
        assert group["weight_decay"] == 0
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    rewrite.distill(*pair(), batches(), epochs=2)
    assert rates[0] == 1e-3
    assert len(rates) == 16
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 2e-5


def test_autocast_is_used_and_trains():
    student, teacher = pair()
    kinds = []
    for module in (student, teacher):
        module.head.register_forward_hook(lambda module, args, output: kinds.append(output.dtype))
    losses = rewrite.distill(student, teacher, batches(), epochs=10, autocast=torch.bfloat16).stages[0].losses
    assert set(kinds) == {torch.bfloat16}
    assert losses[-1] < losses[0] / 3
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_no_gradients_are_left():
    student, teacher = pair()
    rewrite.distill(student, teacher, batches())
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("fails", [False, True])
def test_progress_is_shown_and_taken_away(monkeypatch, fails):
    seen = []
    monkeypatch.setattr("rewrite.distillation.loop.Progress", lambda text: lambda *call: seen.append((text, *call)))
    data = batches(3)
    if fails:
        data[1] = data[1] * float("nan")
        with pytest.raises(rewrite.InputError):
            rewrite.distill(*pair(), data, epochs=2)
    else:
        rewrite.distill(*pair(), data, epochs=2)
    steps = [1, 6] if fails else [1, 2, 3, 4, 5, 6]
    assert seen == [("distilling outputs", step, 6) for step in steps]


# -- the history ------------------------------------------------------------------------------------------------------


def test_the_result_prints():
    student, teacher = pair()
    done = rewrite.distill(student, teacher, batches(), boundaries=["first"], epochs=2, validation=batches(2))
    text = str(done)
    assert repr(done) == text
    assert text.startswith("Blocks: distilled in ")
    lines = [line.split() for line in text.splitlines()]
    assert lines[2][:3] == ["blocks", "16", "2"]
    assert lines[3][:3] == ["outputs", "16", "2"]
    assert lines[3][-3:] == ["after", "2", "epochs"]
    assert lines[-1][0] == "first"
    data = done.to_dict()
    assert data["stages"][1]["losses"] == done.stages[1].losses
    assert data["stages"][1]["best"] == done.best == done.stages[1].validation[-1]
