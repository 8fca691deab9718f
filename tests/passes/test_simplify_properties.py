"""Simplify on random programs of moves, copies and neutral arithmetic: values, strides and sharing stay as they are."""

from __future__ import annotations

import operator
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from passes.simplify import Simplify
from rewrite.driver import Driver
from rewrite.graph import Graph
from rewrite.rule import Fidelity
from rewrite.verify import MatchVerifier
from tests.programs import Program, aten, same_bits, special

FORMATS = (None, torch.contiguous_format, torch.channels_last)


class Writer:
    """Adds one operator after the other to a program, each chosen by a draw and made to fit its operand."""

    def __init__(self, data: st.DataObject, shape: tuple[int, ...]):
        self.draw = data.draw
        self.program = Program()
        x = self.program.input(special(*shape))
        # fresh memory to begin with, and the input itself
        self.values = [self.program(aten.sin.default, x), x]

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def step(self) -> None:
        x = self.values[-self.integer(1, min(3, len(self.values)))]
        target = self.draw(st.sampled_from(STEPS))
        self.values.append(target(self, self.program, x, list(x.meta["val"].shape)))

    def dim(self, shape: list[int]) -> int:
        return self.integer(0, len(shape) - 1) if shape else 0


def permute(w: Writer, p: Program, x: Any, shape: list[int]) -> Any:
    return p(aten.permute.default, x, w.draw(st.permutations(range(len(shape)))))


def reshape(w: Writer, p: Program, x: Any, shape: list[int]) -> Any:
    """Joins two neighbours, or splits off a factor of two, or returns to a shape that another value has."""
    kind, i = w.integer(0, 2), w.dim(shape)
    others = [list(v.meta["val"].shape) for v in w.values if v.meta["val"].numel() == x.meta["val"].numel()]
    if kind == 0 and len(shape) > 1:
        i = min(i, len(shape) - 2)
        return p(aten.reshape.default, x, [*shape[:i], shape[i] * shape[i + 1], *shape[i + 2 :]])
    if kind == 1 and shape and shape[i] % 2 == 0 and len(shape) < 6:
        return p(aten.reshape.default, x, [*shape[:i], 2, shape[i] // 2, *shape[i + 1 :]])
    return p(aten.reshape.default, x, w.draw(st.sampled_from(others)))


def unsqueeze(w: Writer, p: Program, x: Any, shape: list[int]) -> Any:
    return p(aten.unsqueeze.default, x, w.integer(0, len(shape))) if len(shape) < 6 else squeeze(w, p, x, shape)


def squeeze(w: Writer, p: Program, x: Any, shape: list[int]) -> Any:
    return p(aten.squeeze.dim, x, w.dim(shape))


def slices(w: Writer, p: Program, x: Any, shape: list[int]) -> Any:
    if not shape:
        return x
    i = w.dim(shape)
    return p(
        aten.slice.Tensor, x, i, w.integer(0, 1) if shape[i] > 1 else 0, w.draw(st.sampled_from([shape[i], 2**63 - 1]))
    )


def clone(w: Writer, p: Program, x: Any, shape: list[int]) -> Any:
    layout = w.draw(st.sampled_from(FORMATS if len(shape) == 4 else FORMATS[:2]))
    return p(aten.clone.default, x) if layout is None else p(aten.clone.default, x, memory_format=layout)


def pad(w: Writer, p: Program, x: Any, shape: list[int]) -> Any:
    return p(aten.constant_pad_nd.default, x, [0, w.integer(0, 1)]) if shape else x


def roll(w: Writer, p: Program, x: Any, shape: list[int]) -> Any:
    i = w.dim(shape)
    return p(aten.roll.default, x, [w.integer(-2, 2) * shape[i] + w.integer(0, 1)], [i]) if shape else x


def piece(w: Writer, p: Program, x: Any, shape: list[int]) -> Any:
    if not shape:
        return x
    i = w.dim(shape)
    return p(operator.getitem, p(aten.split.Tensor, x, shape[i] + w.integer(-1, 1) or 1, i), 0)


def arithmetic(w: Writer, p: Program, x: Any, shape: list[int]) -> Any:
    target, *args = w.draw(st.sampled_from([
        (aten.neg.default,), (aten.mul.Tensor, 1), (aten.mul.Tensor, 2), (aten.sub.Tensor, 0), (aten.add.Tensor, 0),
        (aten.add.Tensor, -0.0), (aten.relu.default,), (aten.hardtanh.default, 0.0, 6.0), (aten.hardtanh.default,),
        (aten.expand.default, shape), (aten.dropout.default, 0.5, False), (aten.exp.default,),
    ]))  # fmt: skip
    return p(target, x, *args)


def overwrite(w: Writer, p: Program, x: Any, shape: list[int]) -> Any:
    same = [v for v in w.values if list(v.meta["val"].shape) == shape]
    return p(aten.slice_scatter.default, x, w.draw(st.sampled_from(same))) if shape else x


STEPS = [
    permute,
    permute,
    reshape,
    reshape,
    unsqueeze,
    squeeze,
    slices,
    clone,
    clone,
    pad,
    roll,
    piece,
    arithmetic,
    overwrite,
]


def programs(data: st.DataObject) -> tuple[Program, Graph]:
    writer = Writer(data, data.draw(st.sampled_from([(2, 4, 6, 3), (1, 4, 4, 2), (2, 1, 6, 1), (4, 6), (2, 3, 4)])))
    for _ in range(data.draw(st.integers(1, 9))):
        writer.step()
    outputs = data.draw(st.lists(st.sampled_from(writer.values[2:]), min_size=1, max_size=3, unique=True))
    return writer.program, writer.program.graph(*outputs)


def sharing(inputs: list[Tensor], outputs: tuple[Tensor, ...]) -> set[tuple[int, int]]:
    """The pairs of inputs and outputs that share memory; not those of one and the same returned value."""
    storages = [tensor.untyped_storage().data_ptr() for tensor in (*inputs, *outputs)]
    return {(i, j) for j in range(len(storages)) for i in range(j) if storages[i] == storages[j]}


def assert_same(program: Program, before: Graph, after: Graph, bits: bool) -> None:
    x = program.inputs[0]
    theirs, mine = program.run(before), program.run(after)
    assert [t.stride() for t in mine] == [t.stride() for t in theirs]
    assert sharing([x], mine) <= sharing([x], theirs)
    layouts = (
        [x]
        if x.dim() != 4
        else [x, x.contiguous(memory_format=torch.channels_last), x.permute(3, 2, 1, 0).clone().permute(3, 2, 1, 0)]
    )
    for given_ in layouts:
        theirs, mine = program.run(before, given_), program.run(after, given_)
        assert not bits or same_bits(mine, theirs)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


@given(st.data())
def test_values_strides_and_sharing_stay_and_a_second_run_finds_nothing(data):
    program, graph = programs(data)
    before = graph.copy()
    [record] = Driver(graph, MatchVerifier()).run([Simplify()])
    assert not record.rejections
    graph.check()
    assert len(graph.calls()) <= len(before.calls())
    assert_same(program, before, graph, bits=False)
    [again] = Driver(graph).run([Simplify()])
    assert not again.commits


@given(st.data())
def test_bitwise_rules_keep_every_bit(data):
    program, graph = programs(data)
    before = graph.copy()
    bitwise = [rule for rule in Simplify().rules() if rule.fidelity is Fidelity.BITWISE]
    records = Driver(graph).run(bitwise * 2)
    assert not any(record.rejections for record in records)
    assert_same(program, before, graph, bits=True)


@given(st.data())
def test_any_fuel_gives_an_equal_program(data):
    program, graph = programs(data)
    before = graph.copy()
    driver = Driver(graph, fuel=data.draw(st.integers(0, 4)))
    driver.run([Simplify()])
    graph.check()
    assert_same(program, before, graph, bits=False)
