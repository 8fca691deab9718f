"""Tensors as safetensors and back, bit for bit, with their strides and with what they share.

A tensor with memory of its own is stored under its name in its shape, so that any reader of safetensors understands it.
Tensors whose memory overlaps (tied weights, views of one buffer) are stored once, as the bytes that they lie in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from rewrite.artifact.boundary import refusing
from rewrite.artifact.literals import torch_name
from rewrite.artifact.names import DAMAGED
from rewrite.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_ALIGNMENT = 16
_SPREAD = 4
"""How much room a tensor with gaps may take, as a multiple of its elements."""


def pack(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, Any]]:
    """Tensors as a safetensors file, and as JSON how they are made of it.

    Raises:
        ArtifactError: a tensor that is not dense, or of a dtype that safetensors does not have.
    """
    entries: dict[str, Tensor] = {}
    layout: dict[str, Any] = {}
    for name, tensor in tensors.items():
        _require_plain(name, tensor)
    for group in _overlapping(tensors):
        if len(group) == 1 and not _overlaps_itself(group[0].tensor):
            name, tensor = group[0].name, group[0].tensor
            entries[name] = _stored(tensor)
            layout[name] = {**_described(tensor), "stride": _strides(tensor)}
            continue
        start = min(span.begin for span in group) // _ALIGNMENT * _ALIGNMENT
        end = max(span.end for span in group)
        key = f"memory of {group[0].name}"
        entries[key] = _bytes(group[0].tensor, start, end)
        for span in group:
            offset = (span.begin - start) // span.tensor.element_size()
            layout[span.name] = {
                **_described(span.tensor), "stride": list(span.tensor.stride()), "memory": key, "offset": offset,
            }  # fmt: skip
    try:
        data = safetensors.save(entries)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"the weights cannot be saved as safetensors ({error}); convert them to another dtype"
        ) from error
    return data, {name: layout[name] for name in tensors}


def unpack(data: bytes, layout: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors again, in main memory. Names that were tied to one memory give one object.

    Raises:
        ArtifactError: the file is no safetensors file, or does not have what the layout says.
    """
    with refusing("the weights cannot be read"):
        entries = safetensors.load(data)
        made: dict[Any, Tensor] = {}
        return {name: _made(name, each, entries, made) for name, each in layout.items()}


def _made(name: str, data: Mapping[str, Any], entries: Mapping[str, Tensor], made: dict[Any, Tensor]) -> Tensor:
    dtype, shape, stride = torch_name(data["dtype"], torch.dtype), data["shape"], data["stride"]
    if "memory" in data:
        # names of one tensor give one object, names of overlapping ones share memory
        key = (data["memory"], data["offset"], dtype, tuple(shape), tuple(stride), data["parameter"])
        if key not in made:
            storage = entries[data["memory"]].untyped_storage()
            end = (data["offset"] + _extent(shape, stride)) * dtype.itemsize
            if min(data["offset"], *stride, 0) < 0 or end > storage.nbytes():  # which torch would make larger
                raise ArtifactError(f"the weight '{name}' lies outside of '{data['memory']}'; {DAMAGED}")
            view = torch.empty(0, dtype=dtype).set_(storage, data["offset"], shape, stride)
            made[key] = _as_given(view, data)
        return made[key]
    stored = entries[name]
    stored = torch.view_as_complex(stored) if dtype.is_complex else stored
    if (stored.dtype, list(stored.shape)) != (dtype, shape):
        raise ArtifactError(
            f"the weight '{name}' is {stored.dtype}{list(stored.shape)} in the file, which says {dtype}{shape} "
            f"elsewhere; {DAMAGED}"
        )
    if list(stored.stride()) != stride:
        if _extent(shape, stride) > _SPREAD * stored.numel():
            raise ArtifactError(f"the weight '{name}' has the strides {stride} for the shape {shape}; {DAMAGED}")
        stored = torch.empty_strided(shape, stride, dtype=dtype).copy_(stored)
    return _as_given(stored, data)


def _as_given(tensor: Tensor, data: Mapping[str, Any]) -> Tensor:
    if data["parameter"]:
        return nn.Parameter(tensor, requires_grad=data["requires_grad"])
    return tensor


def _described(tensor: Tensor) -> dict[str, Any]:
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "parameter": isinstance(tensor, nn.Parameter),
        "requires_grad": tensor.requires_grad,
    }


def _require_plain(name: str, tensor: Tensor) -> None:
    kind = ""
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        kind = f"a {type(tensor).__name__}"
    elif tensor.layout is not torch.strided:
        kind = str(tensor.layout).removeprefix("torch.")
    elif tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else "on the meta device"
    if kind:
        raise ArtifactError(f"'{name}' is {kind}, which cannot be saved; make it a dense tensor with values")


def _stored(tensor: Tensor) -> Tensor:
    """A copy of the elements in row-major order; pairs of numbers for complex ones."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    return (torch.view_as_real(plain) if plain.is_complex() else plain).contiguous()


def _strides(tensor: Tensor) -> list[int]:
    """The strides to restore: the tensor's own, unless it is a small part of a large memory."""
    if _extent(tensor.shape, tensor.stride()) > _SPREAD * tensor.numel():
        return list(torch.empty(tensor.shape, device="meta").stride())
    return list(tensor.stride())


# -- what shares memory -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Span:
    """A tensor and the bytes of its storage that it lies in."""

    name: str
    tensor: Tensor
    begin: int
    end: int


def _overlapping(tensors: Mapping[str, Tensor]) -> Iterable[Sequence[_Span]]:
    """The tensors in groups whose bytes overlap, directly or through others of the group."""
    storages: dict[Any, list[_Span]] = {}
    for name, tensor in tensors.items():
        size = tensor.element_size()
        begin = int(tensor.storage_offset()) * size
        key = (str(tensor.device), tensor.untyped_storage().data_ptr()) if tensor.numel() else name
        storages.setdefault(key, []).append(
            _Span(name, tensor, begin, begin + _extent(tensor.shape, tensor.stride()) * size)
        )
    for spans in storages.values():
        group: list[_Span] = []
        for span in sorted(spans, key=lambda span: span.begin):
            if group and span.begin >= max(other.end for other in group):
                yield group
                group = []
            group.append(span)
        yield group


def _extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """The elements from the first to the last of a tensor, gaps included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements may have one place in memory, as in an expanded tensor."""
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return True
            reach += (size - 1) * stride
    return False


def _bytes(tensor: Tensor, begin: int, end: int) -> Tensor:
    """A copy of bytes of a tensor's storage."""
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return whole.set_(tensor.untyped_storage(), begin, (end - begin,), (1,)).cpu().clone()
