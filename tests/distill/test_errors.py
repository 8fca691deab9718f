"""What does not fit, and what is said of it."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import rewrite
from rewrite import InputError
from tests.distill.models import Blocks, Counting, Watched, Wrapped, assert_same, batches, pair, state


def refused(match, *args, **options):
    with pytest.raises(InputError, match=match) as caught:
        rewrite.distill(*args, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("options", "text"), [
    ({"epochs": -1}, "epochs=-1 does not fit; pass a whole number, 0 or more"),
    ({"epochs": 1.5}, "epochs=1.5 does not fit"),
    ({"steps": -3}, "steps=-3 does not fit"),
    ({"epochs": 1, "steps": 1}, "epochs=1 and steps=1 are both given"),
    ({"epochs": 0}, "epochs=0 leaves nothing to train"),
    ({"blocks": 2}, "blocks=2 needs boundaries inside the student"),
    ({"blocks": -2}, "blocks=-2 does not fit"),
    ({"loss": "kll"}, "loss='kll' is unknown; did you mean 'kl'?"),
    ({"temperature": 0}, "temperature=0 does not fit; pass a positive number"),
    ({"clip": -1.0}, "clip=-1.0 does not fit"),
    ({"patience": 1}, "patience=1 needs validation="),
    ({"validate_every": 1}, "validate_every=1 needs validation="),
    ({"every": 1}, "every=1 needs checkpoint="),
    ({"every": 0, "checkpoint": "x"}, "every=0 does not fit"),
    ({"autocast": torch.float16}, "autocast=torch.float16 loses small gradients on cpu"),
    ({"autocast": torch.float32}, "autocast=torch.float32 is no lower precision"),
    ({"boundaries": "first"}, "boundaries='first' is a text; pass a list, ['first']"),
    ({"boundaries": 3}, "boundaries=3 is no list"),
    ({"boundaries": ["fisrt"]}, "the student has no module 'fisrt'; did you mean 'first'?"),
    ({"boundaries": {"first": "secnd"}}, "the teacher has no module 'secnd'; did you mean 'second'?"),
    ({"inputs": 0}, "inputs=0 is no function"),
    ({"optimizer": lambda parameters: None}, "optimizer= gave a NoneType"),
    ({"scheduler": lambda optimizer: 0}, "scheduler= gave a int"),
    ({"loss": lambda a, b: a - b}, "loss gave a tensor of shape (16, 3)"),
    ({"loss": lambda a, b: 0.0}, "loss gave a float"),
    ({"loss": lambda a, b: b.mean()}, "the loss at step 1 of stage 'outputs' has no gradients"),
    ({"validation": []}, "validation holds no batch"),
])  # fmt: skip
def test_options(options, text):
    refused(re.escape(text), *pair(), batches(1), **options)


@pytest.mark.parametrize(("data", "text"), [
    ([], "batches holds no batch; pass at least one"),
    ([torch.zeros(0, 6)], "batch 0 of batches is empty"),
    ([torch.zeros(2, 6), torch.zeros(0, 6)], "batch 1 of batches is empty"),
    ([()], "batch 0 of batches is a tuple without tensors"),
    (["text"], "batch 0 of batches is a str without tensors"),
    (torch.zeros(2, 6), "batches is one Tensor, not several batches; pass a list, [batches]"),
    ({"x": torch.zeros(2, 6)}, "batches is one dict"),
    (3, "batches is a int, which cannot be iterated over"),
    ([(torch.zeros(2, 6), torch.zeros(2), torch.zeros(2))], "does not take a batch as (Tensor, Tensor, Tensor)"),
    ([{"y": torch.zeros(2, 6)}], "the forward of the student does not take a batch as (y=)"),
])  # fmt: skip
def test_batches(data, text):
    refused(re.escape(text), *pair(), data)


def test_iterators_that_are_needed_again():
    student, teacher = pair()
    refused("batches is an iterator.*for 2 epochs in 1 stage; pass a list", student, teacher, iter(batches()), epochs=2)
    refused("for 2 epochs in 2 stages", student, teacher, iter(batches()), epochs=1, boundaries=["first"])
    refused("ended after 8 steps and cannot begin again", student, teacher, iter(batches()), steps=9)
    refused("validation is an iterator", student, teacher, batches(), validation=iter(batches()))


def test_modules():
    student, teacher = pair()
    refused("is not an nn.Module", student, lambda x: x, batches())
    refused("is a class, not a module", Blocks, teacher, batches())
    refused("a Blocks, has no trainable parameters", student.requires_grad_(False), teacher, batches())


@pytest.mark.parametrize("side", [0, 1])
def test_outputs_of_other_structure(side):
    modules = list(pair())
    modules[side] = Wrapped(modules[side], lambda y: (y, y))
    refused(r"in the output the student gives a (Tensor|tuple of 2) and the teacher a (Tensor|tuple of 2)", *modules,
            batches())  # fmt: skip


def test_outputs_of_other_kinds_and_shapes():
    student, teacher = pair()
    for wrap, text in (
        (lambda y: y[:, :2], r"in the output the student's tensor has shape \(16, 2\) and the teacher's \(16, 3\)"),
        (lambda y: y[:1], r"shape \(1, 3\)"),
        (lambda y: None, "a NoneType and the teacher a Tensor"),
        (lambda y: [y], "a list of 1 and the teacher a Tensor"),
    ):
        refused(text, Wrapped(student, wrap), teacher, batches())
    made = (Wrapped(module, lambda y: {"label": y.argmax(1)}) for module in (student, teacher))
    refused("in the output are no floating-point tensors, but a dict of label", *made, batches())


def test_values_at_boundaries():
    student, teacher = pair()
    teacher.second = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 5))
    teacher.head = nn.Linear(5, 3)
    refused(r"at boundary 'second' the student's tensor has shape \(16, 12\) and the teacher's \(16, 5\)", student,
            teacher, batches(), boundaries=["second"])  # fmt: skip
    student.spare, teacher.spare = nn.Linear(1, 1), nn.Linear(1, 1)
    refused("the teacher does not call its module 'spare'", student, teacher, batches(), boundaries=["spare"])
    assert not any(module._forward_hooks for one in (student, teacher) for module in one.modules())

    class Silent(Watched):
        def observe(self, names, /, x):
            return super().observe((), x)

    refused("Silent.observe gives no value for 'one'", Silent(student, Watched(teacher)), teacher, batches())


# -- what is not finite -----------------------------------------------------------------------------------------------


def before(step):
    """The weights that the loss of a step is computed with."""
    student, teacher = pair()
    if step > 1:
        rewrite.distill(student, teacher, batches()[: step - 1], optimizer=plain)
    return state(student)


def plain(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


@pytest.mark.parametrize(("bad", "text", "last"), [
    (float("nan"), "the loss is not finite at step 5 of stage 'outputs': the teacher's values are not finite", 4),
    (float("inf"), "the norm of the gradients is not finite at step 5 of stage 'outputs'", 5),  # tanh(inf) = 1
])  # fmt: skip
def test_a_batch_that_is_not_finite(bad, text, last):
    student, teacher = pair()
    data = batches()
    data[4][2, 1] = bad
    refused(f"{text}; the student has the weights of the last finite loss", student, teacher, data, optimizer=plain)
    assert_same(state(student), before(last))


def test_statistics_are_put_back_too():
    student, teacher = pair(make=Counting)
    other = copy.deepcopy(student.train())
    rewrite.distill(other, teacher, batches()[:4], optimizer=plain)
    data = batches()
    data[4] = data[4] * float("nan")
    refused("not finite at step 5", student, teacher, data, optimizer=plain)
    for name, value in student.named_buffers():
        assert torch.equal(value, other.get_buffer(name)), name


def test_a_student_that_diverges():
    student, teacher = pair()
    refused("the loss is not finite at step 2 of stage 'blocks': the student's values are not finite", student, teacher,
            batches(), boundaries=["second"],
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e38))  # fmt: skip
    assert_same(state(student), before(1))
    assert all(parameter.grad is None for parameter in student.parameters())


def test_weights_that_diverge_in_the_last_step(tmp_path):
    for options in ({}, {"checkpoint": tmp_path / "state", "every": 1}, {"validation": batches(1)}):
        student, teacher = pair()
        refused("the student's weights are not finite after step 1 of stage 'outputs'", student, teacher, batches(1),
                optimizer=lambda parameters: torch.optim.SGD(parameters, lr=float("inf")), **options)  # fmt: skip
        assert_same(state(student), before(1))
    assert not list(tmp_path.iterdir())


def test_a_loss_or_a_validation_that_is_not_finite():
    student, teacher = pair()
    refused("so it is the loss function", student, teacher, batches(), loss=lambda a, b: (a - b).mean() / 0)
    held = [batches(1)[0] * float("nan")]
    refused(
        "the validation after step 0 of stage 'outputs' is not finite", student, teacher, batches(), validation=held
    )
