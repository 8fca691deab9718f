"""``kernel_plan``: what would be fused on a GPU, told without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.api.arguments import call_of
from rewrite.api.optimizing import optimize
from rewrite.errors import InputError
from rewrite.lowering import flat_module, record
from rewrite.names import nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from codegen.triton.planning import KernelPlan


def kernel_plan(
    model: nn.Module,
    example_inputs: Any,
    device: str = "H200",
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    batch: int | None = None,
    **settings: Any,
) -> KernelPlan:
    """The regions of a model that would each be one Triton kernel on a GPU, with predicted times; nothing is run there.

    Args:
        model: a module in evaluation mode, on any device; not changed. Its dtype and layout are those of the kernels.
        example_inputs, example_kwargs: as for :func:`optimize`.
        device: one of ``codegen.triton.device.DEVICES``: ``"A100"``, ``"H100"``, ``"H200"``, ``"B200"``, ``"MI300X"``.
        batch: plan for so many samples instead of the example's, without memory for them; of inputs that are tensors of
            its batch.
        settings: of :func:`optimize`: ``pipeline``, ``exclude``, ``numerics``, ...

    Returns:
        A plan that prints: what is fused, how it is cut into programs, what bounds it, what it saves, and what was
        declined and why.

    Raises:
        InputError: an unknown device, or as :func:`optimize`.
        CaptureError: as :func:`optimize`.
    """
    from codegen.triton.device import DEVICES
    from codegen.triton.planning import planned

    if device not in DEVICES:
        raise InputError(f"device={device!r} is unknown{nearest(str(device), DEVICES)}")
    if batch is not None and not _is_count(batch):
        raise InputError(f"batch={batch!r} is no number of samples; pass a positive one, or leave it out")
    if example_inputs is None and example_kwargs is None:
        raise InputError("kernels are made for certain sizes, so a plan needs an example; pass example_inputs")
    fixed = sorted({"lower", "tune", "release"} & settings.keys())
    if fixed:
        raise InputError(f"{fixed[0]}= means nothing for a plan, which runs nothing; leave it out")
    fast = optimize(model, example_inputs, example_kwargs, lower="eager", tune="off", **settings)
    graph, weights = fast.program()
    flat = compat.tree_flatten(call_of(example_inputs, example_kwargs))[0]
    module = flat_module(graph, (), weights)
    try:
        record(module, flat if batch is None else _resized(flat, batch))
    except RuntimeError as error:
        if batch is None:
            raise
        raise InputError(f"batch={batch} does not fit the model: {error}; leave it out") from error
    return planned(module.graph, DEVICES[device], elementwise=settings.get("numerics") == "elementwise")


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


def _resized(flat: list[Any], batch: int) -> list[Any]:
    """Fake tensors of another batch, laid out as the example's."""
    tensors = [leaf for leaf in flat if isinstance(leaf, Tensor) and leaf.dim() > 0]
    samples = {int(leaf.shape[0]) for leaf in tensors}
    if len(samples) != 1:
        raise InputError(f"batch={batch} needs inputs of one batch, and theirs are {sorted(samples)}; leave it out")
    with compat.FakeTensorMode(allow_non_fake_inputs=True):
        return [_like(leaf, batch) if isinstance(leaf, Tensor) and leaf.dim() > 0 else leaf for leaf in flat]


def _like(leaf: Tensor, batch: int) -> Tensor:
    order = sorted(range(leaf.dim()), key=lambda dim: -leaf.stride()[dim])
    made = torch.empty(
        [batch if dim == 0 else int(leaf.shape[dim]) for dim in order], dtype=leaf.dtype, device=leaf.device
    )
    return made.permute([order.index(dim) for dim in range(leaf.dim())])
