from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rewrite.cost import Counts, count
from rewrite.flops import Sizes, flops
from rewrite.trace import capture

if TYPE_CHECKING:
    from collections.abc import Callable

    from rewrite.graph import Graph


class Calls(nn.Module):
    """A function as a module, over weights ``w0``, ``w1``, ..."""

    def __init__(self, function: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        for i, shape in enumerate(shapes):
            self.register_parameter(f"w{i}", nn.Parameter(torch.randn(shape)))

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self._parameters.values())


def graph_of(module: nn.Module, *shape: int) -> Graph:
    """The program of a module for a symbolic batch of inputs of this shape."""
    return capture(module.eval(), (torch.randn(2, *shape),)).graph


def counted_by_torch(module: nn.Module, *shape: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.randn(1, *shape))
    return int(counter.get_total_flops())


ELEMENTWISE = {"relu", "add", "_native_batch_norm_legit_no_training", "max_pool2d", "adaptive_avg_pool2d"}


def products(graph: Graph) -> int:
    """FLOPs without those of the operators that torch's counter leaves out."""
    sizes = Sizes(graph)
    calls = [node for node in graph.calls() if getattr(node.target, "_opname", "") not in ELEMENTWISE]
    return sum(flops(node, sizes) for node in calls)


CONVOLUTIONS = {
    "plain": (nn.Conv2d(6, 8, 3), (6, 9, 7)),
    "strided, grouped, dilated": (nn.Conv2d(6, 8, (3, 2), (2, 1), (1, 3), (1, 2), groups=2), (6, 9, 7)),
    "same": (nn.Conv2d(6, 8, 4, padding="same", dilation=2), (6, 9, 7)),
    "depthwise 1d": (nn.Conv1d(6, 6, 5, groups=6), (6, 19)),
    "3d": (nn.Conv3d(2, 4, 3), (2, 5, 6, 7)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, 2, groups=2, output_padding=1), (6, 9, 7)),
}
PRODUCTS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (7, 6)),
    "matmul": (Calls(lambda x, w: x @ w, (6, 5)), (7, 6)),
    "batched": (Calls(lambda x: torch.bmm(x, x.transpose(1, 2))), (7, 6)),
    "baddbmm": (Calls(lambda x, w: torch.baddbmm(w, x, x.transpose(1, 2)), (1, 7, 7)), (7, 6)),
    "einsum": (Calls(lambda x, w: torch.einsum("blc,hcd->bhld", x, w), (3, 6, 5)), (7, 6)),
    "tensordot": (Calls(lambda x, w: torch.tensordot(x, w, 2), (7, 6, 5)), (7, 6)),
    "attention": (Calls(lambda x: nn.functional.scaled_dot_product_attention(x, x, x[..., :4])), (3, 7, 6)),
}


@pytest.mark.parametrize("case", [*CONVOLUTIONS, *PRODUCTS])
def test_products_count_as_torch_counts_them(case: str):
    module, shape = {**CONVOLUTIONS, **PRODUCTS}[case]
    expected = counted_by_torch(module.eval(), *shape)
    assert expected > 0
    assert products(graph_of(module, *shape)) == expected


@pytest.mark.corpus
def test_a_network_counts_as_torch_counts_it():
    from tests.corpus import load

    model = load("resnet18")
    graph = graph_of(model, 3, 224, 224)
    assert products(graph) == counted_by_torch(model, 3, 224, 224) == 3_628_146_688
    counts = count(graph)
    convolutions, norms, linears = 20, 20, 1
    assert counts.weight_bearing == convolutions + norms + linears
    tensors = [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]
    assert counts.parameters == sum(tensor.numel() for tensor in tensors)
    assert counts.weight_bytes == 4 * counts.parameters


def test_a_matrix_times_a_vector_is_a_product_too():
    assert count(graph_of(Calls(lambda x, w: x @ w, (6,)), 7, 6)).flops == 2 * 7 * 6


def only(function: Callable[..., Any], *shape: int) -> int:
    return count(graph_of(Calls(function), *shape)).flops


def test_elements_windows_and_moves():
    assert only(torch.relu, 3, 4) == 12
    assert only(lambda x: x[:, None] + torch.ones(5, 1, 1), 3, 4) == 60
    assert only(lambda x: x.mean(-1), 3, 4) == 12
    assert only(lambda x: x.softmax(-1), 3, 4) == 12
    assert only(lambda x: nn.functional.max_pool2d(x, 3, 2), 2, 7, 7) == 2 * 9 * 9
    assert only(lambda x: nn.functional.avg_pool1d(x, 4), 2, 8) == 2 * 2 * 4
    assert only(lambda x: torch.cat([x.transpose(1, 2).reshape(-1, 12), x.flatten(1).flip(1)], 1), 3, 4) == 0
    assert only(lambda x: nn.functional.pad(x, (1, 1)).clone(), 3, 4) == 0


def test_transforms_count_n_log_n():
    assert only(lambda x: torch.fft.fft(x.to(torch.complex64)), 3, 8) == 5 * 24 * 3
    assert only(lambda x: torch.fft.rfft(x, n=16), 3, 8) == 2.5 * 48 * 4
    assert only(lambda x: torch.fft.rfft(x), 3, 8) == 2.5 * 24 * 3
    assert only(lambda x: torch.fft.irfft(torch.fft.rfft(x)), 3, 8) == 2 * 2.5 * 24 * 3
    assert only(lambda x: torch.fft.rfft2(x), 4, 8) == 2.5 * 32 * 5


def test_a_recurrent_layer_counts_its_products():
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(5, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    graph = graph_of(Last(), 7, 5)
    lstm = next(node for node in graph.calls() if "lstm" in str(node.target))
    assert flops(lstm, Sizes(graph)) == 7 * 2 * 4 * 3 * (5 + 3)


def test_a_custom_operator_counts_what_its_author_registered_or_its_elements():
    with torch.library._scoped_library("rewrite_test_cost", "FRAGMENT") as library:
        for name in ("known", "unknown"):
            library.define(f"{name}(Tensor x) -> Tensor", tags=[torch.Tag.pt2_compliant_tag])
            library.impl(name, torch.clone, "CPU")
            torch.library.register_fake(f"rewrite_test_cost::{name}", torch.empty_like, lib=library)
        known, unknown = torch.ops.rewrite_test_cost.known, torch.ops.rewrite_test_cost.unknown
        from torch.utils.flop_counter import flop_registry, register_flop_formula

        register_flop_formula(known)(lambda shape, **_: 100 * math.prod(shape))
        try:
            assert only(lambda x: unknown(x), 3, 4) == 12
            assert only(lambda x: known(x), 3, 4) == 1200
        finally:
            del flop_registry[known]


def test_weight_bearing_operators_read_weights_on_the_way_of_the_data():
    def bearing(function: Callable[..., Any], *shapes: tuple[int, ...], shape: tuple[int, ...] = (4,)) -> int:
        return count(graph_of(Calls(function, *shapes), *shape)).weight_bearing

    assert bearing(lambda x: x.relu() * 2) == 0
    assert bearing(lambda x, w: x * w, (4,)) == 1
    assert bearing(lambda x, w: x * (w.exp() + 1), (4,)) == 1  # the code on weights alone bears nothing
    assert bearing(lambda x, w, v: nn.functional.layer_norm(x, (4,), w, v), (4,), (4,)) == 1
    assert bearing(lambda x, w, v: (x * w) * w + v, (4,), (4,)) == 3
    assert bearing(lambda x: x + torch.arange(4)) == 0
    assert bearing(lambda x, w: torch.cat([w.expand(x.shape[0], -1), x], 1), (1, 4)) == 1


def test_weights_count_once_and_only_where_they_are_used():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.unused = nn.Linear(9, 9)
            self.register_buffer("table", torch.arange(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))[:, self.table]

    counts = count(graph_of(Tied(), 4))
    assert (counts.parameters, counts.weight_bytes, counts.weight_bearing) == (16, 4 * 16 + 8 * 4, 2)


def test_weights_are_one_where_they_share_memory():
    graph = graph_of(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 4)
    assert count(graph).parameters == 2 * 20
    graph.weights["1.weight"] = graph.weights["0.weight"].detach()
    assert count(graph).parameters == 20 + 4
    graph.weights["1.weight"] = graph.weights["0.weight"].detach().t()
    assert count(graph).parameters == 2 * 20


def test_a_weight_that_only_says_a_dtype_is_not_read():
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return (x > 0).to(w.dtype) + torch.zeros(4) + x * w

    graph = graph_of(Calls(forward, (4,)), 4)
    weight, product = (next(node for node in graph.nodes if name in str(node.target)) for name in ("w0", "mul"))
    assert len(weight.users) > 1
    assert (count(graph).weight_bearing, count(graph).parameters) == (1, 4)
    product.replace_all_uses_with(graph.inputs[0])
    graph.eliminate_dead()
    assert weight.users
    assert (count(graph).weight_bearing, count(graph).parameters) == (0, 0)


def test_views_write_nothing_and_copies_do():
    def written(function: Callable[..., Any]) -> int:
        return count(graph_of(Calls(function), 3, 4)).activation_bytes

    assert written(lambda x: x.relu()) == 48
    assert written(lambda x: x + torch.arange(12).reshape(3, 4).sin()) == 48  # not what depends on weights alone
    assert written(lambda x: x.transpose(1, 2)[:, 1:].relu()) == 36
    assert written(lambda x: x.reshape(-1, 12).relu()) == 48
    assert written(lambda x: x.transpose(1, 2).reshape(-1, 12).relu()) == 96
    assert written(lambda x: (x > 0).to(torch.float16)) == 12 + 24
    assert written(lambda x: (x > 0).to(x.dtype)) == 12 + 48


def test_batch_is_one_sample_and_other_sizes_are_their_own():
    assert count(graph_of(nn.Conv2d(3, 4, 3), 3, 8, 8)).flops == 2 * 4 * 36 * 27
    halves = Calls(lambda x: x.reshape(x.shape[0] * 4, 2).relu())
    assert count(graph_of(halves, 8)).flops == 8


def test_a_batch_that_the_model_fixes_is_counted_whole():
    fixed = graph_of(Calls(lambda x: x.reshape(2, 12) * 2), 3, 4)
    assert not Sizes(fixed).per_sample
    assert count(fixed).flops == 24
    assert Sizes(graph_of(Calls(lambda x: x * 2), 3, 4)).per_sample


def test_size_arithmetic_and_getitem_are_no_operators():
    counts = count(graph_of(Calls(lambda x: x.split(2, 1)[0].reshape(x.shape[0] * 2, -1)), 4))
    assert counts.operators == 2


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "1x1": lambda: nn.Conv2d(4, 4, 1),
    "grouped": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),
    "norm": lambda: nn.BatchNorm2d(4),
    "gelu": nn.GELU,
    "pool": lambda: nn.AvgPool2d(3, 1, 1),
    "linear": lambda: nn.Sequential(nn.Flatten(2), nn.Linear(36, 36), nn.Unflatten(2, (6, 6))),
    "scaled": lambda: Calls(lambda x, w: x + w.exp() * x.flip(1), (4, 1, 1)),
}


@functools.cache
def layer_counts(name: str) -> Counts:
    return count(graph_of(LAYERS[name](), 4, 6, 6))


# a capture takes tenths of a second
@settings(max_examples=settings.default.max_examples // 5)
@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=2, max_size=6))
def test_counts_add_up_over_composition(names: list[str]):
    whole = count(graph_of(nn.Sequential(*(LAYERS[name]() for name in names)), 4, 6, 6))
    assert whole == sum(map(layer_counts, names), Counts())


def test_counts_do_not_depend_on_names():
    class Net(nn.Module):
        def __init__(self, name: str, layers: nn.Module) -> None:
            super().__init__()
            setattr(self, name, layers)
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, self.name)(x)

    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    one, other = graph_of(Net("a", inner), 3, 8, 8), graph_of(Net("stages", inner), 3, 8, 8)
    for i, node in enumerate(other.fx.nodes):
        if node.op == "call_function":
            node._rename(f"renamed_{i}")
    assert set(one.weights) != set(other.weights)
    assert count(one) == count(other)


def test_every_count_is_added():
    ones = Counts(*[1] * len(dataclasses.fields(Counts)))
    assert ones + ones == Counts(*[2] * len(dataclasses.fields(Counts)))
