"""Depthwise convolutions as products of matrices, against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewrite import toeplitz
from rewrite.compat import FakeTensorMode

aten = torch.ops.aten
TARGETS = {1: aten.conv1d.default, 2: aten.conv2d.default}


def refuse(*_: Any) -> None:
    raise AssertionError("torch was asked")


LAST = torch.channels_last


@given(data=st.data(), dims=st.sampled_from([1, 2]), bias=st.booleans())
def test_every_geometry(data: st.DataObject, dims: int, bias: bool):
    channels, batch = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    kernel, sizes, settings = [], [], ([], [], [])
    for last in (False, True)[-dims:]:
        kernel.append(data.draw(st.integers(128, 140) if last else st.integers(1, 4)))
        drawn = [data.draw(st.integers(low, high)) for low, high in ((1, 3), (0, 5), (1, 2))]
        for setting, value in zip(settings, drawn, strict=True):
            setting.append(value)
        reach = drawn[2] * (kernel[-1] - 1) + 1
        sizes.append(max(1, reach - 2 * drawn[1]) + data.draw(st.integers(0, 150 if last else 5)))
    x = torch.randn(batch, channels, *sizes, dtype=torch.float64)
    weight = torch.randn(channels, 1, *kernel, dtype=torch.float64)
    if dims == 2:
        layouts = [data.draw(st.sampled_from([LAST, torch.contiguous_format])) for _ in range(2)]
        x, weight = (t.contiguous(memory_format=layout) for t, layout in zip((x, weight), layouts, strict=True))
    shift = torch.randn(channels, dtype=torch.float64) if bias else None
    found = toeplitz.conv(refuse, x, weight, shift, *settings, channels)
    expected = TARGETS[dims](x, weight, shift, *settings, channels)
    assert [s for s, n in zip(found.stride(), found.shape, strict=True) if n > 1] == [
        s for s, n in zip(expected.stride(), expected.shape, strict=True) if n > 1
    ]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


x, weight = torch.randn(2, 3, 190, dtype=torch.float64), torch.randn(3, 1, 140, dtype=torch.float64)
infinite = x.clone()
infinite[0, 0, 5] = float("inf")
LEFT: dict[str, tuple[Any, ...]] = {
    "float32": (x.float(), weight.float(), None, [1], [0], [1], 3),
    "few taps": (x, weight[..., :9], None, [1], [0], [1], 3),
    "several channels": (x, weight.expand(3, 3, 140), None, [1], [0], [1], 1),
    "two outputs each": (x, weight.repeat(2, 1, 1), None, [1], [0], [1], 3),
    "infinity": (infinite, weight, None, [1], [35], [1], 3),
    "an infinite tap": (x, weight / 0, None, [1], [35], [1], 3),
    "no batch": (x[0], weight, None, [1], [0], [1], 3),
    "nothing": (x[:0], weight, None, [1], [0], [1], 3),
}


FAR: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[list[int], ...]]] = {
    "outputs of the zeros before alone": ((1, 2, 3), (2, 1, 130), ([200], [150], [1])),
    "columns that nothing reads": ((1, 2, 400), (2, 1, 130), ([270], [0], [1])),
    "more than is held at once": ((2, 40, 900), (40, 1, 700), ([1], [350], [1])),
    "rows of one output": ((1, 2, 9, 40), (2, 1, 9, 15), ([5, 1], [0, 7], [1, 1])),
}  # fmt: skip


@pytest.mark.parametrize("name", FAR)
def test_far_strides_and_many_channels(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(toeplitz, "_ELEMENTS", 2**20)
    sizes, kernel, settings = FAR[name]
    x, weight = torch.randn(sizes, dtype=torch.float64), torch.randn(kernel, dtype=torch.float64)
    given = (x, weight, None, *settings, sizes[1])
    expected = TARGETS[len(sizes) - 2](*given)
    torch.testing.assert_close(toeplitz.conv(refuse, *given), expected, rtol=1e-12, atol=1e-11)


def test_tensors_without_values_and_kernels_that_do_not_fit_are_torchs():
    with FakeTensorMode() as mode:
        found = toeplitz.conv(aten.conv1d.default, mode.from_tensor(x), mode.from_tensor(weight), groups=3)
    assert found.shape == (2, 3, 51)
    mapped = torch.vmap(lambda row: toeplitz.conv(aten.conv1d.default, row, weight, groups=3))(x[:, None])
    torch.testing.assert_close(mapped[:, 0], aten.conv1d.default(x, weight, groups=3))
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        toeplitz.conv(aten.conv1d.default, x[..., :90], weight, None, [1], [0], [1], 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_settings_may_be_left_out(channels: int):
    given = x[:, :channels], weight[:channels]
    found = toeplitz.conv(aten.conv1d.default, *given, groups=channels)
    torch.testing.assert_close(found, aten.conv1d.default(*given, groups=channels))
    dense = x, weight.expand(3, 3, 140)
    assert torch.equal(toeplitz.conv(aten.conv1d.default, *dense), aten.conv1d.default(*dense))


@pytest.mark.parametrize("name", LEFT)
def test_the_rest_is_left_to_torch(name: str):
    with pytest.raises(AssertionError, match="torch was asked"):
        toeplitz.conv(refuse, *LEFT[name])
    found, expected = toeplitz.conv(aten.conv1d.default, *LEFT[name]), aten.conv1d.default(*LEFT[name])
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())
