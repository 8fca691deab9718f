"""What is folded, what stays and why, and what the folded values are called."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import passes
from passes.fold_constants import FoldConstants
from rewrite.driver import Driver
from rewrite.graph import Graph, Mutation
from rewrite.trace import capture
from tests.passes.rewriting import apply
from tests.programs import Program, aten, names, same_bits, special


def folded(graph: Graph, **options: float):
    """Fold, verified; the folded weights by name."""
    result = apply(graph, FoldConstants(**options))
    return {name: tensor for name, tensor in graph.weights.items() if name.startswith("folded.")}, result


def test_weight_code_becomes_one_weight_with_the_bits_that_the_model_computes():
    program = Program(dynamic=True)
    x, w = program.input(special(3, 4)), program.weight("net.w", special(4))
    code = program(aten.tanh.default, program(aten.mul.Tensor, program(aten.exp.default, w), 0.1))
    graph = program.graph(program(aten.add.Tensor, x, code))
    expected = program.run(graph.copy())
    weights, result = folded(graph)
    assert names(graph) == ["add"]
    assert list(weights) == ["folded.net.w"]
    assert same_bits(program.run(graph), expected)
    assert len(result.record.commits) == 1
    assert len(result.record.commits[0].removed) == 3


def test_whole_numbers_masks_and_complex_values_fold():
    program = Program(dynamic=True)
    x, table = program.input(special(3, 16)), program.weight("table", special(9))
    index = program(aten.remainder.Scalar, program(aten.arange.default, 16), 9)
    bias = program(aten.index.Tensor, table, [index])
    mask = program(aten.ge.Scalar, program(aten.arange.default, 16), 5)
    filters = program(aten.fft_rfft.default, program.weight("filter", torch.randn(16)))
    y = program(aten.where.self, mask, program(aten.add.Tensor, x, bias), x)
    graph = program.graph(y, program(aten.mul.Tensor, program(aten.fft_rfft.default, x), filters))
    expected = program.run(graph.copy())
    weights, _ = folded(graph)
    assert names(graph) == ["add", "where", "fft_rfft", "mul"]
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float32", "torch.bool", "torch.complex64"}
    assert same_bits(program.run(graph), expected)


def test_folded_values_have_memory_of_their_own():
    program = Program()
    x, w = program.input(torch.randn(2, 3)), program.weight("w", torch.randn(3, 4))
    slim = program(aten.slice.Tensor, program(aten.permute.default, w, [1, 0]), 0, 1, 3)
    wide = program(aten.exp.default, program.weight("v", torch.randn(2, 300)))
    part = program(aten.slice.Tensor, wide, 1, 0, 3)
    conjugated = program(aten._conj.default, program.weight("c", torch.randn(2, 3, dtype=torch.complex64)))
    graph = program.graph(
        program(aten.linear.default, x, slim), program(aten.add.Tensor, x, part),
        program(aten.mul.Tensor, x, conjugated),
    )  # fmt: skip
    expected = program.run(graph.copy())
    weights, _ = folded(graph)
    assert same_bits(program.run(graph), expected)
    for value in weights.values():
        assert not value.is_conj()
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()
        assert all(value.data_ptr() != weight.data_ptr() for weight in program.weights.values() if weight is not value)
    assert weights["folded.weight"].stride() == (1, 2)  # transposed, as the model's


def test_code_that_is_shared_is_evaluated_for_each_value_and_then_gone():
    program = Program()
    x, w = program.input(torch.randn(3)), program.weight("w", torch.randn(3))
    shared = program(aten.exp.default, w)
    a, b = program(aten.neg.default, shared), program(aten.sin.default, shared)
    graph = program.graph(
        program(aten.add.Tensor, x, a), program(aten.add.Tensor, x, b), program(aten.add.Tensor, x, shared)
    )
    weights, _ = folded(graph)
    assert names(graph) == ["add", "add", "add"]
    assert sorted(weights) == ["folded.w", "folded.w_1", "folded.w_2"]
    # the program that computes them again holds the shared operator once
    assert sum(node.target is aten.exp.default for node in graph.program.fx.nodes) == 1


# -- what stays -------------------------------------------------------------------------------------------------------


def test_random_impure_and_input_dependent_values_stay():
    program = Program(dynamic=True)
    x, w = program.input(torch.randn(3, 4)), program.weight("w", torch.rand(4))
    noise = program(aten.bernoulli.default, w)
    size = program(aten.sym_size.int, x, 0)
    zeros = program(aten.zeros.default, [size, 4])
    graph = program.graph(program(aten.add.Tensor, x, noise), program(aten.add.Tensor, x, zeros))
    weights, result = folded(graph)
    assert not weights
    assert not result.reasons
    assert "bernoulli" in names(graph)


def test_weight_code_over_state_that_the_model_writes_stays():
    """A counter plus one is another number at each call; so is what shares memory with it."""
    program = Program()
    counter = torch.zeros(3)
    x, state = program.input(torch.randn(3)), program.weight("count", counter)
    view = program.weight("also_count", counter[:2])
    more = program(aten.add.Tensor, state, 1.0)
    graph = program.graph(
        program(aten.mul.Tensor, x, program(aten.exp.default, more)),
        program(aten.sum.default, program(aten.exp.default, view)),
        more, mutations=(Mutation("weight", "count"),),
    )  # fmt: skip
    weights, _ = folded(graph)
    assert not weights
    assert names(graph) == ["add", "exp", "mul", "exp", "sum"]


def test_a_returned_constant_stays_fresh_and_what_it_is_computed_from_is_folded():
    program = Program()
    x, w = program.input(torch.randn(3)), program.weight("w", torch.randn(3))
    costly = program(aten.cumsum.default, program(aten.exp.default, w), 0)
    returned = program(aten.reshape.default, program(aten.mul.Tensor, costly, 2.0), [1, 3])
    graph = program.graph(program(aten.add.Tensor, x, 1.0), returned)
    weights, result = folded(graph)
    assert names(graph) == ["mul", "reshape", "add"] or names(graph) == ["add", "mul", "reshape"]
    assert list(weights) == ["folded.w"]
    assert all("a fresh tensor at each call" in reason for reason in result.reasons)
    module = graph.to_module()
    first, second = module(*program.inputs)[1], module(*program.inputs)[1]
    assert first.data_ptr() != second.data_ptr()
    first.zero_()
    assert torch.equal(module(*program.inputs)[1], second)


def grows(program: Program, times: int):
    """A value of ``times`` MiB made from a weight of 1 MiB, and what it is computed from."""
    w = program.weight("m.w", torch.randn(2**18))
    source = program(aten.tanh.default, w)
    return source, program(aten.mul.Tensor, program(aten.expand.default, source, [times, -1]), program.weight(
        "m.scale", torch.randn(times, 1)))  # fmt: skip


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({}, True),  # the floor
        ({"floor": 4.0}, True),  # sixteen times the sources
        ({"floor": 4.0, "growth": 8.0}, True),
        ({"floor": 4.0, "growth": 7.0}, False),
        ({"floor": 8.0, "growth": 0.0}, True),
    ],
)
def test_a_value_may_grow_so_much(options, fits):
    program = Program()
    _, large = grows(program, 8)
    graph = program.graph(program(aten.mul.Tensor, program.input(torch.randn(2**18)), large))
    expected = program.run(graph.copy())
    weights, result = folded(graph, **options)
    assert same_bits(program.run(graph), expected)
    if fits:
        assert [value.shape for value in weights.values()] == [(8, 2**18)]
        assert names(graph) == ["mul"]
        return
    # the part that fits is folded, the expansion stays, and the report has the numbers
    assert names(graph) == ["expand", "mul", "mul"]
    assert [value.shape for value in weights.values()] == [(2**18,)]
    [refused] = [refused for refused in result.record.refused if "8.0 MiB" in refused.reason and "mul" in refused.node]
    assert refused.reason == "would take 8.0 MiB, 8.0 times the 1.0 MiB of its weights"
    assert refused.remedy == "fold-constants{floor=8} folds it"
    weights, _ = folded(graph, floor=8)
    assert names(graph) == ["mul"]
    assert len(weights) == 1  # the first one was folded into the second


def test_an_expansion_of_nothing_counts_in_full():
    program = Program()
    ones = program(aten.full.default, [2**20, 8], 1.0)
    graph = program.graph(program(aten.mul.Tensor, program.input(torch.randn(8)), ones))
    weights, result = folded(graph)
    assert not weights
    assert result.reasons == ["would take 32.0 MiB and comes from no weight"]


def test_an_intermediate_value_may_be_large_if_the_result_is_not():
    program = Program()
    _, large = grows(program, 40)
    small = program(aten.sum.dim_IntList, large, [0])
    graph = program.graph(program(aten.mul.Tensor, program.input(torch.randn(2**18)), small))
    weights, result = folded(graph)
    assert names(graph) == ["mul"]
    assert len(weights) == 1
    assert not result.reasons


# -- names ------------------------------------------------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.normed = parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
        self.tied = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.randn(7))
        self.register_buffer("index", torch.arange(4))

    def forward(self, x):
        x = self.normed(self.stem(x)).mean((2, 3))
        return (x @ self.tied.weight.exp()).relu() + self.table[self.index] + torch.arange(4).to(x)


def test_names_say_which_layer_reads_them_are_unique_and_repeat():
    found = []
    for _ in range(2):
        model = Named().eval()
        graph = capture(model, (torch.randn(2, 3, 6, 6),)).graph
        Driver(graph).run(passes.default_pipeline())
        found.append(sorted(name for name in graph.weights if name.startswith("folded.")))
        for name in graph.weights:
            assert all(re.fullmatch(r"\w+", part) for part in name.split("."))
        graph.to_module()  # every name is an attribute
    first, second = found
    assert first == second
    assert {"folded.stem.0.weight", "folded.stem.0.bias", "folded.normed.weight", "folded.table"} <= set(first)
    assert "folded.tied.weight" in first


def test_a_name_is_neither_taken_nor_the_path_to_one():
    program = Program()
    x = program.input(torch.randn(3))
    program.weight("folded.w", torch.randn(3))
    outputs = [program(aten.add.Tensor, x, program(aten.exp.default, program.weight("w", torch.randn(3))))]
    for name in ("folded.w", "folded.a.b", "a"):
        node = program.weight(name, program.weights.get(name, torch.randn(3)))
        outputs.append(program(aten.add.Tensor, x, program(aten.exp.default, node)))
        outputs.append(program(aten.add.Tensor, x, node))
    graph = program.graph(*outputs)
    expected = program.run(graph.copy())
    weights, _ = folded(graph)
    assert {"folded.w", "folded.w_1", "folded.folded.w", "folded.a_1", "folded.folded.a.b"} <= set(weights)
    assert same_bits(program.run(graph), expected)
