"""Every operator over a field against torch's own kernel, in float64 on small integers, where that is exact."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from math import isqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Node

from rewrite.testing.field import PRIMES, Field
from rewrite.testing.modulo import MOVING, evaluate_modulo
from rewrite.testing.polynomials import OPERATORS, NotPolynomialError
from tests.programs import Program, aten

Build = Callable[[Program, Callable[..., Node]], Any]


class Rooted(Field):
    """The field with true square roots, of arguments that are squares of small integers."""

    def apply(self, function: str, a: Tensor) -> Tensor:
        assert function == "sqrt"
        assert all(isqrt(value) ** 2 == value for value in a.flatten().tolist())
        return a.double().sqrt().long()


def integers(*shape: int, low: int = -4, high: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randint(low, high, shape, generator=generator).double()


MASK = torch.tensor([[True, False, True], [False, False, True]])
SIGNS = torch.tensor([[3.0, -3.0, 3.0, -3.0], [5.0, 5.0, -5.0, -5.0]], dtype=torch.float64)
PAIRS = torch.tensor([[[3.0], [-3.0], [5.0], [-5.0]], [[-5.0], [5.0], [3.0], [-3.0]]], dtype=torch.float64)
CONVOLUTIONS: dict[str, tuple[Any, ...]] = {
    "conv1d": (aten.conv1d.default, (2, 4, 9), (6, 2, 3), 6, [2], [1], [2], 2),
    "conv2d": (aten.conv2d.default, (2, 3, 7, 6), (4, 3, 3, 2), None, [2, 1], [1, 2], [1, 2], 1),
    "conv2d unbatched": (aten.conv2d.default, (3, 7, 6), (4, 3, 3, 2), 4),
    "conv2d depthwise": (aten.conv2d.default, (2, 3, 4, 5), (6, 1, 2, 2), 6, [1, 1], [3, 0], [1, 1], 3),
    "conv3d": (aten.conv3d.default, (1, 2, 4, 3, 5), (3, 2, 2, 1, 3), 3, [1, 2, 1], [1, 0, 1]),
    "conv2d same": (aten.conv2d.padding, (2, 2, 5, 6), (3, 2, 4, 3), 3, [1, 1], "same", [1, 2]),
    "conv2d valid": (aten.conv2d.padding, (2, 2, 5, 6), (3, 2, 4, 3), 3, [2, 1], "valid"),
    "transposed 1d": (aten.conv_transpose1d.default, (2, 4, 5), (4, 3, 3), 6, [2], [1], [1], 2, [2]),
    "transposed 2d": (aten.conv_transpose2d.input, (2, 3, 3, 4), (3, 2, 2, 3), None, [3, 2], [1, 0], [2, 1], 1, [1, 2]),
    "transposed 3d": (aten.conv_transpose3d.input, (1, 2, 2, 3, 1), (2, 1, 2, 1, 3), 1, [2, 1, 1], [0, 0, 1]),
    "convolution": (aten.convolution.default, (2, 4, 5, 4), (2, 4, 3, 3), 2, [2, 1], [0, 1], [1, 1], False, [0, 0], 1),
    "convolution transposed": (
        aten.convolution.default, (2, 4, 3, 4), (4, 1, 3, 3), 2, [2, 1], [0, 1], [1, 1], True, [1, 0], 2,
    ),
}  # fmt: skip


def convolution(target: Any, size: Any, kernel: Any, bias: int | None = None, *rest: Any) -> Build:
    def build(g: Program, x: Callable[..., Node]) -> Node:
        return g(target, x(*size), x(*kernel, seed=1), None if bias is None else x(bias), *rest)

    return build


def of(target: Any, size: tuple[int, ...], *args: Any, **kwargs: Any) -> Build:
    """An operator on one tensor."""
    return lambda g, x: g(target, x(*size), *args, **kwargs)


def of_two(target: Any, one: tuple[int, ...], other: tuple[int, ...], *args: Any, **kwargs: Any) -> Build:
    return lambda g, x: g(target, x(*one), x(*other, seed=1), *args, **kwargs)


CASES: dict[str, Build] = {
    **{name: convolution(*case) for name, case in CONVOLUTIONS.items()},
    "add": of_two(aten.add.Tensor, (2, 3), (3,), alpha=-2),
    "add a number": of(aten.add.Tensor, (2, 3), 0.3),
    "sub": of_two(aten.sub.Tensor, (2, 3), (2, 1), alpha=0.5),
    "rsub": of(aten.rsub.Scalar, (2, 3), 7, 3),
    "mul": of_two(aten.mul.Tensor, (2, 3), (2, 1)),
    "mul by a number": of(aten.mul.Scalar, (2, 3), 1 / 3),
    "mul by a mask": lambda g, x: g(aten.mul.Tensor, x(2, 3), g.weight("mask", MASK)),
    "multiply": of_two(aten.multiply.Tensor, (2, 3), (2, 3)),
    "div": of(aten.div.Tensor, (2, 3), 6),
    "div by a tensor": lambda g, x: g(aten.div.Tensor, x(2, 3), x(3, low=1)),
    "true_divide": of(aten.true_divide.Tensor, (2, 3), 0.7),
    "neg": of(aten.neg.default, (2, 3)),
    "reciprocal": lambda g, x: g(aten.reciprocal.default, x(2, 3, low=1)),
    "square": of(aten.square.default, (2, 3)),
    "sqrt": lambda g, x: g(aten.sqrt.default, g(aten.square.default, x(2, 3, low=0))),
    "rsqrt": lambda g, x: g(aten.rsqrt.default, g(aten.square.default, x(2, 3, low=1))),
    "pow": of(aten.pow.Tensor_Scalar, (2, 3), 3),
    "pow inverse": lambda g, x: g(aten.pow.Tensor_Scalar, x(2, 3, low=1), -2),
    "pow root": lambda g, x: g(aten.pow.Tensor_Scalar, g(aten.square.default, x(2, 3, low=1)), -0.5),
    "addcmul": lambda g, x: g(aten.addcmul.default, x(2, 3), x(3), x(2, 1), value=-3),
    "addcdiv": lambda g, x: g(aten.addcdiv.default, x(2, 3), x(3), x(2, 1, low=1)),
    "_to_copy": of(aten._to_copy.default, (2, 3), dtype=torch.float64),
    "to": of(aten.to.dtype, (2, 3), torch.float64),
    "type_as": of_two(aten.type_as.default, (2, 3), (1,)),
    "zeros_like": of(aten.zeros_like.default, (2, 3)),
    "ones_like": of(aten.ones_like.default, (2, 3)),
    "full_like": of(aten.full_like.default, (2, 3), 0.25),
    "new_zeros": of(aten.new_zeros.default, (2, 3), [4]),
    "new_ones": of(aten.new_ones.default, (2, 3), [4, 1]),
    "new_full": of(aten.new_full.default, (2, 3), [2], -1.5),
    "created": lambda g, x: g(aten.mul.Tensor, x(4), g(aten.arange.start_step, 0, 2, 0.5, dtype=torch.float64)),
    "sum": of(aten.sum.default, (2, 3)),
    "sum over dimensions": of(aten.sum.dim_IntList, (2, 3, 4), [0, -1], True),
    "sum over all": of(aten.sum.dim_IntList, (2, 3, 4), None),
    "mean": of(aten.mean.default, (2, 3)),
    "mean over dimensions": of(aten.mean.dim, (2, 3, 7), [1, 2]),
    "var": of(aten.var.correction, (2, 3, 5), [1, 2], correction=0, keepdim=True),
    "var unbiased": of(aten.var.dim, (2, 5), [1]),
    "cumsum": of(aten.cumsum.default, (2, 5), 1),
    "mm": of_two(aten.mm.default, (2, 3), (3, 4)),
    "bmm": of_two(aten.bmm.default, (5, 2, 3), (5, 3, 4)),
    "matmul": of_two(aten.matmul.default, (5, 2, 3), (3, 4)),
    "matmul of vectors": of_two(aten.matmul.default, (3,), (3,)),
    "matmul with a vector": of_two(aten.matmul.default, (3,), (2, 3, 4)),
    "mv": of_two(aten.mv.default, (2, 3), (3,)),
    "dot": of_two(aten.dot.default, (3,), (3,)),
    "addmm": lambda g, x: g(aten.addmm.default, x(4), x(2, 3), x(3, 4), beta=2, alpha=-1),
    "baddbmm": lambda g, x: g(aten.baddbmm.default, x(5, 2, 4), x(5, 2, 3), x(5, 3, 4)),
    "addbmm": lambda g, x: g(aten.addbmm.default, x(2, 4), x(5, 2, 3), x(5, 3, 4)),
    "linear": lambda g, x: g(aten.linear.default, x(2, 5, 3), x(4, 3), x(4)),
    "linear without bias": of_two(aten.linear.default, (2, 3), (4, 3)),
    "einsum": lambda g, x: g(aten.einsum.default, "bij, bkj -> bik", [x(2, 3, 4), x(2, 5, 4)]),
    "avg_pool1d": of(aten.avg_pool1d.default, (2, 3, 7), [3], [2], [1]),
    "avg_pool2d": of(aten.avg_pool2d.default, (2, 3, 7, 6), [3, 2], [2, 1], [1, 1], True, False),
    "avg_pool2d over the end": of(aten.avg_pool2d.default, (2, 3, 8, 7), [3, 2], [2, 3], [1, 1], True, True),
    "avg_pool2d with a divisor": of(aten.avg_pool2d.default, (2, 3, 7, 6), [3], [], [0], True, True, 5),
    "avg_pool3d": of(aten.avg_pool3d.default, (2, 3, 4, 5, 6), [2, 3, 2], [2, 1, 2], [1, 1, 0], False, False),
    "adaptive_avg_pool1d": of(aten.adaptive_avg_pool1d.default, (2, 3, 7), [3]),
    "adaptive_avg_pool2d": of(aten.adaptive_avg_pool2d.default, (2, 3, 7, 4), [5, 2]),
    "_adaptive_avg_pool2d": of(aten._adaptive_avg_pool2d.default, (2, 3, 7, 4), [1, 1]),
    "adaptive_avg_pool3d": of(aten.adaptive_avg_pool3d.default, (2, 3, 4, 5, 6), [2, 2, 4]),
    "_adaptive_avg_pool3d": of(aten._adaptive_avg_pool3d.default, (2, 3, 4, 5, 6), [1, 1, 1]),
    "batch_norm": lambda g, x: g(
        aten.batch_norm.default,
        x(2, 3, 4), x(3), x(3), x(3), g(aten.square.default, x(3, low=1)), False, 0.1, 0.0, True,
    ),
    "_native_batch_norm_legit_no_training": lambda g, x: g(operator.getitem, g(
        aten._native_batch_norm_legit_no_training.default,
        x(2, 3), None, None, x(3), g(aten.sub.Tensor, g(aten.square.default, x(3, low=1)), 0.5), 0.1, 0.5,
    ), 0),
    "layer_norm": lambda g, x: g(aten.layer_norm.default, g.input(SIGNS), [4], x(4), x(4), 0.0),
    "layer_norm over two": lambda g, x: g(aten.layer_norm.default, g.input(SIGNS[..., None]), [4, 1], None, None, 0.0),
    "group_norm": lambda g, x: g(aten.group_norm.default, g.input(PAIRS), 2, x(4), x(4), 0.0),
    "permute": of(aten.permute.default, (2, 3, 4), [2, 0, 1]),
    "transpose": of(aten.transpose.int, (2, 3, 4), 0, -1),
    "t": of(aten.t.default, (2, 3)),
    "unsqueeze": of(aten.unsqueeze.default, (2, 3), 1),
    "squeeze": of(aten.squeeze.dim, (2, 1), 1),
    "expand": of(aten.expand.default, (2, 1), [2, 4]),
    "expand_as": of_two(aten.expand_as.default, (2, 1), (2, 3)),
    "clone": of(aten.clone.default, (2, 3)),
    "contiguous": of(aten.contiguous.default, (2, 3)),
    "detach": of(aten.detach.default, (2, 3)),
    "alias": of(aten.alias.default, (2, 3)),
    "lift_fresh_copy": of(aten.lift_fresh_copy.default, (2, 3)),
    "movedim": of(aten.movedim.int, (2, 3, 4), 0, 2),
    "dropout": of(aten.dropout.default, (2, 3), 0.5, False),
    "cat": lambda g, x: g(aten.cat.default, [x(2, 3), x(2, 1)], 1),
    "concat": lambda g, x: g(aten.concat.default, [x(2, 3), x(1, 3)]),
    "concatenate": lambda g, x: g(aten.concatenate.default, [x(2, 3), x(2, 2)], 1),
    "stack": lambda g, x: g(aten.stack.default, [x(2, 3), x(2, 3, seed=1)], 1),
    "split": lambda g, x: g(operator.getitem, g(aten.split.Tensor, x(2, 5), 2, 1), 1),
    "split_with_sizes": lambda g, x: g(operator.getitem, g(aten.split_with_sizes.default, x(2, 5), [1, 4], 1), 1),
    "chunk": lambda g, x: g(operator.getitem, g(aten.chunk.default, x(2, 5), 2, 1), 1),
    "tensor_split": lambda g, x: g(operator.getitem, g(aten.tensor_split.sections, x(2, 5), 2, 1), 1),
    "unbind": lambda g, x: g(operator.getitem, g(aten.unbind.int, x(2, 5), 1), 3),
    "flip": of(aten.flip.default, (2, 3), [1]),
    "roll": of(aten.roll.default, (2, 3), [1], [1]),
    "rot90": of(aten.rot90.default, (2, 3)),
    "pixel_shuffle": of(aten.pixel_shuffle.default, (1, 8, 2, 3), 2),
    "pixel_unshuffle": of(aten.pixel_unshuffle.default, (1, 2, 4, 6), 2),
    "channel_shuffle": of(aten.channel_shuffle.default, (1, 6, 2, 2), 3),
    "reshape": of(aten.reshape.default, (2, 3), [3, -1]),
    "view": of(aten.view.default, (2, 3), [6]),
    "_unsafe_view": of(aten._unsafe_view.default, (2, 3), [6]),
    "flatten": of(aten.flatten.using_ints, (2, 3, 4), 1),
    "unflatten": of(aten.unflatten.int, (2, 6), 1, [2, 3]),
    "slice": of(aten.slice.Tensor, (2, 6), 1, 1, 5, 2),
    "select": of(aten.select.int, (2, 6), 1, 3),
    "narrow": of(aten.narrow.default, (2, 6), 1, 2, 3),
    "index": lambda g, x: g(aten.index.Tensor, x(4, 3), [g.weight("places", torch.tensor([3, 0, 3]))]),
    "index_select": lambda g, x: g(aten.index_select.default, x(4, 3), 1, g.weight("places", torch.tensor([2, 0]))),
    "gather": lambda g, x: g(aten.gather.default, x(2, 3), 1, g.weight("places", torch.tensor([[2], [1]]))),
    "embedding": lambda g, x: g(aten.embedding.default, x(4, 3), g.weight("places", torch.tensor([[2, 1]]))),
    "repeat": of(aten.repeat.default, (2, 3), [2, 2]),
    "tile": of(aten.tile.default, (2, 3), [2]),
    "repeat_interleave": of(aten.repeat_interleave.self_int, (2, 3), 2, 1),
    "diagonal": of(aten.diagonal.default, (3, 3)),
    "diag_embed": of(aten.diag_embed.default, (3,)),
    "tril": of(aten.tril.default, (3, 3)),
    "triu": of(aten.triu.default, (3, 3), 1),
    "where": lambda g, x: g(aten.where.ScalarOther, g.weight("mask", MASK), x(2, 3), -0.5),
    "where of two": lambda g, x: g(aten.where.self, g.weight("mask", MASK), x(2, 3), x(3)),
    "masked_fill": lambda g, x: g(aten.masked_fill.Scalar, x(2, 3), g.weight("mask", MASK), 0.2),
    "select_scatter": of_two(aten.select_scatter.default, (2, 3), (2,), 1, 2),
    "slice_scatter": of_two(aten.slice_scatter.default, (2, 3), (2, 2), 1, 0, 2),
    "unfold": of(aten.unfold.default, (2, 7), 1, 3, 2),
    "im2col": of(aten.im2col.default, (1, 2, 4, 5), [2, 3], [1, 1], [1, 0], [1, 1]),
    "pad": of(aten.pad.default, (2, 3), [1, -1], "constant", -2.5),
    "pad circular": of(aten.pad.default, (1, 2, 5), [2, 1], "circular"),
    "constant_pad_nd": of(aten.constant_pad_nd.default, (2, 3), [0, 2], 3),
    "reflection_pad1d": of(aten.reflection_pad1d.default, (2, 5), [2, 3]),
    "reflection_pad2d": of(aten.reflection_pad2d.default, (1, 2, 4, 5), [1, 2, 3, 0]),
    "reflection_pad3d": of(aten.reflection_pad3d.default, (1, 2, 3, 4, 3), [1, 2, 1, 0, 1, 1]),
    "replication_pad1d": of(aten.replication_pad1d.default, (2, 5), [2, 3]),
    "replication_pad2d": of(aten.replication_pad2d.default, (1, 2, 4, 5), [1, 2, 3, 0]),
    "replication_pad3d": of(aten.replication_pad3d.default, (1, 2, 3, 4, 3), [1, 2, 1, 0, 1, 1]),
    "upsample_nearest1d": of(aten.upsample_nearest1d.default, (1, 2, 3), [5]),
    "upsample_nearest2d": of(aten.upsample_nearest2d.vec, (1, 2, 3, 2), None, [2.0, 2.0]),
    "upsample_nearest3d": of(aten.upsample_nearest3d.default, (1, 2, 3, 2, 2), [3, 4, 2]),
}  # fmt: skip


def built(case: str) -> tuple[Program, Any]:
    program = Program()

    def drawn(*shape: int, **options: int) -> Node:
        return program.weight(f"weight{len(program.weights)}", integers(*shape, **options))

    return program, CASES[case](program, drawn)


@pytest.mark.parametrize("case", CASES)
def test_operator(case: str):
    program, result = built(case)
    graph, field = program.graph(result), Rooted(PRIMES[0])
    weights = {name: field.numbers(tensor) if tensor.is_floating_point() else tensor
               for name, tensor in graph.weights.items()}  # fmt: skip
    [found] = evaluate_modulo(graph, field, [field.numbers(x) for x in program.inputs], weights)
    [expected] = program.run(graph)
    assert expected.dtype == torch.float64
    expected = torch.where(expected.abs() < 1e-12, 0.0, expected)  # torch's norms round, also where the result is whole
    assert torch.equal(found, field.numbers(expected))


def test_every_operator_is_tried():
    tried = {re.match(r"\S+", case)[0] for case in CASES if not case.startswith(("transposed", "created"))}
    tried |= {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
    assert MOVING | OPERATORS.keys() == tried


def test_sizes_are_numbers():
    program = Program(dynamic=True)
    x = program.input(torch.ones(4, 3))
    pieces = program(aten.reshape.default, x, [program(aten.sym_size.int, x, 0), 3, 1])
    total = program(aten.sum.dim_IntList, pieces, [0])
    graph, field = program.graph(total), Field()
    [found] = evaluate_modulo(graph, field, [torch.ones(7, 3, dtype=torch.int64)], {})
    assert torch.equal(found, torch.full((3, 1), 7))


def test_an_operator_that_is_no_polynomial_is_named():
    program = Program()
    graph = program.graph(program(aten.relu.default, program.input(torch.ones(3))))
    field = Field()
    with pytest.raises(NotPolynomialError, match=r"'relu_default', aten\.relu\.default, .* opaque=\{'relu'\}"):
        evaluate_modulo(graph, field, [field.draw((3,))], {})


def test_an_opaque_operator_is_a_function_of_each_element():
    program = Program()
    x = program.input(torch.ones(2, 3))
    steep, flat = program(aten.leaky_relu.default, x, 0.5), program(aten.leaky_relu.default, x, 0.1)
    turned = program(aten.leaky_relu.default, program(aten.t.default, x), 0.5)
    graph, field = program.graph(steep, flat, turned), Field()
    one, other, third = evaluate_modulo(graph, field, [field.draw((2, 3))], {}, {"leaky_relu"})
    assert torch.equal(third.T, one)
    assert not (one == other).any()


@pytest.mark.parametrize("target", [aten.softmax.int, aten.cumprod.default])
def test_an_operator_that_is_no_function_of_each_element_is_not_opaque(target: Any):
    program = Program()
    graph = program.graph(program(target, program.input(torch.ones(2, 3)), 1))
    field = Field()
    with pytest.raises(NotPolynomialError, match="no function of each element"):
        evaluate_modulo(graph, field, [field.draw((2, 3))], {}, {"softmax", "cumprod"})


def test_random_operators_and_statistics_of_the_batch_are_refused():
    program, field = Program(), Field()
    x = program.input(torch.ones(2, 3))
    for result, text in [
        (program(aten.dropout.default, x, 0.5, True), "it is random"),
        (program(aten.batch_norm.default, x, None, None, None, None, True, 0.1, 1e-5, True), "batch statistics"),
    ]:
        graph = Program.graph(program, result)
        with pytest.raises(NotPolynomialError, match=text):
            evaluate_modulo(graph, field, [field.draw((2, 3))], {})
        program.fx.erase_node(program.fx.output_node())
        program.fx.erase_node(result)
