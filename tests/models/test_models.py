"""The corpus is what it says: shapes and sizes as published, weights that hide nothing, the same every time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from examples.models import (
    MODELS,
    cct,
    inception_next,
    load,
    lsnet,
    replknet,
    unireplknet,
)
from examples.models.deep_rft import deep_rft
from examples.models.eca_resnet import adaptive_kernel, eca_resnet50
from examples.models.lsnet import small_kernel_aggregation

SHAPES = {
    "yolo_ms": [(20, 8, 8), (40, 4, 4)],
    "deep_rft": [(3, 12, 20), (3, 6, 10), (3, 3, 5)],
    "hyena": [(24, 32)],
}  # all others are classifiers of ten classes


# a constant added to all scores of a softmax, or before a norm over what it is added to
CANCEL = {"pool.bias", "blocks.0.context.mix.bias", "blocks.0.local.mix.bias"}


def outputs(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        result = model(*inputs)
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("name", MODELS)
def test_small_configurations_compute_something(name: str) -> None:
    model, inputs = load(name, batch=3)
    found = outputs(model, *inputs)
    assert [tuple(value.shape) for value in found] == [(3, *shape) for shape in SHAPES.get(name, [(10,)])]
    for value in found:
        assert value.abs().max() < 100
        assert value.std() > 0.05
        assert (value[0] - value[1]).abs().mean() > 1e-3
    for key, parameter in model.named_parameters():
        assert parameter.numel() == 1 or parameter.std() > 1e-3 or key.endswith("power"), key


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_counts(name: str) -> None:
    """No parameter is out of reach of the output, but for those that cancel by definition."""
    model, inputs = load(name)
    model.double().requires_grad_()
    inputs = tuple(leaf.double() if leaf.is_floating_point() else leaf for leaf in inputs)
    result = model(*inputs)
    sum(leaf.sin().sum() for leaf in (result if isinstance(result, tuple) else [result])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert (parameter.grad.abs().max() > 1e-9) != (key in CANCEL), key


@pytest.mark.parametrize("name", ["replknet", "sgconv", "hyper_zzw"])
def test_networks_are_reproducible_and_leave_the_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, inputs = load(name, seed=3)
    second, _ = load(name, seed=3)
    other, _ = load(name, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    a, b, c = (outputs(model, *inputs)[0] for model in (first, second, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# -- as published -----------------------------------------------------------------------------------------------------


def millions(build: Callable[[], nn.Module]) -> float:
    return sum(parameter.numel() for parameter in build().parameters()) / 1e6


PUBLISHED: dict[str, tuple[Callable[[], nn.Module], float]] = {
    **{name: (entry.published.build, entry.parameters) for name, entry in MODELS.items() if entry.parameters},
    "replknet_31l": (replknet.replknet_31l, 172),
    "unireplknet_a": (unireplknet.unireplknet_a, 4.4),
    "unireplknet_s": (unireplknet.unireplknet_s, 56),
    "inception_next_atto": (inception_next.inception_next_atto, 4.2),
    "lsnet_s": (lsnet.lsnet_s, 16.1),
    "lsnet_b": (lsnet.lsnet_b, 23.2),
    "cct_7_3x1": (cct.cct_7_3x1, 3.76),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_the_papers_say(name: str) -> None:
    """Papers count merged kernels; what merges away is at most a few percent more, and they round."""
    build, expected = PUBLISHED[name]
    assert 0.985 * expected <= millions(build) <= (1.08 if "unireplknet" in name else 1.015) * expected


def test_the_gates_of_eca_resnet50_have_80_parameters() -> None:
    model = eca_resnet50()
    gates = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv1d))
    assert gates == 80
    assert round(1e6 * millions(lambda: model)) == 25_557_032 + gates
    assert [adaptive_kernel(channels) for channels in (256, 512, 1024, 2048)] == [5, 5, 5, 7]


def test_deep_rft_multiplied_out_has_9_6_million_parameters() -> None:
    kept = (parameter.numel() for name, parameter in deep_rft().named_parameters() if not name.endswith("depth"))
    assert sum(kept) / 1e6 == pytest.approx(9.6, abs=0.05)


# -- definitions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (4, 3)])
def test_small_kernels_are_shared_by_interleaved_channels(size: tuple[int, int]) -> None:
    """The definition, place by place: channel c reads kernel c modulo their number, and zeros beyond the border."""
    height, width = size
    x, weight = torch.randn(2, 6, height, width), torch.randn(2, 3, 9, height, width)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    expected = torch.zeros_like(x)
    for c in range(6):
        for i in range(3):
            for j in range(3):
                expected[:, c] += padded[:, c, i : i + height, j : j + width] * weight[:, c % 3, 3 * i + j]
    torch.testing.assert_close(small_kernel_aggregation(x, weight), expected)


def test_the_middle_tap_alone_is_the_identity() -> None:
    x, weight = torch.randn(2, 8, 4, 5), torch.zeros(2, 2, 9, 4, 5)
    weight[:, :, 4] = 1
    assert torch.equal(small_kernel_aggregation(x, weight), x)


def test_channels_that_do_not_divide_are_read_by_nothing() -> None:
    model, inputs = load("yolo_ms")
    block = model.stages[0][1]
    assert block.enter.conv.out_channels == 10
    assert block.width * len(block.branches) == 9
    before = outputs(model, *inputs)
    with torch.no_grad():
        block.enter.conv.weight[9].add_(100.0)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, *inputs), before, strict=True))
