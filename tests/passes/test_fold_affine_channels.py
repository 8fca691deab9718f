"""Where channels go: the numbers that are foretold are those that torch's own operators move there."""

from __future__ import annotations

import math
import operator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Node

from passes.fold_affine.channels import Channels, along, through
from rewrite.ops import view
from tests.programs import Program, aten


def foretold(channels: Channels, shape: tuple[int, ...]) -> Tensor:
    """The channel number at each place of a value."""
    total = torch.full(shape, float(sum(part.start * part.stride for part in channels.fixed)))
    for dim, parts in enumerate(channels.dims):
        numbers = torch.zeros(1)
        for part in parts:
            own = part.stride * torch.arange(part.start, part.start + part.size)
            numbers = (numbers[:, None] + own).flatten()
        total += numbers.reshape(-1, *[1] * (len(shape) - dim - 1)) if parts else 0
    return total


def numbered(shape: tuple[int, ...], dims: tuple[int, ...]) -> Tensor:
    """A tensor whose elements are numbers of channels along ``dims``."""
    sizes = [size if dim in dims else 1 for dim, size in enumerate(shape)]
    return torch.arange(math.prod(sizes), dtype=torch.float64).reshape(sizes).expand(shape).contiguous()


def factors(draw: st.DrawFn, number: int) -> list[int]:
    """A drawn way to write a number as a product."""
    found = []
    while number > 1 and draw(st.booleans()):
        divisor = draw(st.sampled_from([d for d in range(1, number + 1) if number % d == 0]))
        found.append(divisor)
        number //= divisor
    return [*found, number]


def reshaped(draw: st.DrawFn, shape: list[int]) -> list[int]:
    """Another shape of as many elements; often one that splits or joins neighbours."""
    kind = draw(st.sampled_from(["split", "join", "any"]))
    at = draw(st.integers(0, len(shape) - 1))
    if kind == "split":
        return [*shape[:at], *factors(draw, shape[at]), *shape[at + 1 :]]
    if kind == "join" and at + 1 < len(shape):
        return [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]
    return factors(draw, math.prod(shape))


def moved(draw: st.DrawFn, program: Program, node: Node) -> Node:
    """A drawn operator that moves values."""
    shape = list(node.meta["val"].shape)
    kinds = ["reshape", "permute", "transpose", "slice", "select", "split", "unbind", "roll", "mean", "pad", "clone"]
    kind = draw(st.sampled_from(kinds))
    dim = draw(st.integers(0, len(shape) - 1)) if shape else 0
    if kind == "reshape" or not shape or len(shape) > 7:
        return program(aten.reshape.default, node, reshaped(draw, shape) if shape else [1])
    if kind == "permute":
        return program(aten.permute.default, node, draw(st.permutations(range(len(shape)))))
    if kind == "transpose":
        return program(aten.transpose.int, node, dim, draw(st.integers(-len(shape), len(shape) - 1)))
    if kind == "slice":
        start = draw(st.integers(0, shape[dim] - 1))
        end = draw(st.integers(start + 1, shape[dim]))
        return program(aten.slice.Tensor, node, dim, start - shape[dim] if start else None, end)
    if kind == "select":
        return program(aten.select.int, node, dim, draw(st.integers(-shape[dim], shape[dim] - 1)))
    if kind in ("split", "unbind"):
        size = draw(st.integers(1, shape[dim]))
        target = aten.split.Tensor if kind == "split" else aten.unbind.int
        pieces = program(target, node, size, dim) if kind == "split" else program(target, node, dim)
        count = len(pieces.meta["val"])
        return program(operator.getitem, pieces, draw(st.integers(0, count - 1)))
    if kind == "roll":
        return program(aten.roll.default, node, [draw(st.integers(-2, 2))], [dim])
    if kind == "mean":
        return program(aten.mean.dim, node, [dim], draw(st.booleans()))
    if kind == "pad" and len(shape) == 3:
        return program(aten.pad.default, node, [draw(st.integers(0, 1)), 1], "replicate")
    return program(aten.clone.default, node)


@st.composite
def walks(draw: st.DrawFn) -> tuple[Program, list[tuple[Node, Channels]]]:
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4)))
    dims = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1, max_size=2))))
    program = Program()
    node = program.input(numbered(shape, dims))
    channels: Channels | None = along(node, dims)
    found = [(node, channels)]
    for _ in range(draw(st.integers(1, 5))):
        node = moved(draw, program, node)
        channels = through(channels, view(node))
        if channels is None:
            break
        found.append((node, channels))
    return program, found


@given(walks())
@settings(max_examples=150)
def test_numbers_are_where_they_are_foretold(walk: tuple[Program, list[tuple[Node, Channels]]]):
    program, found = walk
    values = program.values(program.graph(found[-1][0]))
    for node, channels in found:
        value = values[node]
        assert len(channels.dims) == value.dim()
        assert torch.equal(foretold(channels, tuple(value.shape)).double(), value)
        assert channels.numbers() == {int(number) for number in value.unique()}
        assert channels.complete == (len(channels.numbers()) == channels.count)
        for dim in range(value.dim()):
            varies = value.shape[dim] > 1 and bool((value.diff(dim=dim) != 0).any())
            assert not varies or channels.has(dim)


def walk(shape: tuple[int, ...], dims: tuple[int, ...], *steps: Any) -> Channels | None:
    program = Program(dynamic=True)
    node = program.input(numbered(shape, dims))
    channels: Channels | None = along(node, dims)
    for target, *args in steps:
        node = program(target, node, *args)
        if isinstance(node.meta["val"], (list, tuple)):
            node = program(operator.getitem, node, 0)
        channels = through(channels, view(node)) if channels is not None else None
    return channels


PASSED: dict[str, tuple[Any, ...]] = {
    "queries of an attention": ((2, 5, 36), (2,), (aten.reshape.default, [-1, 5, 3, 3, 4]),
                                (aten.permute.default, [2, 0, 3, 1, 4]), (aten.unbind.int,)),
    "heads beside the batch": ((2, 5, 36), (2,), (aten.reshape.default, [-1, 5, 9, 4]), (aten.transpose.int, 1, 2),
                               (aten.reshape.default, [-1, 5, 4])),
    "windows": ((2, 6, 6, 4), (3,), (aten.roll.default, [1, 1], [1, 2]), (aten.reshape.default, [-1, 2, 3, 2, 3, 4]),
                (aten.permute.default, [0, 1, 3, 2, 4, 5]), (aten.reshape.default, [-1, 9, 4])),
    "windows and back": ((2, 6, 6, 4), (3,), (aten.reshape.default, [-1, 2, 3, 2, 3, 4]),
                         (aten.permute.default, [0, 1, 3, 2, 4, 5]), (aten.reshape.default, [-1, 9, 4]),
                         (aten.reshape.default, [-1, 2, 2, 3, 3, 4]), (aten.permute.default, [0, 1, 3, 2, 4, 5]),
                         (aten.reshape.default, [-1, 6, 6, 4])),
    "shuffled": ((2, 6, 4), (1,), (aten.reshape.default, [-1, 2, 3, 4]), (aten.transpose.int, 1, 2),
                 (aten.reshape.default, [-1, 6, 4])),
    "flattened": ((2, 4, 3, 2), (1,), (aten.reshape.default, [-1, 24])),
    "pooled": ((2, 4, 3, 2), (1,), (aten.avg_pool2d.default, [2, 2]), (aten.mean.dim, [2, 3])),
    "part of a part": ((2, 12), (1,), (aten.slice.Tensor, 1, 4, 12), (aten.reshape.default, [-1, 2, 4]),
                       (aten.select.int, 1, 1)),
    "some features of two dimensions": ((2, 3, 4), (1, 2), (aten.reshape.default, [-1, 12]),
                                        (aten.slice.Tensor, 1, 4, 12)),
}  # fmt: skip


@pytest.mark.parametrize("name", PASSED)
def test_passed(name: str):
    assert walk(*PASSED[name]) is not None


MIXED: dict[str, tuple[Any, ...]] = {
    "a digit is cut": ((2, 12), (1,), (aten.slice.Tensor, 1, 2, 10), (aten.reshape.default, [-1, 2, 4])),
    "no common factor": ((2, 4, 3), (1,), (aten.reshape.default, [-1, 3, 4])),
    "every other channel": ((2, 6), (1,), (aten.slice.Tensor, 1, 0, 6, 2)),
    "rolled": ((2, 6), (1,), (aten.roll.default, [1], [1])),
    "averaged": ((2, 6), (1,), (aten.mean.dim, [1])),
    "padded": ((2, 6), (1,), (aten.constant_pad_nd.default, [1, 1])),
    "pooled": ((2, 4, 6), (2,), (aten.avg_pool1d.default, [2])),
    "across a flattened border": ((2, 4, 6), (1,), (aten.reshape.default, [-1, 24]), (aten.slice.Tensor, 1, 3, 24)),
    "an activation": ((2, 4), (1,), (aten.relu.default,)),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_mixed(name: str):
    assert walk(*MIXED[name]) is None


def test_parts_that_have_no_channel_in_common_are_apart():
    first = walk((2, 12), (1,), (aten.slice.Tensor, 1, 0, 4))
    second = walk((2, 12), (1,), (aten.reshape.default, [-1, 3, 4]), (aten.select.int, 1, 1))
    third = walk((2, 12), (1,), (aten.slice.Tensor, 1, 3, 5))
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.apart(second)
    assert not first.apart(third)
    assert not second.apart(third)
