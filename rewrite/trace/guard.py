"""What capture refuses before it touches anything, one sentence each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.errors import CaptureError, InputError


def unwrap(model: Any) -> nn.Module:
    """The module to capture: itself, or what DataParallel, DistributedDataParallel or ``torch.compile`` wraps.

    Raises:
        InputError: not an ``nn.Module``.
        CaptureError: a scripted or sharded module.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise InputError(f"{model.__name__} is a class, not a module; pass an instance, {model.__name__}(...)")
    if not isinstance(model, nn.Module):
        raise InputError(f"{type(model).__name__} is not an nn.Module; wrap the function in a module's forward")
    inner: nn.Module = compat.uncompiled(model)
    while isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = compat.uncompiled(inner.module)
    for name, module in inner.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(f"{_part(name)} is a ScriptModule, whose Python code is gone; pass the original module")
        if compat.is_fsdp(module):
            raise CaptureError(
                f"{_part(name)} is sharded (FSDP), so its weights are not whole; capture before sharding"
            )
    return inner


def check_call(model: nn.Module, args: Any, kwargs: Any, training: bool) -> None:
    """Check the model's state and the example call against what a graph can hold.

    Raises:
        InputError: a wrong type, mode or device.
        CaptureError: weights that do not exist yet, or inputs that no rule understands.
    """
    if not isinstance(args, tuple):
        raise InputError(f"args is a {type(args).__name__}, not a tuple; pass (x,) for one input")
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise InputError("kwargs is not a dict from argument names to values; pass {} for none")
    check_model(model, training)
    inputs = [(f"input {i}", leaf) for i, leaf in enumerate(compat.tree_flatten((args, kwargs))[0])]
    tensors = [(name, leaf) for name, leaf in inputs if isinstance(leaf, Tensor)]
    for name, tensor in tensors:
        if tensor.is_nested:
            raise CaptureError(f"{name} is a nested tensor; pad it to a dense one")
        if tensor.layout is not torch.strided:
            raise CaptureError(f"{name} is sparse ({tensor.layout}); pass it dense")
        if tensor.is_quantized:
            raise CaptureError(f"{name} is quantized ({tensor.dtype}); pass it dequantized")
    _check_devices([*_weights(model), *tensors])


def check_model(model: nn.Module, training: bool) -> None:
    """Check what can be said of the model without an example call.

    Raises:
        InputError: training mode where evaluation is asked for, or weights on several devices.
        CaptureError: weights that do not exist yet.
    """
    _check_mode(model, training)
    for name, tensor in _weights(model):
        if nn.parameter.is_lazy(tensor):
            raise CaptureError(f"'{name}' is not initialized; call the model once on an example input first")
        if tensor.device.type == "meta":
            raise CaptureError(f"'{name}' is on the meta device and has no values; load the weights first")
        if tensor.is_inference():
            raise CaptureError(
                f"'{name}' was made in inference mode and cannot be traced; build the model outside of it"
            )
    _check_devices(_weights(model))


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _check_mode(model: nn.Module, training: bool) -> None:
    if training:
        return
    for name, module in model.named_modules():
        if module.training:
            raise InputError(
                f"{_part(name)} is in training mode; call model.eval() first, or use transform to rewrite for training"
            )


def _check_devices(tensors: list[tuple[str, Tensor]]) -> None:
    first: tuple[str, Tensor] | None = None
    for name, tensor in tensors:
        if tensor.dim() == 0 and tensor.device.type == "cpu":
            continue  # a number: torch lets it meet tensors of any device
        if first is None:
            first = (name, tensor)
        elif tensor.device != first[1].device:
            raise InputError(
                f"{name} is on {tensor.device} but {first[0]} is on {first[1].device}; "
                "move the model and its inputs to one device"
            )


def _part(name: str) -> str:
    return f"module '{name}'" if name else "the model"
