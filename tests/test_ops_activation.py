"""What is known of activations, against what they compute."""

from __future__ import annotations

import math

import pytest
import torch

from rewrite import ops
from tests.programs import Program, aten

r = torch.randn


ACTIVATIONS = [
    # operator, parameters, monotone, homogeneous
    (aten.relu.default, (), True, True),
    (aten.relu6.default, (), True, False),
    (aten.hardtanh.default, (-0.5, 0.75), True, False),
    (aten.clamp.default, (-0.5, 0.75), True, False),
    (aten.clamp.default, (None, 0.0), True, True),
    (aten.clamp.default, (0.5, -0.5), False, False),
    (aten.clamp_min.default, (0.0,), True, True),
    (aten.clamp_max.default, (0.25,), True, False),
    (aten.leaky_relu.default, (), True, True),
    (aten.leaky_relu.default, (-0.3,), False, True),
    (aten.sigmoid.default, (), True, False),
    (aten.tanh.default, (), True, False),
    (aten.hardsigmoid.default, (), True, False),
    (aten.elu.default, (0.7, 1.1, 0.6), True, False),
    (aten.elu.default, (-0.7,), False, False),
    (aten.selu.default, (), True, False),
    (aten.celu.default, (0.5,), True, False),
    (aten.log_sigmoid.default, (), True, False),
    (aten.exp.default, (), True, False),
    (aten.expm1.default, (), True, False),
    (aten.erf.default, (), True, False),
    (aten.atan.default, (), True, False),
    (aten.asinh.default, (), True, False),
    (aten.threshold.default, (0.5, -1.0), True, False),
    (aten.threshold.default, (0.5, 1.0), False, False),
    (aten.softplus.default, (), False, False),
    (aten.gelu.default, (), False, False),
    (aten.silu.default, (), False, False),
    (aten.mish.default, (), False, False),
    (aten.hardswish.default, (), False, False),
    (aten.abs.default, (), False, True),
    (aten.square.default, (), False, False),
    (aten.sin.default, (), False, False),
    (aten.cos.default, (), False, False),
    (aten.pow.Tensor_Scalar, (2,), False, False),
]


@pytest.mark.parametrize(
    ("target", "parameters", "monotone", "homogeneous"), ACTIVATIONS, ids=[f"{c[0]}{c[1]}" for c in ACTIVATIONS]
)
def test_an_activation_knows_its_function(target, parameters, monotone, homogeneous):
    program = Program()
    found = ops.activation(program(target, program.input(r(3, 4)), *parameters))
    assert found is not None
    assert (found.monotone, found.homogeneous) == (monotone, homogeneous)
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    y = target(x, *parameters)
    if monotone:
        assert (y.diff() >= 0).all()
        assert target(torch.tensor(math.nan), *parameters).isnan()
    if homogeneous:
        torch.testing.assert_close(target(3.7 * x, *parameters), 3.7 * y)
    else:
        assert not torch.allclose(target(3.7 * x, *parameters), 3.7 * y)


def test_every_activation_is_tried():
    from rewrite.ops.activation import _TARGETS

    assert {case[0] for case in ACTIVATIONS} == _TARGETS


def test_activations_are_told_apart_by_their_parameters():
    program = Program()
    x = program.input(r(3))
    calls = [program(aten.leaky_relu.default, x, *slope) for slope in [(), (0.01,), (0.02,)]]
    first, same, other = (ops.activation(call).function for call in calls)
    assert first == same != other
    tanh = program(aten.gelu.default, x, approximate="tanh")
    assert ops.activation(tanh).function != ops.activation(program(aten.gelu.default, x)).function


def test_an_activation_is_built_again_over_another_input():
    program = Program()
    x, y = program.input(r(3)), program.input(r(3))
    for target, parameters in ((aten.leaky_relu.default, (0.2,)), (aten.clamp.default, (None, 0.5))):
        call = program(target, x, *parameters)
        again = ops.activation(call).on(program, y)
        assert again.args == (y, *call.args[1:])
    again = ops.activation(program(aten.gelu.default, x, approximate="tanh")).on(program, y)
    assert again.kwargs == {"approximate": "tanh"}


def test_what_changes_the_dtype_or_counts_is_no_activation():
    program = Program()
    assert ops.activation(program(aten.exp.default, program.input(torch.arange(3)))) is None
    assert ops.activation(program(aten.relu.default, program.input(torch.arange(3)))) is None
    assert ops.activation(program.input(r(2))) is None
