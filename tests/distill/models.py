"""Small models, and copies of them that are not quite the same any more."""

from __future__ import annotations

import copy

import torch
from torch import nn

SIZE = 6


class Blocks(nn.Module):
    """Two blocks and a head over vectors."""

    def __init__(self, outputs: int = 3, dropout: float = 0.0):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(SIZE, 12), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(12, 12), nn.Dropout(dropout), nn.ReLU(inplace=True))
        self.head = nn.Linear(12, outputs)

    def forward(self, x, scale=1.0):
        return self.head(self.second(self.first(x))) * scale


class Wrapped(nn.Module):
    """Its output in a container."""

    def __init__(self, inner, wrap):
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, *args, **kwargs):
        return self.wrap(self.inner(*args, **kwargs))


class Counting(nn.Module):
    """A layer that counts its calls in a buffer, and normalizes as it trains."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(SIZE)
        self.fc = nn.Linear(SIZE, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return self.fc(self.norm(x))


class Watched(nn.Module):
    """A student that gives the values inside it under names of its own."""

    def __init__(self, model, source=None):
        super().__init__()
        self.model = model
        self._source = [source]
        self.boundaries = ("one", "two")
        self.asked = []

    @property
    def source(self):
        return self._source[0]

    def forward(self, x):
        return self.observe((), x)[0]

    def observe(self, names, /, x):
        self.asked.append(tuple(names))
        one = self.model.first(x)
        two = self.model.second(one)
        values = {"one": one, "two": two}
        return self.model.head(two), {name: values[name] for name in names}


def pair(amount=0.3, make=Blocks, **options):
    """A teacher in evaluation mode, and a perturbed copy."""
    torch.manual_seed(1)
    teacher = make(**options).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return student, teacher


def batches(count=8, rows=16):
    torch.manual_seed(2)
    return list(torch.randn(count, rows, SIZE))


def error(student, teacher, x):
    """The mean squared error of the student's output, relative to the teacher's."""
    with torch.no_grad():
        return float((student(x) - teacher(x)).square().mean() / teacher(x).square().mean())


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(found, expected):
    """Equal to the bit."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
