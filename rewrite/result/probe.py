"""A look at a few bytes of each tensor, to notice writes that leave no trace: ``p.data.add_(...)``, fused optimizers.

The bytes are copied straight out of memory: 20 ns a place, where reading an element through torch takes 200 ns. Small
tensors are watched whole. In larger ones the places are the extremes, which clamping and pruning change before anything
else, and two in between, for writes that change everything.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WHOLE = 256
"""Tensors up to this many bytes are compared completely."""
WINDOW = 16
"""Bytes that are compared at each place of a larger tensor."""
_SAMPLE = 1 << 22
_ROW = 1024
_GOLDEN = 0.6180339887498949


class Probe:
    """Remembered bytes of tensors in main memory; others (on an accelerator, sparse) are left out.

    Args:
        tensors: what is looked at.
        keep: keep the memory alive. Without it, who asks has to see to it that the tensors lie where they lay.

    Attributes:
        windows: the bytes.
    """

    def __init__(self, tensors: Iterable[Tensor], keep: bool = True):
        # a detached alias keeps the storage even if the tensor is given another one
        readable = [tensor.detach() for tensor in tensors if _is_readable(tensor)]
        self.windows = [window for tensor in readable for window in _windows(tensor)]
        self._kept = readable if keep else None
        self._remembered = b"".join(self.windows)

    def changed(self) -> bool:
        """Whether any watched byte differs."""
        return b"".join(self.windows) != self._remembered


def has_memory(tensor: Tensor) -> bool:
    """Whether a tensor has one address: it is neither sparse nor a wrapper around other tensors."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return tensor.layout is torch.strided


def _is_readable(tensor: Tensor) -> bool:
    return (
        tensor.device.type == "cpu" and has_memory(tensor) and tensor.data_ptr() != 0 and tensor.numel() > 0
        and not tensor.is_quantized and not tensor.is_conj() and not tensor.is_neg()
    )  # fmt: skip


def _windows(tensor: Tensor) -> Iterator[memoryview]:
    start, width = tensor.data_ptr(), tensor.element_size()
    count = tensor.numel()
    if tensor.is_contiguous() or _is_dense(tensor):
        if count * width <= WHOLE:
            yield _bytes(start, count * width)
            return
        for offset in sorted({_offset(tensor, position) * width for position in _positions(tensor)}):
            begin = min(offset, count * width - WINDOW)
            yield _bytes(start + begin, WINDOW)
        return
    for offset in sorted({_offset(tensor, position) for position in _positions(tensor)}):
        yield _bytes(start + offset * width, width)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their piece of memory without gaps or overlap, in any order."""
    size = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.size(), strict=True)):
        if length > 1 and stride != size:
            return False
        size *= length
    return True


def _positions(tensor: Tensor) -> set[int]:
    """Flat positions to watch."""
    count = tensor.numel()
    places = {count // 2, int(count * _GOLDEN)}
    if tensor.is_floating_point() and tensor.element_size() >= 2:
        step = -(-count // _SAMPLE)
        with torch.no_grad():
            values = tensor.flatten()[::step]
            places |= {step * _argmax(values), step * _argmax(-values), step * _argmax(-values.abs())}
    return places


def _argmax(values: Tensor) -> int:
    """As ``values.argmax()``, which is slow: the largest of the row with the largest maximum."""
    rows = values[: values.numel() // _ROW * _ROW].view(-1, _ROW)
    tail = values[rows.numel() :]
    best = [rows.numel() + int(tail.argmax())] if tail.numel() else []
    if rows.numel():
        row = int(rows.amax(dim=1).argmax())
        best.append(row * _ROW + int(rows[row].argmax()))
    return max(best, key=lambda place: float(values[place]))


def _offset(tensor: Tensor, position: int) -> int:
    """The distance in memory, in elements, from the first element to the one at a flat position."""
    offset = 0
    for length, stride in zip(reversed(tensor.size()), reversed(tensor.stride()), strict=True):
        position, index = divmod(position, length)
        offset += index * stride
    return offset


def _bytes(address: int, count: int) -> memoryview:
    return memoryview((ctypes.c_char * count).from_address(address)).cast("B")
