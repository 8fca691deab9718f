"""Kernels as operators of torch: with a shape function, a reference in torch's own operators, and gradients.

The name of an operator holds the hash of the kernel's source and of its results, so that a saved program that names one
can only mean this one. On a device without the kernel, for gradients, and where a kernel fails, the reference runs.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codegen.triton.reference import reference

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from codegen.triton.kernel import Kernel, Launchable, Layout

Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Computes a kernel's results from its operands."""

Make = Callable[["Launchable", Run], Run]
"""Gives the function that computes a kernel, from the kernel and from its reference."""

_LIBRARY = torch.library.Library("torch_rewrite", "FRAGMENT")
_KNOWN: dict[str, Any] = {}
_LOCK = threading.Lock()


def operator_of(kernel: Kernel, make: Make, kind: str) -> Any:
    """The operator of a kernel; one that is known already where it is the same.

    Args:
        kernel: with all that the operator's results depend on.
        make: gives the function that computes it on its device, where the reference cannot be asked for.
        kind: ``"CUDA"``, or ``"CPU"`` for the interpreter; all other devices take the reference.

    Returns:
        An overload that takes the kernel's operands and gives one tensor, or a tuple.
    """
    name = f"{kernel.operator}_{_ending(kernel, kind)}"
    with _LOCK:
        if name not in _KNOWN:
            _KNOWN[name] = _defined(name, kernel, make, kind)
        return _KNOWN[name]


def _ending(kernel: Kernel, kind: str) -> str:
    """Six digits of what else tells operators apart: sizes, strides and dtypes, and the reference."""
    facts = kernel.results, kernel.reads, reference(kernel).code, kind
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:6]


def _defined(name: str, kernel: Kernel, make: Make, kind: str) -> Any:
    results, single = kernel.results, len(kernel.results) == 1
    operands = ", ".join(f"Tensor {each}" for each in kernel.source.tensors[: len(kernel.operands)])
    given = ", ".join(["Tensor"] * len(results))
    schema = f"{name}({operands}) -> {given if single else f'({given})'}"
    _LIBRARY.define(schema, tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag))
    plain = reference(kernel)

    def packed(found: Sequence[Tensor]) -> Any:
        return found[0] if single else tuple(found)

    def by_reference(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            return laid_out(results, plain(*tensors))

    run = make(kernel.launchable, by_reference)
    _LIBRARY.impl(name, lambda *tensors: packed(by_reference(tensors)), "CompositeExplicitAutograd")
    _LIBRARY.impl(name, lambda *tensors: packed(run(tensors)), kind)

    def fake(*tensors: Tensor) -> Any:
        return packed([tensors[0].new_empty_strided(r.shape, r.stride, dtype=r.dtype) for r in results])

    full = f"torch_rewrite::{name}"
    torch.library.register_fake(full, fake, lib=_LIBRARY)
    _differentiate(full, plain)
    return getattr(torch.ops.torch_rewrite, name).default


def laid_out(results: Sequence[Layout], found: Sequence[Tensor]) -> list[Tensor]:
    """Values with the strides and dtypes that a kernel gives."""
    made = [torch.empty_strided(r.shape, r.stride, dtype=r.dtype, device=x.device)
            for r, x in zip(results, found, strict=True)]  # fmt: skip
    return [into.copy_(x) for into, x in zip(made, found, strict=True)]


def _differentiate(name: str, plain: GraphModule) -> None:
    """Gradients by those of the reference, which is computed again for them."""

    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
            found = plain(*inputs)
            pairs = [(y, g) for y, g in zip(found, gradients, strict=True) if g is not None and y.requires_grad]
            wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
            made = torch.autograd.grad([y for y, _ in pairs], wanted, [g.to(y.dtype) for y, g in pairs],
                                       allow_unused=True)  # fmt: skip
        left = iter(made)
        return tuple(next(left) if need else None for need in needed)

    torch.library.register_autograd(name, backward, setup_context=setup_context, lib=_LIBRARY)
