"""Every network of the corpus is optimized, verified, and left without what the rewrites take out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from examples.models import MODELS, load
from examples.models.replknet import LargeKernel
from examples.models.unireplknet import BRANCHES, DilatedReparam
from rewrite import compat, optimize
from rewrite.result import OptimizedModule
from tests.passes.rewriting import scatter

EVALUATED_NORM = "_native_batch_norm_legit_no_training"

# how often a rule is applied at least, and operators of which none is left
EXPECTED: dict[str, tuple[dict[str, int], set[str]]] = {
    "replknet": ({"merge-branches": 2, "fold-batch-norm-after": 10, "fold-batch-norm-before": 4}, set()),
    "unireplknet": ({"merge-branches": 1, "fold-batch-norm-after": 3, "fold-layer-scale": 2}, set()),
    "inception_next": ({"fold-batch-norm-after": 1, "fold-batch-norm-before": 3}, {EVALUATED_NORM}),
    "lsnet": ({"merge-branches": 2, "fold-batch-norm-after": 15}, {"index"}),
    "eca_resnet": ({"fold-batch-norm-after": 9}, {EVALUATED_NORM}),
    "conv_first": ({"fold-batch-norm-after": 10}, {EVALUATED_NORM}),
    "dcls_convnext": ({"fold-constants": 3}, {"arange", "prod"}),
    "yolo_ms": ({"fold-batch-norm-after": 23}, {EVALUATED_NORM}),
    "cct": ({}, set()),
    "deep_rft": ({"fold-constants": 8}, {"einsum"}),
    "sgconv": ({"fold-constants": 1}, {"upsample_linear1d", "flip", "log"}),
    "hyena": ({"fold-constants": 4}, {"sin", "exp"}),
    "hyper_zzw": ({"fold-constants": 3}, {"linspace", "sin", "meshgrid"}),
}  # fmt: skip

SLOW = ("yolo_ms", "eca_resnet")
"""Others have the same layers."""


def operators(fast: OptimizedModule) -> list[str]:
    nodes = [node for node in fast.graph_module.graph.nodes if node.op == "call_function"]
    return [getattr(node.target, "_opname", getattr(node.target, "__name__", "")) for node in nodes]


def outputs(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return compat.tree_flatten(model(*inputs))[0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS]
)
def test_the_result_is_the_network_without_what_is_taken_out(name: str) -> None:
    model, inputs = load(name)
    fast = optimize(model, *inputs, lower="eager")
    report = fast.report
    assert report.model_verdict.accepted
    assert not any(record.rejections for record in report.records)
    larger = load(name, batch=3, seed=1)[1]
    for a, b in zip(outputs(fast, *larger), outputs(model, *larger), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 2e-5 * b.abs().max()
    least, gone = EXPECTED[name]
    made = [commit.rule for record in report.records for commit in record.commits]
    for rule, count in least.items():
        assert made.count(rule) >= count, rule
    assert gone.isdisjoint(operators(fast))


def test_every_network_has_expectations() -> None:
    assert EXPECTED.keys() == MODELS.keys()


# -- the large kernels ------------------------------------------------------------------------------------------------


def impulse_response(model: nn.Module, kernel: int, channels: int) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a depthwise convolution, read off what it does to an impulse and to nothing."""
    size = 2 * kernel - 1
    impulse = torch.zeros(1, channels, size, size, dtype=torch.float64)
    impulse[..., kernel - 1, kernel - 1] = 1
    with torch.no_grad():
        # away from the border, where zeros behind the padding of each branch are the same zeros
        bias = model(torch.zeros_like(impulse))[..., kernel - 1, kernel - 1]
        response = model(impulse) - bias[..., None, None]
    low = kernel - 1 - kernel // 2
    return response[0, :, low : low + kernel, low : low + kernel].flip(1, 2)[:, None], bias[0]


def merged(model: nn.Module, kernel: int, channels: int) -> None:
    """The block is one convolution, whose kernel is the impulse response of the block."""
    model = scatter(model).double()
    fast = optimize(model, torch.randn(2, channels, 15, 17, dtype=torch.float64), lower="eager")
    assert operators(fast) == ["conv2d"]
    (node,) = [node for node in fast.graph_module.graph.nodes if node.op == "call_function"]
    weight, bias = (fast.graph_module.get_buffer(str(argument.target)) for argument in node.args[1:3])
    expected, constant = impulse_response(model, kernel, channels)
    assert weight.shape == (channels, 1, kernel, kernel)
    torch.testing.assert_close(weight, expected, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(bias, constant, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kernel", BRANCHES)
def test_dilated_branches_become_one_kernel(kernel: int) -> None:
    merged(DilatedReparam(3, kernel), kernel, 3)


@pytest.mark.parametrize("kernel", [31, 29, 27, 13])
def test_large_and_small_kernels_become_one(kernel: int) -> None:
    merged(LargeKernel(2, kernel, 5), kernel, 2)
