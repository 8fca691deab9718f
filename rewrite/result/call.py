"""A call's flat inputs and what identifies it: the key of a lowering."""

from __future__ import annotations

import reprlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Proxy

from rewrite import compat
from rewrite.errors import InputError
from rewrite.printer import type_text

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

Tree = int | compat.TreeSpec
"""The structure of a call: the number of positional tensors, or the tree of ``(args, kwargs)`` for anything else."""

_SYMBOLIC = "torch.fx finds no code to trace in a rewritten module; use result.graph_module, which is its trace"


def flatten(args: tuple[Any, ...], kwargs: dict[str, Any] | Proxy) -> tuple[list[Any], Tree]:
    """The leaves of a call and its structure.

    Raises:
        InputError: the call is one of ``torch.fx.symbolic_trace``.
    """
    if isinstance(kwargs, Proxy):
        raise InputError(_SYMBOLIC)
    if not kwargs and all(isinstance(arg, Tensor) for arg in args):
        return list(args), len(args)
    return compat.tree_flatten((args, kwargs))


def tree_of(structure: Tree) -> compat.TreeSpec:
    """The tree of ``(args, kwargs)``."""
    return _positional(structure) if isinstance(structure, int) else structure


@lru_cache(maxsize=32)
def _positional(count: int) -> compat.TreeSpec:
    return compat.tree_flatten(((0,) * count, {}))[1]


def kind(flat: list[Any], structure: Tree) -> Hashable:
    """What there is a program and a lowering for: structure, sizes, strides, dtypes, devices, and autocast.

    Raises:
        InputError: an argument that no graph can take.
    """
    autocast = _autocast(flat) if compat.is_any_autocast() else None
    found = structure, tuple(map(_leaf, flat)), autocast
    try:
        hash(found)
    except TypeError as error:
        wrong = next(type(value).__name__ for value in flat if type(value).__hash__ is None)
        raise InputError(f"an argument is a {wrong}, which a graph cannot take; pass tensors and numbers") from error
    return found


def key(flat: list[Any], structure: Tree, differentiate: bool) -> tuple[Hashable, bool, int]:
    """The kind of a call first, and how it runs: with gradients or not, on so many threads.

    Raises:
        InputError: as :func:`kind`.
    """
    return kind(flat, structure), differentiate, torch.get_num_threads()


def _leaf(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        # the strides of sizes of one carry no meaning, so contiguous ones are one class
        layout = True if value.is_contiguous() else value.stride()
        return value.shape, layout, value.dtype, value.device
    if isinstance(value, Proxy):
        raise InputError(_SYMBOLIC)
    return type(value), value


def text(values: Iterable[Any]) -> str:
    """Arguments as messages name them: ``f32[2, 3, 8, 8], 1.0``, with unusual strides and devices."""
    return ", ".join(map(_leaf_text, values))


def _leaf_text(value: Any) -> str:
    if not isinstance(value, Tensor):
        return reprlib.repr(value)
    strided = not compat.is_stand_in(value) and not value.is_contiguous()
    strides = f" with strides {list(value.stride())}" if strided else ""
    return f"{type_text(value)}{strides}{'' if value.device.type == 'cpu' else f' on {value.device}'}"


def _autocast(flat: list[Any]) -> Hashable:
    kinds = sorted({value.device.type for value in flat if isinstance(value, Tensor)})
    return tuple((kind, torch.get_autocast_dtype(kind)) for kind in kinds if torch.is_autocast_enabled(kind))


def needs_gradient(flat: list[Any]) -> bool:
    """Whether derivatives with respect to an input may be asked for, or a transform such as ``vmap`` is at work."""
    if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in flat):
        return True
    return compat.is_transforming()
