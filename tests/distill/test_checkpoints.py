"""A training that was interrupted, and goes on."""

from __future__ import annotations

import random

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import rewrite
from tests.distill.models import Counting, assert_same, batches, pair, state


class Interrupted(Exception):
    pass


class Noisy(TensorDataset):
    """Adds noise of three generators, and fails at the n-th sample."""

    def __init__(self, tensor, limit=None):
        super().__init__(tensor)
        self.left = limit

    def __getitem__(self, index):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise Interrupted
        return super().__getitem__(index)[0] + 0.1 * torch.randn(6) + random.gauss(0, 0.1) + numpy.random.normal(0, 0.1)


def loader(limit=None, own=False):
    generator = torch.Generator().manual_seed(7) if own else None
    return DataLoader(Noisy(torch.cat(batches(5, 4)), limit), batch_size=4, shuffle=True, generator=generator)


def options(path, **more):
    return {
        "boundaries": ["first"], "blocks": 2, "epochs": 3, "checkpoint": path, "validation": batches(2),
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, amsgrad=True),
        "scheduler": lambda one: torch.optim.lr_scheduler.OneCycleLR(one, 1e-2, total_steps=16), **more,
    }  # fmt: skip


def seed(number=0):
    torch.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number)


def _last_written(steps, every):
    """Stages are of 10 and 15 steps, epochs of 5."""
    within, before = (steps - 10, 10) if steps >= 10 else (steps, 0)
    return before + within // (every or 5) * (every or 5)


def run(path, limit=None, own=False, **more):
    student, teacher = pair(dropout=0.3)
    student.train()
    seed()
    return rewrite.distill(student, teacher, loader(limit, own), **options(path, **more))


@pytest.mark.parametrize("every", [1, 3, None])
@pytest.mark.parametrize("interruption", [8, 29, 40, 43, 75])
def test_an_interrupted_training_gives_the_same_bits(tmp_path, every, interruption):
    own = interruption % 2 == 1
    whole = run(tmp_path / "whole", own=own, every=every)
    path = tmp_path / "part"
    with pytest.raises(Interrupted):
        run(path, limit=interruption, own=own, every=every)
    written = path.exists()
    student, teacher = pair(amount=5.0 if written else 0.3, dropout=0.3)
    student.train()
    seed(100 if written else 0)  # without a file it begins anew
    done = rewrite.distill(student, teacher, loader(own=own), **options(path, every=every))
    assert_same(state(student), state(whole.student))
    assert done.stages == whole.stages
    assert done.resumed == (_last_written(interruption // 4, every) if written else None)


def test_patience_counts_on(tmp_path):
    """What is waited for, and the best weights, are part of the state."""
    more = {
        "boundaries": None, "blocks": 0, "epochs": 9, "patience": 3, "scheduler": None,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=1e-4, maximize=True),
    }  # fmt: skip
    whole = run(tmp_path / "whole", **more)
    assert whole.stopped == "nothing better in 3 validations"
    with pytest.raises(Interrupted):
        run(tmp_path / "part", limit=50, **more)
    done = run(tmp_path / "part", **more)
    assert done.resumed == 10
    assert done.stages == whole.stages
    assert_same(state(done.student), state(whole.student))


def test_statistics_go_on_where_they_were(tmp_path):
    def run(name, data):
        student, teacher = pair(make=Counting)
        return rewrite.distill(student.train(), teacher, data, checkpoint=tmp_path / name, every=3)

    whole = run("whole", batches())
    data = batches()
    data[4] = data[4] * float("nan")
    with pytest.raises(rewrite.InputError):
        run("part", data)
    done = run("part", batches())
    assert done.resumed == 3
    assert done.student.norm.num_batches_tracked == 8
    assert_same(state(done.student), state(whole.student))


def test_a_finished_training_is_not_repeated(tmp_path):
    path = tmp_path / "state"
    whole = run(path)
    again = run(path, limit=0)
    assert again.resumed == 25
    assert again.stages == whole.stages
    assert_same(state(again.student), state(whole.student))
    assert "resumed at step 25" in str(again)
    anew = run(path, resume=False)
    assert anew.resumed is None
    assert_same(state(anew.student), state(whole.student))


def test_the_file_is_plain_and_alone(tmp_path):
    path = tmp_path / "state"
    with pytest.raises(Interrupted):
        run(path, limit=43, every=2)
    found = torch.load(path, weights_only=True)
    assert found["place"] == {"stage": 1, "epoch": 0, "batch": 0}
    assert [len(stage["losses"]) for stage in found["stages"]] == [10]
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_a_crash_while_it_is_written_leaves_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "state"
    with pytest.raises(Interrupted):
        run(path, limit=29, every=2)
    before = path.read_bytes()

    def crash(*args):
        raise Interrupted

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(Interrupted):
        run(path, every=2)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_a_file_of_another_training_is_refused(tmp_path):
    path = tmp_path / "state"
    run(path)
    with pytest.raises(rewrite.ArtifactError, match="number=3, and not 4; name another file, or pass resume=False"):
        run(path, epochs=4)
    with pytest.raises(rewrite.ArtifactError, match="loss='mse', and not 'kl'"):
        run(path, loss="kl")
    student, teacher = pair(outputs=5)
    before = state(student)
    with pytest.raises(rewrite.ArtifactError, match=r"another student, in which 'head.bias' has the shape \(3,\)"):
        rewrite.distill(student, teacher, loader(), **options(path))
    assert_same(state(student), before)


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\x80\x02K\x01."]
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "state"
    run(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(rewrite.ArtifactError, match=r"(cannot be read|no checkpoint).*pass resume=False"):
        run(path)


def test_fewer_batches_than_were_seen(tmp_path):
    path = tmp_path / "state"
    student, teacher = pair()
    data = batches()
    with pytest.raises(rewrite.InputError):
        rewrite.distill(student, teacher, [*data, data[0] * float("nan")], checkpoint=path, every=8)
    with pytest.raises(rewrite.ArtifactError, match="fewer than the 8 batches"):
        rewrite.distill(student, teacher, data[:3], checkpoint=path, every=8)


def test_a_scheduler_that_keeps_objects_is_refused(tmp_path):
    class Odd(torch.optim.lr_scheduler.LRScheduler):
        def get_lr(self):
            return [group["lr"] for group in self.optimizer.param_groups]

        def state_dict(self):
            return {"object": Interrupted()}

    student, teacher = pair()
    with pytest.raises(rewrite.InputError, match=r"weights_only=True\) refuses"):
        rewrite.distill(student, teacher, batches(), checkpoint=tmp_path / "state", every=1, scheduler=Odd)
    assert not list(tmp_path.iterdir())
