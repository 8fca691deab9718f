"""Comparing what two calls returned and left behind: values up to rounding, shapes, and who shares memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Values that compare by ==; other objects are the same if they are of one type, for nothing more is known of them.
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.memory_format)

# What different kernels for the same operators may differ by, relative to the largest value of the tensor. Capture
# looks for another function, not for rounding: the bound is generous, the verification of rewrites is not.
_KERNELS = {
    torch.float64: 1e-9, torch.complex128: 1e-9, torch.float32: 2e-4, torch.complex64: 2e-4,
    torch.float16: 3e-2, torch.bfloat16: 1e-1,
}  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Whether two plain values or tensors are equal bit for bit, NaN equal to NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
            return False
        if a is b or (a.layout is not torch.strided and a.layout is not torch.sparse_coo):
            return a is b
        if a.layout is torch.sparse_coo:
            a, b = a.to_dense(), b.to_dense()
        a, b = a.detach(), b.detach()
        if torch.equal(a, b):
            return True
        return bool(((a == b) | ((a != a) & (b != b))).all())
    return type(a) is type(b) and (not isinstance(a, PLAIN) or a == b or (a != a and b != b))


def difference(expected: Any, found: Any, exact: bool = False, shapes_only: bool = False) -> str:
    """How ``found`` differs from ``expected`` beyond rounding, in words; '' where it does not.

    Args:
        expected: a flat value: a tensor, a number, None.
        found: the value to judge.
        exact: allow a few rounding units only, as for two runs of one program.
        shapes_only: do not compare values, which are random.
    """
    if not (isinstance(expected, Tensor) and isinstance(found, Tensor)):
        return "" if type(expected) is type(found) and (shapes_only or same(expected, found)) else (
            f"is {show(found)} instead of {show(expected)}"
        )  # fmt: skip
    if (expected.dtype, expected.shape) != (found.dtype, found.shape):
        return f"is {show(found)} instead of {show(expected)}"
    if shapes_only or expected.numel() == 0 or same(expected, found):
        return ""
    if expected.layout is not torch.strided:
        return "differs"
    if not (expected.is_floating_point() or expected.is_complex()):
        return f"differs in {int((expected != found).sum())} of {expected.numel()} values"
    a, b = _wide(expected), _wide(found)
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return "differs in where it is infinite or NaN"
    if not same(a[~finite], b[~finite]):
        return "differs in its infinite values"
    a, b = a[finite], b[finite]
    if a.numel() == 0:
        return ""
    scale = float(a.abs().max())
    error = float((a - b).abs().max())
    bound = 16 * torch.finfo(expected.dtype).eps if exact else _KERNELS.get(expected.dtype, 1e-1)
    if error <= bound * scale:
        return ""
    return f"differs by {error:.2g} where the largest value is {scale:.2g}"


def _wide(value: Tensor) -> Tensor:
    return value.detach().to(torch.complex128 if value.is_complex() else torch.float64)


def show(value: Any) -> str:
    """A value as messages name it: a number as it is, a tensor by its value or its dtype and shape."""
    if isinstance(value, Tensor):
        if value.numel() == 1 and value.layout is torch.strided:
            return repr(value.detach().item())
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def shared_memory(outputs: list[Any], inputs: list[Any], weights: dict[str, Tensor]) -> frozenset[frozenset[str]]:
    """Pairs of outputs and inputs, weights or other outputs in one storage, named as in ``alias_classes``.

    Inputs go by position. Weights in one storage go by the first of their names.
    """
    owners: dict[tuple[str, int], list[str]] = {}
    for i, value in enumerate(inputs):
        _own(owners, value, f"input {i}")
    held: set[tuple[str, int]] = set()
    for name, value in sorted(weights.items()):
        key = _key(value)
        if key is not None and key not in held:
            held.add(key)
            _own(owners, value, f"weight {name}")
    pairs: set[frozenset[str]] = set()
    for i, value in enumerate(outputs):
        key = _key(value)
        if key is not None:
            pairs.update(frozenset({f"output {i}", other}) for other in owners.get(key, ()))
            owners.setdefault(key, []).append(f"output {i}")
    return frozenset(pairs)


def _own(owners: dict[tuple[str, int], list[str]], value: Any, name: str) -> None:
    key = _key(value)
    if key is not None:
        owners.setdefault(key, []).append(name)


def _key(value: Any) -> tuple[str, int] | None:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.numel() == 0:
        return None
    return str(value.device), value.untyped_storage().data_ptr()
