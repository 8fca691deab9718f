"""Shifts that take away most of the model's input, which are not folded behind a product."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from passes import FoldAffine
from rewrite import optimize
from rewrite.backend import torch_rewrite
from rewrite.example import KEY, recall
from rewrite.trace import capture
from tests.passes.blocks import Block, conv
from tests.passes.rewriting import rewrite

REMEDY = "subtract it before the model is called, or scale the model's inputs to be near zero"


def centred(number: float, **others: nn.Module) -> Block:
    return Block(lambda self, x: self.layer((x - number) / 2), layer=nn.Linear(64, 8), **others).eval()


def reason(times: str, digits: str, what: str = "the shift") -> str:
    return (
        f"the model's input is {times} times as large as what is left of it behind {what}, so folding it would lose "
        f"{digits}"
    )


@pytest.mark.parametrize(
    ("dtype", "centre", "expected"),
    [(torch.float16, 1e3, reason("1000", "3 digits")), (torch.float32, 1e6, reason("1000000", "6 digits")),
     (torch.bfloat16, 30.0, reason("30", "1 digit"))],
)  # fmt: skip
def test_what_is_centred_in_the_model_is_centred_before_the_layer(dtype: torch.dtype, centre: float, expected: str):
    torch.manual_seed(0)
    model, x = centred(centre).to(dtype), (torch.randn(16, 64) + centre).to(dtype)
    fast = optimize(model, x, pipeline=FoldAffine(), lower="eager", cache=False)
    truth = copy.deepcopy(model).double()(x.double())
    assert (fast(x) - truth).abs().max() <= 8 * torch.finfo(dtype).eps
    assert [(refusal.reason, refusal.remedy) for refusal in fast.report.refusals()] == [(expected, REMEDY)]


def test_timestamps_are_centred_before_the_layer():
    model = Block(lambda self, x: self.layer((x - 1.7e9) / 86400), layer=nn.Linear(8, 8)).eval()
    x = 1.7e9 + torch.arange(0.0, 2e6, 1e5).expand(8, 20).T
    assert reason("2000", "3 digits") in rewrite(model, FoldAffine(), x).reasons


def test_one_channel_is_enough():
    mean = torch.tensor([0.5, 400.0, 0.4])[:, None, None]
    model = Block(lambda self, x: self.layer(x - self.mean), layer=conv(3, 4, 2)).eval()
    model.register_buffer("mean", mean)
    x = mean + torch.tensor([-0.5, 0.5])[:, None, None, None].expand(2, 3, 9, 9)
    assert rewrite(model, FoldAffine(), x).reasons == [reason("800", "3 digits")]


def test_nothing_may_be_left():
    result = rewrite(centred(3.0), FoldAffine(), torch.full((2, 64), 3.0))
    assert result.reasons == [
        "nothing is left of the model's input behind the shift, so folding it would leave rounding"
    ]


def test_a_norm_of_the_input_is_judged_likewise():
    norm = nn.BatchNorm1d(64).eval()
    norm.running_mean.fill_(1e4)
    model = Block(lambda self, x: self.layer(self.norm(x)), norm=norm, layer=nn.Linear(64, 8)).eval()
    assert reason("10000", "4 digits", "the norm") in rewrite(model, FoldAffine(), 1e4 + torch.randn(2, 64)).reasons
    assert rewrite(model, FoldAffine(), torch.randn(2, 64)).record.commits


def test_a_shift_before_a_convolution_that_pads():
    model = Block(lambda self, x: self.layer(x - 1e4), layer=conv(2, 2, 3, stride=4, padding=1)).eval()
    assert rewrite(model, FoldAffine(), torch.randn(2, 2, 16, 16)).record.commits
    assert reason("10000", "4 digits") in rewrite(model, FoldAffine(), 1e4 + torch.randn(2, 2, 16, 16)).reasons


FOLDED: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "pixels": lambda self, x: self.layer((255 * x.sigmoid() - 120) / 58),
    "a shift behind a layer": lambda self, x: self.layer(self.first(x) - 1e4),
    "pixels from the input": lambda self, x: self.layer((x.abs() * 100 - 120) / 58),
    "one row": lambda self, x: self.layer(x[:1] + torch.linspace(-3, 3, 64)),
}


@pytest.mark.parametrize("name", FOLDED)
def test_other_shifts_are_folded(name: str):
    model = Block(FOLDED[name], layer=nn.Linear(64, 8), first=nn.Linear(64, 64)).eval()
    assert rewrite(model, FoldAffine(), torch.randn(16, 64)).record.commits


def test_bytes_of_images_are_folded():
    model = Block(lambda self, x: self.layer((x.float() - 120.0) / 58.0), layer=conv(3, 8, 4, stride=4)).eval()
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert len(rewrite(model, FoldAffine(), x).record.commits) == 2


@pytest.mark.parametrize("dynamic", [False, True])
def test_inside_torch_compile_the_traced_call_is_the_example(dynamic: bool):
    torch.manual_seed(0)
    model = centred(1e6).requires_grad_(False)
    compiled = torch.compile(model, backend=torch_rewrite, options={"lower": "eager"}, dynamic=dynamic)
    x = torch.randn(16, 64) + 1e6
    assert (compiled(x) - copy.deepcopy(model).double()(x.double())).abs().max() <= 1e-6


# -- the example ------------------------------------------------------------------------------------------------------


def test_a_graph_refers_to_its_example_and_does_not_keep_it():
    x = torch.randn(3, 64)
    captured = capture(centred(1.0), (x,))
    graph = captured.graph.copy()
    [found] = recall(graph) or []
    assert found is x
    assert all(KEY not in node.meta for node in graph.to_module().graph.nodes)
    del captured, found, x
    gc.collect()
    assert recall(graph) is None


def test_arguments_that_are_no_tensors_are_part_of_it():
    model = Block(lambda self, x, y=None, z=2: self.layer(x) * z, layer=nn.Linear(4, 4)).eval()
    x = torch.randn(3, 4)
    assert recall(capture(model, (x, None, 3)).graph) == [x, None, 3]
