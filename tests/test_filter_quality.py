"""The measures of filters: by other means, under changes that make no difference, and of what was planted."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rewrite import filter_quality
from rewrite.filter_quality import filter_quality as quality
from rewrite.filter_quality import near_zero, random_entropy, random_orthogonality
from tests.measures import assert_alike, entropy_by_loops, normal, orthogonality_by_loops, sparsity_by_loops

SHAPES = [(6, 4, 3, 3), (8, 1, 3, 3), (5, 3, 7), (3, 2, 5, 5), (4, 3, 2, 2, 2), (2, 1, 9), (7, 5, 1, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_measures_by_loops(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = normal(*shape, dtype=dtype)
    weight[0, 0] *= 1e-3
    weight[-1, -1] = 0
    numbers = weight.double().numpy()
    found = quality("conv", weight)
    assert found.sparsity == sparsity_by_loops(numbers) > 0
    assert found.entropy == pytest.approx(entropy_by_loops(numbers), abs=1e-9)
    if found.filters > 3:
        assert found.dense_entropy == pytest.approx(entropy_by_loops(numbers, sparse=False), abs=1e-9)
    assert found.orthogonality == pytest.approx(orthogonality_by_loops(numbers), abs=1e-9)
    assert (found.shape, found.parameters) == (shape, weight.numel())
    assert found.filters == shape[0] * shape[1]


@pytest.mark.parametrize(("piece", "block"), [(1, 1), (7, 2), (40, 3), (100, 100)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pieces_change_nothing(shape: tuple[int, ...], piece: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(*shape)
    weight[0, 0] = 0
    whole = quality("conv", weight)
    monkeypatch.setattr(filter_quality, "_PIECE", piece)
    monkeypatch.setattr(filter_quality, "_BLOCK", block)
    assert_alike(quality("conv", weight), whole, 1e-12)


class Largest(TorchDispatchMode):
    """The size of the largest tensor in float64 that was computed."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.dtype == torch.float64:
                self.numbers = max(self.numbers, leaf.numel())
        return out


@pytest.mark.parametrize("shape", [(400, 50, 3, 3), (50, 1, 4000), (2000, 10, 1, 1)], ids=str)
def test_large_layers_need_little_memory(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filter_quality, "_PIECE", 4096)
    monkeypatch.setattr(filter_quality, "_BLOCK", 64)
    weight = normal(*shape)
    with Largest() as found:
        quality("conv", weight)
    assert 0 < found.numbers <= 2 * 4096


WEIGHTS = st.builds(
    lambda o, c, k, seed, zeros: normal(o, c, *k, seed=seed) * (normal(o, c, *[1] * len(k), seed=seed + 1) > zeros),
    st.integers(1, 8), st.integers(1, 6), st.sampled_from([(1,), (3,), (3, 3), (5, 5), (2, 3, 2)]),
    st.integers(0, 10**6), st.sampled_from([-9.0, 0.0, 1.0, 9.0]),
)  # fmt: skip


@given(WEIGHTS, st.integers(0, 10**6), st.sampled_from([2.0**-100, 0.125, 3.0, -7.0, 2.0**60]))
def test_invariances(weight: Tensor, seed: int, scale: float) -> None:
    """The order of filters, the scale and the sign of all make no difference; signs of channels do to none but H."""
    found, generator = quality("conv", weight), torch.Generator().manual_seed(seed)
    order = torch.randperm(weight.shape[0], generator=generator)
    inputs = torch.randperm(weight.shape[1], generator=generator)
    assert_alike(quality("conv", weight[order][:, inputs]), found, 1e-9)
    assert_alike(quality("conv", weight * scale), found, 1e-6)  # which rounds
    assert_alike(quality("conv", weight.flip(list(range(2, weight.dim())))), found, 1e-9)
    signs = torch.randint(0, 2, (weight.shape[0], *[1] * (weight.dim() - 1)), generator=generator) * 2 - 1
    flipped = quality("conv", weight * signs)
    assert flipped.sparsity == found.sparsity
    assert flipped.orthogonality == pytest.approx(found.orthogonality, abs=1e-9)


@given(WEIGHTS)
def test_bounds(weight: Tensor) -> None:
    found, taps = quality("conv", weight), math.prod(weight.shape[2:])
    assert 0 <= found.sparsity <= 1
    assert 0 <= found.orthogonality <= 1
    for entropy in (found.entropy, found.dense_entropy):
        assert (entropy is None) == (taps == 1)
        assert entropy is None or 0 <= entropy <= math.log10(max(1, min(taps, found.filters - 1))) + 1e-12
    assert found.variety is None or 0 <= found.variety <= 1 + 1e-12
    assert not {"low variety", "random-like"}.issubset(found.marks)


# -- what was planted is found -----------------------------------------------------------------------------------------


def test_filters_along_a_line_have_no_variety() -> None:
    scales, pattern = normal(16, 8, 1, 1), normal(3, 3, seed=1)
    for weight in (scales * pattern, scales * pattern + normal(3, 3, seed=2)):  # centred, so an offset is nothing
        found = quality("conv", weight)
        assert found.entropy == pytest.approx(0, abs=1e-9)
        assert found.marks[0] == "low variety"
    two = quality("conv", scales * pattern + normal(16, 8, 1, 1, seed=3) * normal(3, 3, seed=4))
    assert 0.1 < two.entropy <= math.log10(2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equal_filters_have_no_variety_whatever_the_rounding(dtype: torch.dtype) -> None:
    pattern = normal(3, 3, dtype=torch.float64)
    noise = 1 + normal(16, 8, 3, 3, seed=1, dtype=torch.float64).sign() * torch.finfo(dtype).eps / 2
    for weight in (pattern.expand(16, 8, 3, 3), pattern * noise):
        found = quality("conv", weight.to(dtype))
        assert (found.entropy, found.variety, found.randomness) == (0, 0, 0)


def test_one_filter_that_differs_is_seen() -> None:
    weight = normal(3, 3).expand(64, 64, 3, 3).to(torch.float16).clone()
    weight[5, 7, 1, 1] += 1
    assert quality("conv", weight).entropy == pytest.approx(0, abs=1e-9)
    weight[6, 8, 0, 2] += 1
    assert quality("conv", weight).entropy == pytest.approx(math.log10(2), abs=1e-3)


@pytest.mark.parametrize("filters_", [16, 64, 512, 4096, 100_000])
def test_random_filters_are_random_like(filters_: int) -> None:
    found = [quality("conv", normal(16, filters_ // 16, 3, 3, seed=seed)) for seed in range(5)]
    slack = {16: 0.3, 64: 0.05}.get(filters_, 0.01)
    for each in found:
        assert each.randomness == pytest.approx(1, abs=slack)
    assert sum("random-like" in each.marks for each in found) >= 4


def test_low_pass_filters_are_not_random_like() -> None:
    smooth = functional.avg_pool2d(normal(64, 64, 5, 5), 3, stride=1)
    found = quality("conv", smooth)
    assert 0.5 < found.randomness < 0.95
    assert "random-like" not in found.marks


def test_random_entropy_of_the_published_fit() -> None:
    assert random_entropy(4096) == pytest.approx(0.9509, abs=1e-3)
    assert random_entropy(16) == pytest.approx(1.2618 / (1 + math.exp(-0.88768 * (4 - 2.30436))) - 0.31051)
    assert random_entropy(10) > 0


def test_half_of_the_filters_near_zero() -> None:
    weight = normal(8, 6, 3, 3)
    dense = quality("conv", weight[:, :3])
    weight[:, 3:] = 1e-4
    found = quality("conv", weight)
    assert found.sparsity == 0.5
    assert "sparse" in found.marks
    assert found.dense_entropy == pytest.approx(dense.entropy, abs=1e-12)
    assert found.entropy != pytest.approx(dense.entropy, abs=1e-6)


def test_what_near_zero_is() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0099, -0.0099], [0.0, -0.0101], [0.0, 0.0]], dtype=torch.float64)
    assert near_zero(rows, 1.0).tolist() == [False, True, False, True]


def test_orthogonal_and_parallel_channels() -> None:
    frame = torch.linalg.qr(normal(36, 12, dtype=torch.float64)).Q.T.reshape(12, 4, 3, 3)
    assert quality("conv", frame).orthogonality == pytest.approx(1)
    scaled = frame * normal(12, 1, 1, 1, seed=1).exp()
    assert quality("conv", scaled).orthogonality == pytest.approx(1)
    parallel = normal(12, 1, 1, 1, dtype=torch.float64) * normal(1, 4, 3, 3, seed=1)
    found = quality("conv", parallel)
    assert found.orthogonality == pytest.approx(0, abs=1e-12)
    assert "not orthogonal" in found.marks


@pytest.mark.parametrize("width", [1, 2, 4, 36, 1000])
def test_random_channels_are_as_orthogonal_as_expected(width: int) -> None:
    expected = random_orthogonality(width)
    assert quality("conv", normal(300, width, 1, 1)).orthogonality == pytest.approx(expected, abs=0.01)
    assert {1: 0.0, 4: 0.576, 36: 0.866}.get(width, expected) == pytest.approx(expected, abs=1e-3)
    assert not quality("conv", normal(8, width, 1, 1)).marks


def test_alike_kernels_of_depthwise_layers_are_no_fault() -> None:
    weight = normal(1, 1, 3, 3).expand(8, 1, 3, 3) + 0.1 * normal(8, 1, 3, 3, seed=1)
    assert "not orthogonal" in quality("conv", weight).marks
    found = quality("conv", weight, groups=8)
    assert found.orthogonality < 0.5
    assert "not orthogonal" not in found.marks


# -- where the measures would divide by zero ---------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_a_layer_of_zeros(outputs: int) -> None:
    found = quality("conv", torch.zeros(outputs, 6, 3, 3))
    assert (found.sparsity, found.entropy, found.dense_entropy, found.orthogonality) == (1, 0, 0, 0)
    assert {"sparse", "low variety", "not orthogonal"} == set(found.marks)


def test_channels_of_zeros() -> None:
    weight = torch.zeros(3, 1, 1, 2)
    weight[0, 0, 0, 0] = weight[1, 0, 0, 1] = 1
    assert quality("conv", weight).orthogonality == pytest.approx(1 - 1 / 6)  # of one, on the diagonal


def test_one_output() -> None:
    assert quality("conv", normal(1, 12, 3, 3)).orthogonality == 1


def test_one_filter_varies_in_no_direction() -> None:
    found = quality("conv", normal(1, 1, 3, 3))
    assert (found.entropy, found.variety, found.randomness, found.marks) == (0, None, None, ())


def test_one_tap_has_no_entropy() -> None:
    weight = normal(6, 5, 1, 1)
    weight[0, 0] = 0
    found = quality("conv", weight)
    assert (found.entropy, found.dense_entropy, found.variety, found.randomness) == (None,) * 4
    assert found.sparsity >= 1 / 30
    assert found.orthogonality == pytest.approx(orthogonality_by_loops(weight.double().numpy()))


@pytest.mark.parametrize("shape", [(64, 4, 5, 5), (64, 4, 9), (3, 3, 3, 3), (64, 4, 3, 3, 3), (64, 4, 3)], ids=str)
def test_the_fit_is_for_many_3x3_filters(shape: tuple[int, ...]) -> None:
    assert quality("conv", normal(*shape)).randomness is None


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e300])
def test_extreme_scales(scale: float) -> None:
    weight = normal(6, 4, 3, 3).sign().double() * torch.arange(1.0, 5).reshape(1, 4, 1, 1)
    assert_alike(quality("conv", weight * scale), quality("conv", weight), 1e-9)


def test_other_numbers() -> None:
    weight = torch.arange(-20, 34).reshape(3, 2, 3, 3)
    assert_alike(quality("conv", weight), quality("conv", weight.double()), 1e-12)
    real, imaginary = normal(4, 3, 3, dtype=torch.float64), normal(4, 3, 3, seed=1, dtype=torch.float64)
    turned = quality("conv", torch.complex(real, torch.zeros_like(real)) * complex(0.6, 0.8))
    assert_alike(turned, quality("conv", real), 1e-9)
    assert quality("conv", torch.complex(real, imaginary)).orthogonality < 1
