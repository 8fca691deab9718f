"""What is drawn: it runs, prints as it is made, is the same each time, and covers what the strategies promise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import rewrite.testing
from rewrite.testing import (
    ACTIVATIONS,
    MONOTONE,
    ActivationSpec,
    BatchNormSpec,
    ConvSpec,
    GroupNormSpec,
    Layer,
    LayerNormSpec,
    LinearSpec,
    PoolSpec,
    Values,
    activations,
    batch_norms,
    convolutions,
    group_norms,
    layer_norms,
    linears,
    pools,
    tensors,
)

LAYERS: dict[str, st.SearchStrategy[Layer]] = {
    "convolutions": convolutions(transposed=None),
    "linears": linears(),
    "batch norms": batch_norms(),
    "group norms": group_norms(),
    "layer norms": layer_norms(),
    "activations": activations(),
    "pools": pools(),
}


def drawn(strategy: st.SearchStrategy[Any], count: int = 400) -> list[Any]:
    """Examples of a strategy."""
    found: list[Any] = []

    @settings(max_examples=count, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_runs_and_prints_as_it_is_made(name: str):
    @given(LAYERS[name])
    def run(spec: Layer) -> None:
        [x] = spec.inputs()
        assert x.shape == spec.input_shape
        assert x.dtype == spec.dtype
        with torch.no_grad():
            y = spec.module()(x)
            assert torch.equal(y, spec.module()(*spec.inputs()))
        assert tuple(y.shape) == spec.output_shape
        assert y.dtype == spec.dtype
        assert y.isfinite().all()
        assert eval(repr(spec), {**vars(rewrite.testing), "torch": torch}) == spec

    run()


def test_reports_show_what_differs_from_the_defaults():
    spec = ConvSpec((5, 4), kernel=(3, 3), groups=2)
    assert repr(spec) == "ConvSpec(sizes=(5, 4), kernel=(3, 3), groups=2)"

    @settings(database=None, phases=[Phase.generate, Phase.shrink], max_examples=50)
    @given(convolutions(dims=1))
    def fails(layer: ConvSpec) -> None:
        assert layer.bias

    with pytest.raises(AssertionError) as raised:
        fails()
    assert "layer=ConvSpec(sizes=(1,), kernel=(1,), stride=(1,), " in "\n".join(raised.value.__notes__)


@functools.cache
def plain() -> list[ConvSpec]:
    return drawn(convolutions(), 600)


def extents(spec: ConvSpec) -> list[int]:
    return [d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True)]


CONVOLUTIONS: dict[str, Callable[[ConvSpec], bool]] = {
    "even kernels": lambda c: any(k % 2 == 0 for k in c.kernel),
    "kernels of nine": lambda c: 9 in c.kernel,
    "rectangular kernels": lambda c: len(set(c.kernel)) > 1,
    "strides": lambda c: max(c.stride) == 3 and min(c.stride) == 1,
    "dilation": lambda c: max(c.dilation) == 4,
    "uneven padding": lambda c: not isinstance(c.padding, str) and any(low != high for low, high in c.padding),
    "same": lambda c: c.padding == "same" and max(c.kernel) > 1,
    "same for even kernels": lambda c: c.padding == "same" and any(extent % 2 for extent in extents(c)),
    "valid": lambda c: c.padding == "valid",
    "no padding": lambda c: not isinstance(c.padding, str) and not any(map(any, c.padding)),
    "beyond the kernel": lambda c: not isinstance(c.padding, str)
    and any(low > extent for (low, _), extent in zip(c.padding, extents(c), strict=True)),
    "sizes below the kernel": lambda c: any(n <= extent for n, extent in zip(c.sizes, extents(c), strict=True)),
    "groups": lambda c: 1 < c.groups < c.in_channels,
    "depthwise": lambda c: 1 < c.groups == c.in_channels == c.out_channels,
    "depthwise with a multiplier": lambda c: 1 < c.groups == c.in_channels < c.out_channels,
    "no bias": lambda c: not c.bias,
    "one channel": lambda c: c.in_channels == 1,
    **{f"{n} dimensions": lambda c, n=n: c.dims == n for n in (1, 2, 3)},
    **{f"batch {n}": lambda c, n=n: c.batch == n for n in (1, 2, 3)},
    **{mode: lambda c, mode=mode: c.padding_mode == mode and c.padding != "valid"
       for mode in ("zeros", "reflect", "replicate", "circular")},
    **{f"uneven {mode}": lambda c, mode=mode: c.padding_mode == mode and CONVOLUTIONS["uneven padding"](c)
       for mode in ("reflect", "replicate", "circular")},
    **{str(dtype): lambda c, dtype=dtype: c.dtype == dtype
       for dtype in (torch.float32, torch.float64, torch.bfloat16)},
    **{layout: lambda c, layout=layout: c.layout == layout and c.dims == 2
       for layout in ("contiguous", "channels_last", "sliced")},
    "extreme inputs": lambda c: c.extreme,
}  # fmt: skip


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_of_every_kind_are_drawn(kind: str):
    assert sum(map(CONVOLUTIONS[kind], plain())) >= 3


def test_what_is_asked_of_convolutions_holds():
    assert all(c.transposed for c in drawn(convolutions(transposed=True), 50))
    assert not any(c.transposed for c in plain())
    assert any(c.transposed and any(c.output_padding) and any(map(any, c.padding))
               for c in drawn(convolutions(transposed=None), 100))  # fmt: skip
    assert all(c.groups == c.in_channels for c in drawn(convolutions(depthwise=True, out_channels=6), 50))
    assert all(c.groups < c.in_channels or c.groups == 1 for c in drawn(convolutions(depthwise=False), 50))
    assert all(c.bias for c in drawn(convolutions(bias=True), 20))
    assert {c.padding for c in drawn(convolutions(padding=False, dims=2), 50)} == {"valid", ((0, 0), (0, 0))}
    assert all(c.padding == "same" or all(map(all, c.padding)) for c in drawn(convolutions(padding=True), 50))
    assert all(c.output_shape[2:] == c.sizes for c in drawn(convolutions(same_size=True), 50))
    assert {c.dims for c in drawn(convolutions(dims=[1, 2]), 50)} == {1, 2}
    assert {(c.in_channels, c.out_channels) for c in drawn(convolutions(in_channels=4, out_channels=2), 20)} == {(4, 2)}
    assert max(max(*c.kernel, *c.stride, *c.dilation)
               for c in drawn(convolutions(max_kernel=2, max_stride=2, max_dilation=2), 50)) == 2  # fmt: skip
    assert {c.dtype for c in drawn(convolutions(dtypes=[torch.float64]), 20)} == {torch.float64}
    assert 0 in {c.batch for c in drawn(convolutions(batches=[0, 4]), 20)}


def test_layouts_are_what_they_say():
    shape = (2, 3, 4, 5)
    assert Values(shape).tensor().is_contiguous()
    assert Values(shape, layout="channels_last").tensor().is_contiguous(memory_format=torch.channels_last)
    assert not Values(shape, layout="sliced").tensor().is_contiguous()
    assert torch.equal(Values(shape).tensor(), Values(shape, layout="sliced").tensor())
    assert len({spec.layout for spec in drawn(tensors(shape), 50)}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_extreme_values(dtype: torch.dtype):
    values = Values((50, 20), dtype, extreme=True).tensor()
    tiny = torch.finfo(dtype).tiny
    assert (values.abs() == torch.tensor(1e4, dtype=dtype)).sum() > 20
    assert ((values != 0) & (values.abs() < tiny)).any()
    zeros = values[values == 0]
    assert 0 < zeros.signbit().sum() < len(zeros)
    assert (values.abs() > 0.1).sum() > 500
    assert Values((3,), dtype).tensor().abs().max() < 10


def test_weights_hide_nothing():
    norm = BatchNormSpec((4,), channels=400).module()
    assert norm.running_var.min() < 1e-6
    assert norm.running_var.max() > 1e2
    assert (norm.weight == 0).sum() > 20
    assert (norm.weight < 0).sum() > 50
    assert norm.running_mean.std() > 0.5
    assert norm.bias.std() > 0.5
    layer = ConvSpec((5, 5), in_channels=4, out_channels=8, kernel=(3, 3)).module()
    assert 0.5 < layer.weight.std() * 6 < 2
    assert layer.bias.std() > 0.3
    assert len({tuple(row) for row in layer.weight.flatten(1).tolist()}) == 8
    assert LinearSpec(in_features=9).module().bias.std() > 0.1
    slopes = ActivationSpec(kind="prelu", channels=50).module().weight
    assert slopes.min() < 0 < slopes.max()


@given(convolutions(), st.one_of(batch_norms(), group_norms(), layer_norms(), activations(), linears()))
def test_layers_fit_one_behind_the_other(layer: ConvSpec, other: Layer):
    behind, before = other.after(layer), other.before(layer)
    assert behind.dtype == before.dtype == layer.dtype
    assert behind.input_shape == layer.output_shape
    assert before.input_shape == layer.input_shape
    if not isinstance(other, GroupNormSpec):  # torch refuses groups of a single value
        nn.Sequential(layer.module(), behind.module())(*layer.inputs())


def test_a_convolution_behind_another_layer():
    pool = PoolSpec((6, 6), channels=6, kernel=(2, 2))
    layer = ConvSpec((9, 9), in_channels=4, kernel=(3, 3), groups=4).after(pool)
    assert (layer.in_channels, layer.sizes, layer.groups) == (6, (3, 3), 1)
    nn.Sequential(pool.module(), layer.module())(*pool.inputs())


def test_every_activation_and_those_that_never_fall():
    assert set(MONOTONE) < set(ACTIVATIONS)
    x = torch.linspace(-6, 6, 200).reshape(1, 1, -1)
    for kind in ACTIVATIONS:
        for parameter in (0.5, 1.0, 2.0):
            y = ActivationSpec((200,), kind=kind, parameter=parameter, channels=1, seed=1).module()(x)
            falls = bool((y.diff() < -1e-6).any())
            assert kind == "prelu" or falls == (kind not in MONOTONE), kind


def test_pools_and_norms_of_every_kind_are_drawn():
    found: list[PoolSpec] = drawn(pools())
    assert {spec.kind for spec in found} == {"max", "average", "adaptive_max", "adaptive_average"}
    assert any(any(spec.padding) and spec.ceil_mode and not spec.counts_padding for spec in found)
    assert any(spec.divisor for spec in found)
    assert any(max(spec.dilation, default=1) > 1 for spec in found)
    norms: list[LayerNormSpec] = drawn(layer_norms(), 100)
    assert {(spec.affine, spec.affine and spec.bias) for spec in norms} == {(True, True), (True, False), (False, False)}
    assert {spec.groups for spec in drawn(group_norms(), 100)} == {1, 2, 3}
    assert {spec.affine for spec in drawn(batch_norms(), 50)} == {True, False}


def test_an_unknown_option_is_an_error():
    with pytest.raises(TypeError, match="no strategy takes 'sizes'; all take batches, dtypes, layouts"):
        drawn(linears(sizes=(3,)), 1)
