"""One of two processes that distill together, started by torchrun; it fails where anything differs.

Every process trains a student alone first, on what all of them see together, and compares.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import rewrite
from rewrite import files
from tests.distill.models import Blocks, Counting, Watched, batches, pair, state

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextlib.contextmanager
def alone():
    """Without what torchrun has set."""
    kept = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    try:
        yield
    finally:
        os.environ.update(kept)


def assert_equal_everywhere(student):
    """Bit for bit in all processes."""
    values = [None] * WORLD
    dist.all_gather_object(values, state(student))
    for found in values:
        for name, value in values[0].items():
            assert torch.equal(found[name], value), name


def assert_close(student, expected):
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-9, atol=1e-11, msg=name)


def double(amount=0.3, make=Blocks):
    return [module.double() for module in pair(amount, make)]


def data(count=8):
    return [x.double() for x in batches(count)]


def union():
    """The batches that all processes see in each step."""
    return [torch.cat(data()[index : index + WORLD]) for index in range(0, 8, WORLD)]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def both(observable: bool, **options):
    """Two students that were trained alone and together, and both histories."""
    found = []
    for how, given in ((alone, union()), (contextlib.nullcontext, data())):
        student, teacher = double()
        if observable:
            student = Watched(student, Watched(teacher))
        with how():
            done = rewrite.distill(student, teacher, given, epochs=3, optimizer=sgd, validation=data(3), **options)
        found.append((student, done))
    return found


def test_weights_are_those_of_one_process():
    found = []
    for observable, options in ((False, {"boundaries": ["first", "second"]}), (True, {}), (False, {"loss": "kl"})):
        (one, single), (many, done) = both(observable, **options)
        assert not dist.is_initialized()
        assert_close(many, one)
        assert (single.processes, done.processes) == (1, WORLD)
        for mine, theirs in zip(done.stages, single.stages, strict=True):
            assert mine.losses == pytest.approx(theirs.losses, rel=1e-9)
            assert mine.validation == [(step, pytest.approx(loss, rel=1e-9)) for step, loss in theirs.validation]
        found.append(many)
    return found


def test_loaders():
    """One that shuffles is seen in one order by all; one with a sampler of its own is told the epoch."""
    x = torch.cat(data())
    x[:, 0] = torch.arange(len(x))
    seen = []

    def loss(ours, theirs):
        return (ours - theirs).square().mean()

    class Seeing(Blocks):
        def forward(self, x):
            seen.append(x[:, 0].clone())
            return super().forward(x)

    for sampler in (None, DistributedSampler(x, WORLD, RANK)):
        loader = DataLoader(TensorDataset(x), batch_size=8, shuffle=sampler is None, sampler=sampler)
        student, teacher = double(make=Seeing)
        torch.manual_seed(RANK)
        teacher.forward = lambda x, teacher=teacher: Blocks.forward(teacher, x)
        rewrite.distill(student, teacher, loader, epochs=2, loss=loss)
        assert_equal_everywhere(student)
        everyone = [None] * WORLD
        dist.all_gather_object(everyone, torch.cat(seen))
        half = len(everyone[0]) // 2
        for epoch in (slice(None, half), slice(half, None)):
            together = torch.cat([mine[epoch] for mine in everyone])
            assert torch.equal(together.sort().values, x[:, 0]), "each sample once in an epoch"
        assert not torch.equal(everyone[0][:half], everyone[0][half:]), "in another order"
        seen.clear()


def test_an_incomplete_round_is_left_out_and_norms_end_equal():
    student, teacher = double(make=Counting)
    student.train()
    torch.manual_seed(RANK)
    with torch.no_grad():
        student.fc.weight.add_(RANK)  # the first process's weights are everybody's
    done = rewrite.distill(student, teacher, data(7), epochs=2, validation=data(1))
    assert len(done.stages[0].losses) == 2 * (7 // WORLD)
    assert_equal_everywhere(student)


def test_an_interruption_changes_nothing(directory: Path):
    def run(name, given):
        student, teacher = double()
        student.second[1].p = 0.2
        student.train()
        torch.manual_seed(20 + RANK)
        return rewrite.distill(student, teacher, given, epochs=2, checkpoint=directory / name, every=3,
                               validation=data(1))  # fmt: skip

    written = []
    write = files.write
    files.write = lambda *args: written.append(args) or write(*args)
    whole = run("whole", data())
    broken = data()
    broken[-1][0, 0] = float("nan")  # the last process has it, and all of them stop
    with pytest.raises(rewrite.InputError, match=r"step 4 of stage 'outputs'"):
        run("part", broken)
    done = run("part", data())
    assert done.resumed == 3
    assert done.stages == whole.stages
    for name, value in state(whole.student).items():
        assert torch.equal(value, state(done.student)[name])
    files.write = write
    assert bool(written) == (RANK == 0)
    if RANK == 0:
        assert sorted(file.name for file in directory.iterdir()) == ["part", "whole"]


def test_too_few_batches():
    student, teacher = double()
    with pytest.raises(rewrite.InputError, match=f"no batch for each of {WORLD} processes"):
        rewrite.distill(student, teacher, data(WORLD - 1))
    assert not dist.is_initialized()


def main() -> None:
    torch.set_num_threads(1)

    students = test_weights_are_those_of_one_process()
    test_an_interruption_changes_nothing(Path(sys.argv[1]))
    test_too_few_batches()
    dist.init_process_group("gloo")  # as in a program that does so itself
    for student in students:
        assert_equal_everywhere(student)
    test_loaders()
    test_an_incomplete_round_is_left_out_and_norms_end_equal()
    dist.destroy_process_group()
    sys.stdout.write("all of it\n")


if __name__ == "__main__":
    main()
