"""Writes that autograd does not see: to values with gradients, through an alias without, or in a region without.

Eager keeps the gradient that such a value had before the write, for instance that of a weight which is clipped under
``no_grad``. In a functional graph the written value is another one, and has no gradient.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rewrite import compat

if TYPE_CHECKING:
    from collections.abc import Iterator


class HiddenWriteError(Exception):
    """An operator writes behind the back of autograd.

    Attributes:
        operator: its name.
    """

    def __init__(self, operator: str):
        super().__init__(operator)
        self.operator = operator


@contextlib.contextmanager
def without_hidden_writes() -> Iterator[None]:
    """Gradients are on within, and an operator that writes so that autograd cannot know raises HiddenWriteError.

    The memory of values with gradients is kept until the end.
    """
    memory: dict[int, torch.UntypedStorage] = {}
    with torch.enable_grad(), _Values(memory), _Writes(memory):
        yield


class _Values(TorchFunctionMode):
    """Remembers the memory of values with gradients, which only a level above autograd can tell."""

    def __init__(self, memory: dict[int, torch.UntypedStorage]):
        super().__init__()
        self._memory = memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # the arguments too, and first: a parameter is nobody's result, and may be what is written
        self._remember((args, kwargs))
        result = func(*args, **kwargs)
        self._remember(result)
        return result

    def _remember(self, values: Any) -> None:
        for leaf in compat.tree_flatten(values)[0]:
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                storage = leaf.untyped_storage()
                self._memory[storage._cdata] = storage


class _Writes(compat.TorchDispatchMode):
    """Looks for writes to that memory which autograd does not record."""

    def __init__(self, memory: dict[int, torch.UntypedStorage]):
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory = memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for i, argument in enumerate(func._schema.arguments):
                written = args[i] if i < len(args) else kwargs.get(argument.name)
                if argument.alias_info is not None and argument.alias_info.is_write and self._is_hidden(written):
                    raise HiddenWriteError(str(func))
        return func(*args, **kwargs)

    def _is_hidden(self, written: Any) -> bool:
        return any(
            not (leaf.requires_grad and torch.is_grad_enabled()) and leaf.untyped_storage()._cdata in self._memory
            for leaf in compat.tree_flatten(written)[0]
            if isinstance(leaf, Tensor)
        )
