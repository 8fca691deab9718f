"""Copies go where nobody can tell, and stay where an output or a layout shows them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from passes.simplify import Simplify
from rewrite.graph import Mutation
from rewrite.trace import capture
from tests.passes.rewriting import apply
from tests.programs import Program, aten, names, same_bits, special

CONTIGUOUS = {"memory_format": torch.contiguous_format}
CHANNELS_LAST = {"memory_format": torch.channels_last}


def simplified(program: Program, *outputs, mutations=()):
    """The simplified graph and why it was not simplified further; it computes the same bits."""
    graph = program.graph(*outputs, mutations=mutations)
    expected = program.run(graph.copy()) if not mutations else None
    result = apply(graph, Simplify())
    if expected is not None:
        assert same_bits(program.run(graph), expected)
    return names(graph), result.reasons


@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [
        (aten.clone.default, (), {}),
        (aten.clone.default, (), CONTIGUOUS),
        (aten.dropout.default, (0.3, False), {}),
        (aten.feature_dropout.default, (0.3, False), {}),
        (aten._to_copy.default, (), {"dtype": torch.float32}),
        (aten.to.dtype, (torch.float32,), {}),
    ],
    ids=str,
)
def test_a_copy_in_the_middle_goes(target, args, kwargs):
    program = Program(dynamic=True)
    x = program(aten.sin.default, program.input(special(3, 4)))
    y = program(aten.cos.default, program(target, x, *args, **kwargs))
    assert simplified(program, y) == (["sin", "cos"], [])


def test_dropout_in_training_and_real_conversions_stay():
    program = Program()
    x = program.input(special(3, 4))
    dropped = program(aten.dropout.default, x, 0.5, True)
    wide = program(aten._to_copy.default, x, dtype=torch.float64)
    graph = program.graph(program(aten.cos.default, dropped), program(aten.cos.default, wide))
    apply(graph, Simplify())
    assert names(graph) == ["dropout", "_to_copy", "cos", "cos"]


# -- memory that a caller holds ---------------------------------------------------------------------------------------


def test_a_returned_copy_of_an_input_or_weight_stays():
    program = Program()
    x, w = program.input(special(3)), program.weight("w", special(3))
    result = simplified(program, program(aten.clone.default, x), program(aten.clone.default, w))
    assert result[0] == ["clone", "clone"]
    assert len(result[1]) == 2
    assert all("become its input or weight itself" in reason for reason in result[1])


def test_dropout_in_evaluation_returns_its_argument_so_the_copy_before_it_stays():
    program = Program()
    x = program.input(special(3))
    kept, _ = simplified(program, program(aten.dropout.default, program(aten.mul.Tensor, x, 1), 0.5, False))
    assert kept == ["mul"]


def test_a_returned_view_of_a_copy_of_an_input_stays():
    program = Program()
    x = program.input(special(3, 4))
    kept, reasons = simplified(program, program(aten.permute.default, program(aten.clone.default, x), [1, 0]))
    assert kept == ["clone", "permute"]
    assert reasons == ["the model returns a copy, which would become a view of its input"]


def test_a_returned_copy_of_a_value_that_is_not_returned_goes():
    program = Program()
    x = program(aten.sin.default, program.input(special(3)))
    assert simplified(program, program(aten.clone.default, x)) == (["sin"], [])


def test_two_returned_values_stay_two():
    program = Program()
    x = program(aten.sin.default, program.input(special(3, 4)))
    flat = program(aten.reshape.default, x, [12])
    kept, reasons = simplified(program, flat, program(aten.clone.default, x))
    assert kept == ["sin", "reshape", "clone"]
    assert reasons == ["the model returns both the copy and the original, which would share memory"]


def test_new_state_does_not_become_the_input():
    program = Program()
    x, state = program.input(special(3)), program.weight("state", special(3))
    copied = program(aten.clone.default, x)
    kept, _ = simplified(
        program, program(aten.add.Tensor, copied, state), copied, mutations=(Mutation("weight", "state"),)
    )
    assert kept == ["clone", "add"]


# -- layouts ----------------------------------------------------------------------------------------------------------


def test_a_change_of_layout_stays_for_a_kernel_and_goes_before_a_reshape_that_copies():
    for target, args, left in ((aten.exp.default, (), True), (aten.reshape.default, ([-1],), False)):
        program = Program()
        turned = program(aten.permute.default, program(aten.sin.default, program.input(special(3, 4))), [1, 0])
        copied = program(aten.clone.default, turned, **CONTIGUOUS)
        kept, reasons = simplified(program, program(aten.cos.default, program(target, copied, *args)))
        assert ("clone" in kept) == left
        assert (reasons != []) == left


def test_a_change_of_layout_stays_before_a_reshape_that_would_be_a_view():
    program = Program()
    turned = program(aten.permute.default, program(aten.sin.default, program.input(special(3, 4, 5))), [1, 2, 0])
    copied = program(aten.clone.default, turned, **CONTIGUOUS)
    node = program(aten.cos.default, program(aten.reshape.default, copied, [20, 3]))
    kept, reasons = simplified(program, node)
    assert "clone" in kept
    assert reasons == ["without the copy a reshape would have other strides"]


def test_a_layout_that_the_model_asks_for_stays_where_it_is_seen():
    program = Program()
    x = program(aten.sin.default, program.input(special(2, 3, 4, 4)))
    kept, reasons = simplified(program, program(aten.clone.default, x, **CONTIGUOUS))
    assert kept == ["sin", "clone"]
    assert reasons == ["the model returns a value in a layout that it asks for"]
    program = Program()
    x = program(aten.sin.default, program.input(special(2, 3, 4, 4)))
    kept, reasons = simplified(program, program(aten._to_copy.default, x, dtype=torch.float32, **CONTIGUOUS))
    assert kept == ["sin", "_to_copy"]
    assert reasons == ["the model returns a value in a layout that it asks for"]
    program = Program()
    pairs = program(aten.clone.default, program(aten.sin.default, program.input(special(3, 2))), **CONTIGUOUS)
    kept, reasons = simplified(program, program(aten.abs.default, program(aten.view_as_complex.default, pairs)))
    assert "clone" in kept
    assert reasons == ["asks for a layout on which another operator depends"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_result_keeps_the_strides_of_the_model_for_each_layout_of_the_input(layout):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop = nn.Conv2d(3, 4, 3), nn.Dropout(0.5)

        def forward(self, x):
            y = self.drop(self.conv(self.drop(x)))
            return y.permute(0, 2, 3, 1).contiguous(), self.drop(y).flatten(1), y.contiguous(memory_format=CL)

    CL = torch.channels_last
    model = Net().eval()
    x = torch.randn(2, 3, 6, 5).contiguous(memory_format=layout)
    graph = capture(model, (x,)).graph
    apply(graph, Simplify())
    with torch.no_grad():
        for batch in (2, 1, 5):
            x = torch.randn(batch, 3, 6, 5).contiguous(memory_format=layout)
            for mine, theirs in zip(graph.to_module()(x), model(x), strict=True):
                assert torch.equal(mine, theirs)
                assert mine.stride() == theirs.stride()


def test_expanded_memory_is_not_mistaken_for_its_copy():
    program = Program()
    wide = program(aten.expand.default, program(aten.sin.default, program.input(special(1, 4))), [3, 4])
    kept, _ = simplified(program, program(aten.cos.default, program(aten.clone.default, wide)))
    assert kept == ["sin", "expand", "clone", "cos"]
