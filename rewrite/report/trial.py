"""The fixed part of a reproduction script: values to try both sides of a rewrite on, and their comparison.

A script holds the source of what is defined here, so nothing but torch may be used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


class Draw:
    """Draws values that suit the operators which read them; equal seeds give equal values."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(
        self,
        role: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        given: int = 8,
        order: Sequence[int] | None = None,
        device: str = "cpu",
    ) -> torch.Tensor:
        """A tensor; ``given`` is the fan-in of a kernel or the size that an index points into, ``order`` the
        dimensions from the outermost to the innermost in memory."""
        if dtype.is_complex:
            parts = [self(role, shape, torch.float64, given, order, device) for _ in range(2)]
            return torch.complex(*parts).to(dtype)
        normal = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        if dtype == torch.bool:
            value = uniform < 0.5
        elif not dtype.is_floating_point:
            value = (uniform * given).floor()
        elif role == "scale":
            value = (uniform + 0.5) * torch.where(normal < 0, -1.0, 1.0)
        elif role == "kernel":
            value = normal / given**0.5
        elif role == "unit":
            value = 0.05 + 0.9 * uniform
        elif role == "positive":
            value = 0.3 + 1.7 * uniform
        else:
            value = normal
        if order is not None:
            value = value.permute(*order).contiguous().permute([list(order).index(dim) for dim in range(len(order))])
        return value.to(device, dtype)


def compare(
    promise: str,
    names: Sequence[str],
    old: Callable[..., Any],
    new: Callable[..., Any],
    values: Sequence[Any],
    dtypes: Mapping[str, torch.dtype],
) -> tuple[bool, list[str]]:
    """Whether two functions agree on values as far as the rule promises, and lines that say by how much they differ.

    ``dtypes`` are the keywords of both functions, which are bound to double precision for the reference.
    """
    doubles = {name: lifted_dtype(dtype) for name, dtype in dtypes.items()}
    wide = [lifted(value) for value in values]
    floating = [value.dtype for value in flat(values) if is_floating(value)]
    digit = max((torch.finfo(dtype).eps for dtype in floating), default=0.0)
    sides = [
        old(*values), new(*values), old(*wide, **doubles), new(*wide, **doubles),
        old(*nudged(wide, 2.0**-36), **doubles), old(*nudged(wide, digit), **doubles),
    ]  # fmt: skip
    agree, lines = True, []
    for name, *outputs in zip(names, *sides, strict=True):
        for i, (a, b, truth, sharp, near, last) in enumerate(zip(*map(flat, outputs), strict=True)):
            label = name if len(flat(outputs[0])) == 1 else f"{name}[{i}]"
            if kind(a) != kind(b):
                same, text = False, [f"old is {kind(a)}, new is {kind(b)}"]
            elif not is_floating(a):
                same, text = equal(a, b), ["equal" if equal(a, b) else "not equal"]
            else:
                same, text = judge(promise, a, b, truth, sharp, near, last)
            agree &= same
            lines += [label, *(f"  {line}" for line in text)]
    return agree, lines


def judge(promise: str, a: Any, b: Any, truth: Any, sharp: Any, near: Any, last: Any) -> tuple[bool, list[str]]:
    """Compare one output of old and new, as computed (a, b) and in float64 (truth, sharp)."""
    kept, exact = largest(b, a, a), largest(sharp, truth, truth)
    dtype = str(a.dtype).removeprefix("torch.")
    lines = [f"float64: largest difference {exact:.2e}", f"{dtype}: largest difference {kept:.2e}"]
    if promise in ("approximate", "structural"):
        return True, lines
    if promise == "bitwise":
        return equal(a, b) and equal(truth, sharp), [f"{line}, allowed 0" for line in lines]
    before, after = largest(a, truth, a), largest(b, truth, a)
    moved = largest(last, truth, a)
    allowed = 8 * moved if promise == "rounded" else largest(near, truth, truth), 8 * max(before, moved)
    lines[0] += f", allowed {allowed[0]:.2e}"
    lines[1] += f"; from float64 old is {before:.2e} and new {after:.2e}, allowed {allowed[1]:.2e}"
    return exact <= allowed[0] and after <= allowed[1], lines


def largest(values: Any, reference: Any, finite: Any) -> float:
    """The largest difference where ``finite`` and the reference are finite; infinite where the values are not."""
    known = torch.isfinite(finite) & torch.isfinite(reference)
    difference = (lifted(values) - lifted(reference)).abs()[known]
    return float(difference.nan_to_num(nan=torch.inf).max()) if difference.numel() else 0.0


def equal(a: Any, b: Any) -> bool:
    """Whether two results hold the same values; NaN is equal to NaN."""
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    return bool(((a == b) | ((a != a) & (b != b))).all())


def nudged(values: Any, step: float) -> Any:
    """Values with each floating number moved up or down by a relative step."""
    if isinstance(values, (tuple, list)):
        return [nudged(value, step) for value in values]
    if not is_floating(values):
        return values
    signs = torch.ones(values.numel(), dtype=torch.float64, device=values.device)
    signs[torch.randperm(len(signs), generator=torch.Generator().manual_seed(0)) < len(signs) // 2] = -1
    return values * (1 + step * signs.reshape(values.shape))


def lifted(value: Any) -> Any:
    """A value in double precision."""
    if isinstance(value, (tuple, list)):
        return [lifted(item) for item in value]
    return value.to(lifted_dtype(value.dtype)) if is_floating(value) else value


def lifted_dtype(dtype: torch.dtype) -> torch.dtype:
    """Double precision of the same kind."""
    return torch.complex128 if dtype.is_complex else torch.float64


def is_floating(value: Any) -> bool:
    """Whether a value is a tensor of real or complex numbers."""
    return isinstance(value, torch.Tensor) and (value.dtype.is_floating_point or value.dtype.is_complex)


def flat(value: Any) -> list[Any]:
    """The leaves of nested tuples and lists."""
    return [leaf for item in value for leaf in flat(item)] if isinstance(value, (tuple, list)) else [value]


def kind(value: Any) -> str:
    """The type of a result, with dtype and shape of a tensor."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


PARTS = (Draw, compare, judge, largest, equal, nudged, lifted, lifted_dtype, is_floating, flat, kind)
"""What a script needs, in the order in which it reads best."""
