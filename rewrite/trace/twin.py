"""Copies of the user's model: a shadow that shares its tensors, and a replica with tensors of its own."""

from __future__ import annotations

import collections
import contextlib
import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite.trace.compare import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWN = frozenset(nn.Module().__dict__) - {"training"}


def leaves(model: nn.Module) -> dict[str, Any]:
    """Every tensor and plain value that the modules hold, by qualified name, containers walked through.

    Parameters and buffers come under their own names, tied ones once for each; attributes as ``"block.cache['k']"``.
    """
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def walk(name: str, value: Any) -> None:
        if isinstance(value, (Tensor, *PLAIN)):
            found[name] = value
        elif isinstance(value, nn.Module):
            module(name, value)
        elif isinstance(value, (list, tuple, dict, set, frozenset, collections.deque)):
            if id(value) in seen:
                return
            seen.add(id(value))
            if isinstance(value, dict):
                for key, item in value.items():
                    walk(f"{name}[{key!r}]", item)
            elif isinstance(value, (set, frozenset)):
                found[name] = f"{len(value)} elements"
            else:
                for i, item in enumerate(value):
                    walk(f"{name}[{i}]", item)

    def module(path: str, value: nn.Module) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        prefix = f"{path}." if path else ""
        held: list[tuple[str, Any]] = [*value._parameters.items(), *value._buffers.items()]
        held += [(key, item) for key, item in value.__dict__.items() if key not in _OWN]
        held += value._modules.items()
        for key, item in held:
            walk(f"{prefix}{key}", item)

    module("", model)
    return found


def registered(model: nn.Module) -> set[str]:
    """The names of all parameters and buffers, tied ones once for each."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return names | {name for name, _ in model.named_buffers(remove_duplicate=False)}


@contextlib.contextmanager
def shadow(model: nn.Module) -> Iterator[nn.Module]:
    """A copy of the structure that holds the user's very tensors.

    What cannot be copied (a lock, an open file) is shared, and what it holds is put back at the end.
    """
    tensors = [leaf for leaf in leaves(model).values() if isinstance(leaf, Tensor)]
    with _copied(model, {id(tensor): tensor for tensor in tensors}) as twin:
        yield twin


@contextlib.contextmanager
def replica(model: nn.Module) -> Iterator[nn.Module]:
    """A copy with tensors of its own, which share memory among themselves as the user's do."""
    tensors = [leaf for leaf in leaves(model).values() if isinstance(leaf, Tensor)]
    with _copied(model, dict(zip(map(id, tensors), clones(tensors), strict=True))) as twin:
        yield twin


def clones(tensors: list[Any]) -> list[Any]:
    """Copies of tensors with their strides; what shares memory or is the same object still does and is. Other values
    are passed through."""
    storages: dict[int, torch.UntypedStorage] = {}
    known: dict[int, Any] = {}
    for tensor in tensors:
        if id(tensor) not in known:
            known[id(tensor)] = _clone(tensor, storages) if isinstance(tensor, Tensor) else tensor
    return [known[id(tensor)] for tensor in tensors]


def _clone(tensor: Tensor, storages: dict[int, torch.UntypedStorage]) -> Tensor:
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.layout is not torch.strided or (
        tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg()
    ):  # fmt: skip
        return copy.deepcopy(tensor) if tensor.is_leaf else tensor.detach().clone()
    with torch.no_grad():
        storage = tensor.untyped_storage()
        # views of a large storage (an input cut out of a data set) do not copy all of it
        if storage.nbytes() > 4 * tensor.numel() * tensor.element_size():
            copied = tensor.detach().clone()
        else:
            key = storage.data_ptr() or id(storage)
            if key not in storages:
                storages[key] = storage.clone()
            copied = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            copied.set_(storages[key], tensor.storage_offset(), tensor.size(), tensor.stride())
    if isinstance(tensor, nn.Parameter):
        copied = nn.Parameter(copied, tensor.requires_grad)
    elif tensor.requires_grad:
        copied.requires_grad_()
    copied.__dict__.update(tensor.__dict__)
    return copied


@contextlib.contextmanager
def _copied(model: nn.Module, tensors: dict[int, Any]) -> Iterator[nn.Module]:
    try:
        twin = copy.deepcopy(model, dict(tensors))
    except Exception:
        # any class may refuse with any exception
        yield from _piecewise(model, dict(tensors))
    else:
        yield twin


def _piecewise(model: nn.Module, memo: dict[int, Any]) -> Iterator[nn.Module]:
    """The copy module by module and attribute by attribute, sharing the attributes that refuse to be copied."""
    modules = list(model.modules())
    for module in modules:
        memo[id(module)] = module.__class__.__new__(module.__class__)
    shared: list[Any] = []
    for module in modules:
        twin = memo[id(module)]
        for key, value in module.__dict__.items():
            try:
                twin.__dict__[key] = copy.deepcopy(value, memo)
            except Exception:
                twin.__dict__[key] = value
                shared.append(value)
    saved = [(value, _content(value)) for value in shared]
    try:
        yield memo[id(model)]
    finally:
        for value, content in saved:
            _restore(value, content)


def _content(value: Any) -> Any:
    if isinstance(value, (list, set, dict, collections.deque)):
        return copy.copy(value)
    return dict(vars(value)) if hasattr(value, "__dict__") else None


def _restore(value: Any, content: Any) -> None:
    if isinstance(value, (list, collections.deque)):
        value.clear()
        value.extend(content)
    elif isinstance(value, (set, dict)):
        value.clear()
        value.update(content)
    elif content is not None:
        vars(value).clear()
        vars(value).update(content)
