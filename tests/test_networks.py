"""`optimize` on every network of the corpus, against the network itself and against what its own library merges.

The oracle for values is the network in float64. The peer for size is `timm.utils.reparameterize_model` with all batch
norms folded that can be: counted on the exported program, without any code of this project. How often each rule
rewrites a network is compared with ``benchmarks/results/exact.json``, see tests/test_exact_table.py.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import exact
from rewrite import optimize
from tests.corpus import CORPUS, input_for, load, merged_by_timm, randomize

# the first takes two gigabytes and half a minute; the others are like smaller ones
LARGE = (
    "repvgg_d2se", "mobileone_s4", "mobileone_s0", "resnet50", "vgg11_bn", "densenet121", "repghostnet_050",
    "repvit_m0_9", "swin_tiny_patch4_window7_224", "mixnet_s", "ghostnet_050", "efficientnet_b0",
    "mobilenetv3_small_050", "fastvit_t8", "inception_next_atto", "convnext_atto",
)  # fmt: skip
SMALL = ("resnet18",)
NETWORKS = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in CORPUS]
IN_HALF = [pytest.param(name, marks=[] if name in SMALL else [pytest.mark.slow]) for name in CORPUS]
aten = torch.ops.aten
LAYERS = (aten.conv2d.default, aten.conv2d.padding, aten.linear.default)
NORM = aten._native_batch_norm_legit_no_training.default

pytestmark = pytest.mark.corpus


def small_input(model: nn.Module, batch: int = 2) -> Tensor:
    """An input as small as the network takes; the passes do not look at the size of images."""
    x = input_for(model, batch)
    fixed = hasattr(model, "pos_embed") or type(model).__name__ == "SwinTransformer"
    return x if fixed else x[..., :64, :64].contiguous()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_smaller_and_equal(name: str) -> None:
    model = randomize(load(name))
    x = small_input(model)
    fast = optimize(model, x, lower="eager")

    assert fast.report.model_verdict.accepted
    assert not [rejection for record in fast.report.records for rejection in record.rejections]
    assert_as_exact(fast, model, x, torch.float32)
    assert_as_exact(fast, model, small_input(model, 3), torch.float32)
    assert Counter(hunk.rule for hunk in fast.report.diff()) == exact.recorded()[name]["applied"]
    with torch.no_grad():
        merged = merged_by_timm(model)
        assert layers(fast.graph_module, x) <= layers(merged, x)
        assert flops(fast.graph_module, x) <= flops(merged, x)


@pytest.mark.parametrize("name", IN_HALF)
def test_a_network_in_bfloat16(name: str) -> None:
    model = randomize(load(name)).to(torch.bfloat16)
    x = small_input(model).to(torch.bfloat16)
    assert_as_exact(optimize(model, x, lower="eager"), model, x, torch.bfloat16)


@pytest.mark.parametrize(
    "name", ["repvgg_a0", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fastvit_t8", "convnext_atto"))]
)
def test_a_merged_network_is_left_alone(name: str) -> None:
    model = randomize(load(name))
    x = small_input(model)
    fast = optimize(model, x, lower="eager", verify="off")
    assert optimize(fast) is fast
    again = optimize(fast.graph_module.eval(), x, lower="eager", verify="off")
    assert not [commit for record in again.report.records for commit in record.commits]


def assert_as_exact(fast: nn.Module, model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    """The optimized network is as near to the exact values as the network itself, channel by channel."""
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        old, new = (call(x).double() - exact for call in (model, fast))
        found = fast(x)
    assert found.dtype == dtype
    assert found.shape == exact.shape
    # rounding falls by chance in one channel; over the channels both errors have the same size
    scale = exact.abs().amax()
    allowed = 4 * torch.maximum(old.abs().amax(0), 3 * old.square().mean().sqrt()) + 4 * torch.finfo(dtype).eps * scale
    worst = (new.abs().amax(0) / allowed).max()
    assert worst <= 1, f"the error is {float(worst):.2f} of what is allowed"


def layers(model: nn.Module, x: Tensor) -> int:
    """Convolutions and linear layers, and the batch norms that cannot be folded into one just before."""
    nodes = torch.export.export(model, (x,), strict=False).run_decompositions({}).graph.nodes
    count = 0
    for node in nodes:
        if node.target in LAYERS:
            count += 1
        if node.target is NORM and not (node.args[0].target in LAYERS and len(node.args[0].users) == 1):
            count += any(user.target is operator.getitem for user in node.users)
    return count


def flops(model: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()
