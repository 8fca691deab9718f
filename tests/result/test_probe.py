"""The bytes that are watched, for every layout of memory."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rewrite.result.probe import WHOLE, Probe, _argmax, _positions

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool,
          torch.complex64]  # fmt: skip


def values(count: int, dtype: torch.dtype) -> Tensor:
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(0)) * 50
    return (drawn > 0) if dtype is torch.bool else drawn.abs().to(dtype) if dtype is torch.uint8 else drawn.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_tensors_are_watched_whole(dtype: torch.dtype) -> None:
    count = WHOLE // dtype.itemsize
    tensor = values(count, dtype)
    for position in range(count):
        probe = Probe([tensor])
        assert not probe.changed()
        tensor.data[position] = ~tensor[position] if dtype is torch.bool else tensor[position] + 1
        assert probe.changed()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_write_everywhere_is_seen(dtype: torch.dtype) -> None:
    tensor = values(5000, dtype)
    probe = Probe([tensor])
    assert not probe.changed()
    tensor.data.copy_(~tensor if dtype is torch.bool else tensor + 1)
    assert probe.changed()


LAYOUTS = {
    "contiguous": lambda t: t.view(10, 20, 25),
    "transposed": lambda t: t.view(10, 20, 25).transpose(0, 2),
    "channels last": lambda t: t.view(10, 20, 5, 5).contiguous(memory_format=torch.channels_last),
    "every second": lambda t: t.view(10, 20, 25)[:, ::2],
    "a window": lambda t: t.view(10, 20, 25)[2:5, 3:9, 4:],
    "expanded": lambda t: t[:40].view(40, 1).expand(40, 50),
    "a number": lambda t: t[7],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("place", ["largest", "smallest", "nearest zero"])
def test_extremes_are_watched_in_every_layout(layout: str, place: str) -> None:
    tensor = LAYOUTS[layout](values(5000, torch.float32))
    probe = Probe([tensor])
    assert not probe.changed()
    kind = {"largest": tensor, "smallest": -tensor, "nearest zero": -tensor.abs()}[place]
    tensor.data[torch.unravel_index(kind.argmax(), tensor.shape)] += 1
    assert probe.changed()


@given(st.lists(st.integers(1, 9), max_size=4), st.data())
def test_watched_positions_are_read_where_they_lie(shape: list[int], data: st.DataObject) -> None:
    base = torch.arange(float(torch.Size([*shape, 2]).numel())).view(*shape, 2)
    order = data.draw(st.permutations(range(len(shape) + 1)))
    tensor = base.permute(order)
    for position in _positions(tensor):
        probe = Probe([tensor])
        tensor[torch.unravel_index(torch.tensor(position), tensor.shape)] += 0.5
        assert probe.changed()


@pytest.mark.parametrize(
    "tensor",
    [torch.empty(0), torch.empty(3, device="meta"), torch.eye(3).to_sparse(), torch.ones(4, dtype=torch.cfloat).conj(),
     torch.empty(0, 3)],
    ids=["empty", "meta", "sparse", "conjugated", "no rows"],
)  # fmt: skip
def test_what_cannot_be_read_is_left_out(tensor: Tensor) -> None:
    assert not Probe([tensor]).changed()


@given(st.integers(1, 5000), st.integers(0, 99))
def test_the_largest_is_found(count: int, seed: int) -> None:
    tensor = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    assert _argmax(tensor) == int(tensor.argmax())


def test_memory_that_the_tensor_left_is_kept() -> None:
    tensor = torch.randn(100_000)
    probe = Probe([tensor])
    tensor.data = torch.zeros(100_000)
    gc.collect()
    assert not probe.changed(), "the probe reads the memory that it was made for"
    del tensor
    gc.collect()
    assert not probe.changed()
