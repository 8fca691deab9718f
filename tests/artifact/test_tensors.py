"""Tensors come back bit for bit, with strides and with what they share."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rewrite.artifact.tensors import pack, unpack
from rewrite.errors import ArtifactError

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.complex128,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool,
]  # fmt: skip


def again(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    data, layout = pack(tensors)
    return unpack(data, json.loads(json.dumps(layout)))


def bits(tensor: Tensor) -> bytes:
    """The elements in order, as bytes: NaN counts by its bits, and the zeros differ."""
    buffer = io.BytesIO()
    buffer.write(bytes(tensor.detach().resolve_conj().contiguous().view(-1).view(torch.uint8).tolist()))
    return buffer.getvalue()


def same(a: Tensor, b: Tensor) -> None:
    assert (a.dtype, a.shape, a.stride(), type(a), a.requires_grad) == (
        b.dtype, b.shape, b.stride(), type(b), b.requires_grad,
    )  # fmt: skip
    assert a.numel() == 0 or bits(a) == bits(b)


def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
    """Random bits; those of booleans are 0 and 1."""
    if dtype is torch.bool:
        return torch.rand(shape) < 0.5
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (*shape[:-1], shape[-1] * size), dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_bit_for_bit(dtype: torch.dtype) -> None:
    tensors = {"a.weight": drawn(dtype, 3, 4), "scalar": drawn(dtype, 1)[0].clone(), "none": drawn(dtype, 2, 0, 3)}
    found = again(tensors)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        same(found[name], tensor)


def test_strides() -> None:
    x = torch.randn(4, 3, 5, 6)
    tensors = {
        "last": x.to(memory_format=torch.channels_last),
        "turned": torch.randn(5, 4).t(),
        "sliced": torch.randn(6, 8)[1:, ::2],
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
    }
    found = again(tensors)
    for name in ("last", "turned", "sliced"):
        same(found[name], tensors[name])
    assert torch.equal(found["conjugate"], tensors["conjugate"])
    assert not found["conjugate"].is_conj()


def test_a_row_of_a_large_table_does_not_bring_the_table() -> None:
    table = torch.randn(1000, 1000)
    for part in (table[3], table[:, 700]):
        data, layout = pack({"part": part})
        assert len(data) < 5000
        found = unpack(data, layout)["part"]
        assert torch.equal(found, part)
        assert found.untyped_storage().nbytes() == 4000


def test_parameters_stay_parameters() -> None:
    tensors = {"a": nn.Parameter(torch.randn(2)), "b": nn.Parameter(torch.ones(2).long(), requires_grad=False),
               "c": torch.randn(2)}  # fmt: skip
    for name, tensor in again(tensors).items():
        same(tensor, tensors[name])


def test_tied_names_are_one_object() -> None:
    weight = nn.Parameter(torch.randn(3, 3))
    found = again({"a": weight, "other": torch.ones(2), "b": weight})
    assert found["a"] is found["b"]
    same(found["a"], weight)


def test_views_of_one_memory_share_it() -> None:
    joint = torch.randn(4, 6)
    tensors = {"whole": joint, "half": joint[:, 3:], "turned": joint.t(), "row": joint[2], "apart": torch.randn(3),
               "pairs": torch.view_as_complex(joint.view(4, 3, 2)), "bytes": joint.view(torch.uint8)}  # fmt: skip
    found = again(tensors)
    for name, tensor in tensors.items():
        same(found[name], tensor)
    found["whole"].zero_()
    assert not found["half"].any()
    assert not found["bytes"].any()
    assert found["apart"].any()


def test_an_expanded_tensor_stays_one() -> None:
    wide = torch.randn(3, 1).expand(3, 1000)
    data, _ = pack({"wide": wide})
    assert len(data) < 500
    same(again({"wide": wide})["wide"], wide)


def test_any_reader_of_safetensors_understands_the_file() -> None:
    tensors = {
        "fc.weight": torch.randn(3, 4),
        "conv.weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
    }
    data, _ = pack(tensors)
    found = safetensors.torch.load(data)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@st.composite
def views(draw: Any) -> dict[str, Tensor]:
    """Views of a few memories, of any offset, size and stride within them, in two dtypes."""
    memories = [torch.randint(0, 256, (64,), dtype=torch.uint8) for _ in range(draw(st.integers(1, 3)))]
    found = {}
    for i in range(draw(st.integers(1, 5))):
        dtype = draw(st.sampled_from([torch.uint8, torch.int32]))
        memory = draw(st.sampled_from(memories)).view(dtype)
        shape = draw(st.lists(st.integers(0, 3), min_size=0, max_size=3))
        stride = draw(st.lists(st.integers(0, 3), min_size=len(shape), max_size=len(shape)))
        reach = 1 + sum(max(size - 1, 0) * step for size, step in zip(shape, stride, strict=True))
        if reach > len(memory):
            continue
        offset = draw(st.integers(0, len(memory) - reach))
        found[f"t{i}"] = memory.as_strided(shape, stride, offset)
    return found


@given(views())
def test_any_views_come_back_and_share_what_they_shared(tensors: dict[str, Tensor]) -> None:
    found = again(tensors)
    for name, tensor in tensors.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        assert found[name].tolist() == tensor.tolist()
    # an element that is written changes the same elements of the others
    for name, tensor in tensors.items():
        if tensor.numel():
            for each in (tensor, found[name]):
                each[(0,) * each.dim()] += 1
            assert {other: found[other].tolist() for other in tensors} == {
                other: each.tolist() for other, each in tensors.items()
            }


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.eye(3).to_sparse(), "'w' is sparse_coo, which cannot be saved"),
        (torch.empty(3, device="meta"), "meta device"),
        (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "'w' is "),
    ],
    ids=["sparse", "meta", "nested"],
)
def test_what_has_no_plain_memory_is_refused(tensor: Tensor, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        pack({"w": tensor})


def test_a_file_that_does_not_fit_its_layout() -> None:
    data, layout = pack({"w": torch.randn(2, 3), "v": torch.randn(4)})
    for change, words in (
        ({"shape": [3, 2]}, r"is torch.float32\[2, 3\] in the file, which says torch.float32\[3, 2\]"),
        ({"dtype": "float16"}, "in the file, which says torch.float16"),
        ({"dtype": "float33"}, "no dtype 'float33'"),
        ({"stride": [10**9, 1]}, r"has the strides \[1000000000, 1\] for the shape \[2, 3\]"),
        ({"stride": [-3, 1]}, "cannot be read"),
        ({"memory": "v", "offset": 0}, "'w' lies outside of 'v'"),
        ({"memory": "w", "offset": 1}, "'w' lies outside of 'w'"),
        ({"memory": "w", "offset": -1}, "'w' lies outside of 'w'"),
        ({"memory": "w", "offset": 5, "stride": [-3, 1]}, "'w' lies outside of 'w'"),
    ):
        with pytest.raises(ArtifactError, match=words):
            unpack(data, {**layout, "w": {**layout["w"], **change}})
    with pytest.raises(ArtifactError, match="cannot be read"):
        unpack(data, {**layout, "x": layout["w"]})
    with pytest.raises(ArtifactError, match="cannot be read"):
        unpack(data[:50], layout)
