"""`optimize` on whole networks that are drawn, with the network itself in float64 as the oracle.

``python -m benchmarks.random_networks`` runs every rule over thousands of them and compares element by element.
"""

from __future__ import annotations

import copy

import torch
from hypothesis import given
from torch import Tensor

from rewrite import optimize
from rewrite.testing.networks import Network, networks
from tests.drawn import COSTLY


@given(networks(batches=(2, 1, 3)))
@COSTLY
def test_an_optimized_network_is_equal(network: Network) -> None:
    model, inputs = network.module(), network.inputs()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = optimize(model, *inputs, lower="eager")

    assert not [rejection for record in fast.report.records for rejection in record.rejections]
    assert fast.report.model_verdict.accepted
    with torch.no_grad():
        results, expected = (flat(call(*inputs)) for call in (fast, model))
        exact = flat(copy.deepcopy(model).double()(*(x.double() for x in inputs)))
    for result, theirs, truth in zip(results, expected, exact, strict=True):
        assert (result.shape, result.dtype) == (theirs.shape, theirs.dtype)
        assert error(result, truth) <= 16 * error(theirs, truth) + 256 * torch.finfo(result.dtype).eps * size(truth)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def flat(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def error(result: Tensor, truth: Tensor) -> float:
    return size(result.double() - truth)


def size(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
