"""Operators that move nothing, and pairs of operators that are one or none."""

from __future__ import annotations

import operator

import pytest
import torch

from passes.simplify import Simplify
from rewrite.ops import value
from tests.passes.rewriting import apply
from tests.programs import Program, aten, names, same_bits, special

END = 9223372036854775807


def run(build, shape=(2, 3, 4, 5), dynamic=True):
    """Operators left of ``sin, build(p, x), cos``, without those two, and the reasons for what is left."""
    program = Program(dynamic)
    x = program(aten.sin.default, program.input(special(*shape)))
    graph = program.graph(program(aten.cos.default, build(program, x)))
    expected = program.run(graph.copy())
    result = apply(graph, Simplify())
    assert same_bits(program.run(graph), expected)
    left = names(graph)
    assert (left[0], left[-1]) == ("sin", "cos")
    return left[1:-1], result.reasons


IDENTITIES = {
    "reshape": lambda p, x: p(aten.reshape.default, x, [-1, 3, 4, 5]),
    "permute": lambda p, x: p(aten.permute.default, x, [0, 1, -2, -1]),
    "transpose": lambda p, x: p(aten.transpose.int, x, 1, -3),
    "expand": lambda p, x: p(aten.expand.default, x, [-1, 3, -1, 5]),
    "slice": lambda p, x: p(aten.slice.Tensor, x, 1, 0, END),
    "slice of exactly everything": lambda p, x: p(aten.slice.Tensor, x, -1, -5, 5),
    "slice of the batch": lambda p, x: p(aten.slice.Tensor, x, 0, 0, END),
    "squeeze of nothing": lambda p, x: p(aten.squeeze.dim, x, 1),
    "pad": lambda p, x: p(aten.pad.default, x, [0, 0, 0, 0]),
    "reflect pad": lambda p, x: p(aten.pad.default, x, [0, 0, 0, 0], "reflect"),
    "constant pad": lambda p, x: p(aten.constant_pad_nd.default, x, [0, 0], 3.0),
    "cat": lambda p, x: p(aten.cat.default, [x], 1),
    "roll": lambda p, x: p(aten.roll.default, x, [0, 0], [1, 2]),
    "roll of one place": lambda p, x: p(
        aten.squeeze.dim, p(aten.roll.default, p(aten.unsqueeze.default, x, 1), [1], [1]), 1
    ),
    "roll around": lambda p, x: p(aten.roll.default, x, [-8, 10], [2, 3]),
    "split": lambda p, x: p(operator.getitem, p(aten.split.Tensor, x, 7, 1), 0),
    "chunk": lambda p, x: p(operator.getitem, p(aten.chunk.default, x, 1, 1), 0),
    "sizes": lambda p, x: p(operator.getitem, p(aten.split_with_sizes.default, x, [3], 1), 0),
    "overwrite": lambda p, x: p(aten.slice_scatter.default, p(aten.exp.default, x), x, 1, 0, END),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_operator_that_moves_nothing_goes(name):
    assert run(IDENTITIES[name]) == ([], [])


MOVES = {
    "reshape": lambda p, x: p(aten.reshape.default, x, [-1, 3, 20]),
    "permute": lambda p, x: p(aten.permute.default, x, [0, 1, 3, 2]),
    "expand": lambda p, x: p(aten.expand.default, x, [2, -1, -1, -1, -1]),
    "slice": lambda p, x: p(aten.slice.Tensor, x, 1, 0, 2),
    "stride": lambda p, x: p(aten.slice.Tensor, x, 1, 0, END, 2),
    "pad": lambda p, x: p(aten.pad.default, x, [0, 0, 0, 1]),
    "shift": lambda p, x: p(aten.pad.default, x, [-1, 1]),
    "shift in one of two dimensions": lambda p, x: p(aten.pad.default, x, [0, 0, -1, 1]),
    "shift in the other": lambda p, x: p(aten.pad.default, x, [1, -1, 0, 0]),
    "cat": lambda p, x: p(aten.cat.default, [x, x], 1),
    "roll": lambda p, x: p(aten.roll.default, x, [4, 4], [2, 3]),
    "roll of the batch": lambda p, x: p(aten.roll.default, x, [2], [0]),
    "roll flat": lambda p, x: p(aten.roll.default, x, [1]),
    "split": lambda p, x: p(operator.getitem, p(aten.split.Tensor, x, 2, 1), 0),
    "overwrite": lambda p, x: p(
        aten.slice_scatter.default, x, p(aten.slice.Tensor, x, 1, 1, 3), 1, 0, 2
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVES)
def test_an_operator_that_moves_something_stays(name):
    left, _ = run(MOVES[name])
    assert left


def test_a_roll_of_no_places_goes():
    assert run(lambda p, x: p(aten.roll.default, x, [1], [2]), shape=(2, 3, 0, 5)) == ([], [])


def test_a_permutation_of_equal_sizes_moves_something():
    assert run(lambda p, x: p(aten.transpose.int, x, 2, 3), shape=(2, 3, 4, 4)) == (["transpose"], [])


def test_an_overwrite_that_converts_stays():
    program = Program()
    x = program(aten.sin.default, program.input(special(3, 4)))
    y = program(aten.sin.default, program.input(special(3, 4, dtype=torch.float64)))
    graph = program.graph(program(aten.slice_scatter.default, x, y, 0))
    apply(graph, Simplify())
    assert names(graph)[-1] == "slice_scatter"


CHAINS = {
    "reshapes": (lambda p, x: p(aten.reshape.default, p(aten.reshape.default, x, [-1, 12, 5]), [-1, 60]), ["reshape"]),
    "back": (lambda p, x: p(aten.reshape.default, p(aten.reshape.default, x, [-1, 60]), [-1, 3, 4, 5]), []),
    "unsqueeze, squeeze": (lambda p, x: p(aten.squeeze.dim, p(aten.unsqueeze.default, x, 1), 1), []),
    "unsqueeze, squeeze all": (lambda p, x: p(aten.squeeze.dims, p(aten.unsqueeze.default, x, -1), [1, 4]), []),
    "unsqueezes": (lambda p, x: p(aten.unsqueeze.default, p(aten.unsqueeze.default, x, 1), -1), ["reshape"]),
    "permutes": (
        lambda p, x: p(aten.permute.default, p(aten.permute.default, x, [0, 2, 3, 1]), [0, 2, 3, 1]),
        ["permute"],
    ),
    "inverse": (lambda p, x: p(aten.permute.default, p(aten.permute.default, x, [0, 2, 3, 1]), [0, 3, 1, 2]), []),
    "transposes": (lambda p, x: p(aten.transpose.int, p(aten.transpose.int, x, 1, 2), -2, -3), []),
    "three": (
        lambda p, x: p(
            aten.permute.default, p(aten.transpose.int, p(aten.transpose.int, x, 1, 2), 2, 3), [0, 2, 3, 1]
        ),
        ["permute"],
    ),
    "negations": (lambda p, x: p(aten.neg.default, p(aten.neg.default, x)), []),
    "copies between": (
        lambda p, x: p(
            aten.permute.default, p(aten.clone.default, p(aten.permute.default, x, [0, 2, 3, 1])), [0, 3, 1, 2]
        ),
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_as_short_as_it_can_be(name):
    build, left = CHAINS[name]
    assert run(build) == (left, [])


def test_a_squeeze_of_the_batch_is_no_reshape():
    """With a batch of one it removes a dimension, with others it does not."""
    build = lambda p, x: p(aten.squeeze.dims, p(aten.unsqueeze.default, x, -1), [0, 4])  # noqa: E731
    assert run(build) == (["unsqueeze", "squeeze"], [])


def test_reshapes_that_copy_merge_only_where_the_strides_stay():
    """Flattening a transposed tensor copies; the copy is contiguous and the original is not."""
    build = lambda p, x: p(  # noqa: E731
        aten.reshape.default, p(aten.reshape.default, p(aten.transpose.int, x, 2, 3), [-1, 60]), [-1, 3, 5, 4]
    )
    left, reasons = run(build)
    assert left == ["transpose", "reshape", "reshape"]
    assert reasons == ["the merged reshape would have other strides"]


def test_reshapes_that_copy_on_other_strides_do_not_become_a_view_that_the_model_returns():
    def build(p, x):
        y = p(aten.sin.default, x)
        outer = p(aten.reshape.default, p(aten.reshape.default, y, [-1, 60]), [-1, 3, 20])
        return outer, p(aten.reshape.default, y, [-1, 12, 5])

    program = Program()
    graph = program.graph(*build(program, program.input(special(2, 3, 4, 5))))
    applied = apply(graph, Simplify())
    assert applied.reasons == [
        "on other strides the model returns a copy, which would become a view of what is reshaped"
    ]
    assert names(graph) == ["sin", "reshape", "reshape", "reshape"]


def test_reshapes_that_never_copy_merge_where_the_model_returns_them():
    program = Program()
    y = program(aten.sin.default, program.input(special(2, 4, 5)))
    outer = program(aten.unsqueeze.default, program(aten.reshape.default, y, [-1, 2, 2, 5]), 1)
    graph = program.graph(outer, y)
    assert not apply(graph, Simplify()).reasons
    assert names(graph) == ["sin", "reshape"]


def test_reshapes_that_cancel_may_have_changed_the_stride_of_a_single_channel():
    program = Program()
    x = program(aten.permute.default, program(aten.sin.default, program.input(special(2, 4, 5, 1))), [0, 3, 1, 2])
    back = program(aten.reshape.default, program(aten.reshape.default, x, [2, 20]), [2, 1, 4, 5])
    assert value(x).stride() != value(back).stride()
    graph = program.graph(program(aten.cos.default, back))
    assert apply(graph, Simplify()).reasons == ["the merged reshape would have other strides"]
    assert names(graph) == ["sin", "permute", "reshape", "reshape", "cos"]


def test_reshapes_that_cancel_may_have_changed_the_strides_of_nothing():
    program = Program()
    x = program(aten.permute.default, program(aten.sin.default, program.input(special(3, 0))), [1, 0])
    back = program(aten.reshape.default, program(aten.reshape.default, x, [0]), [0, 3])
    assert value(x).stride() != value(back).stride()
    graph = program.graph(program(aten.cos.default, back))
    assert apply(graph, Simplify()).reasons == ["the merged reshape would have other strides"]


def test_negations_that_cancel_may_have_changed_strides():
    program = Program()
    wide = program(aten.expand.default, program(aten.sin.default, program.input(special(3, 1, 1))), [3, 4, 5])
    back = program(aten.neg.default, program(aten.neg.default, wide))
    graph = program.graph(program(aten.cos.default, back))
    assert apply(graph, Simplify()).reasons == ["the original has other strides"]
    assert names(graph) == ["sin", "expand", "neg", "neg", "cos"]


@pytest.mark.parametrize(
    ("target", "first", "second"),
    [
        (aten.permute.default, [[0, 2, 3, 1]], [[0, 3, 1, 2]]),
        (aten.reshape.default, [[-1, 60]], [[-1, 3, 4, 5]]),
        (aten.neg.default, [], []),
    ],
    ids=str,
)
def test_a_pair_that_cancels_leaves_what_others_read_in_the_middle(target, first, second):
    program = Program(dynamic=True)
    x = program(aten.sin.default, program.input(special(2, 3, 4, 5)))
    middle = program(target, x, *first)
    back = program(target, middle, *second)
    graph = program.graph(program(aten.exp.default, middle), program(aten.cos.default, back))
    trace = middle.meta["stack_trace"] = '  File "/home/user/net.py", line 7, in forward\n    y = x.permute()\n'
    expected = program.run(graph.copy())
    apply(graph, Simplify())
    assert same_bits(program.run(graph), expected)
    assert sorted(names(graph)) == sorted(["sin", target._opname, "exp", "cos"])
    # it is still the user's operator on the user's line
    [kept] = [node for node in graph.calls() if node.target is target]
    assert kept.meta["stack_trace"] == trace
    assert "rewrite_origin" not in kept.meta


def test_a_pair_that_merges_stays_where_others_read_the_middle():
    program = Program()
    x = program(aten.sin.default, program.input(special(2, 3, 4)))
    middle = program(aten.permute.default, x, [1, 2, 0])
    graph = program.graph(
        program(aten.exp.default, middle), program(aten.cos.default, program(aten.permute.default, middle, [1, 0, 2]))
    )
    result = apply(graph, Simplify())
    assert names(graph).count("permute") == 2
    assert result.reasons == ["permute is also read elsewhere"]


def test_a_view_of_an_input_or_weight_does_not_become_the_input_or_weight():
    """``out is x`` and the type ``Parameter`` are visible to a caller."""
    program = Program()
    x, w = program.input(special(3, 4)), program.weight("w", special(3, 4))
    again = program(aten.permute.default, program(aten.permute.default, x, [1, 0]), [1, 0])
    graph = program.graph(
        program(aten.reshape.default, x, [3, 4]), program(aten.slice.Tensor, w), again,
        program(aten.neg.default, program(aten.neg.default, x)),
    )  # fmt: skip
    apply(graph, Simplify())
    output = graph.output
    assert not {node.op for node in output.all_input_nodes} & {"placeholder", "get_attr"}


def test_twice_negated_inputs_are_returned_as_tensors_of_their_own():
    program = Program()
    graph = program.graph(program(aten.neg.default, program(aten.neg.default, program.input(special(3, 4)))))
    [reason] = apply(graph, Simplify()).reasons
    assert reason == "the model returns a tensor of its own, which would become its input or weight itself"
    assert names(graph) == ["neg", "neg"]


def test_a_pair_that_merges_may_be_returned():
    program = Program()
    turned = program(aten.permute.default, program.input(special(3, 4, 5)), [1, 2, 0])
    graph = program.graph(program(aten.permute.default, turned, [1, 2, 0]))
    assert not apply(graph, Simplify()).reasons
    assert names(graph) == ["permute"]


def test_weight_code_is_simplified_and_keeps_its_values():
    """A merged reshape of a weight is algebra of a rule; what the model computes from it stays the model's."""
    program = Program()
    w = program.weight("w", special(4, 6))
    flat = program(aten.reshape.default, program(aten.reshape.default, w, [24]), [2, 12])
    coarse = program(aten.floor.default, program(aten.mul.Tensor, flat, 10.0))
    graph = program.graph(program(aten.mul.Tensor, program.input(special(12)), coarse))
    expected = graph.value(coarse)
    apply(graph, Simplify())
    assert names(graph) == ["reshape", "mul", "floor", "mul"]
    [floor] = [node for node in graph.calls() if node.target is aten.floor.default]
    assert same_bits(graph.value(floor), expected)
