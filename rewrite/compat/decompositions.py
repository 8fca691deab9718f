"""``ExportedProgram.run_decompositions({})`` without building the same overrides of 500 operators at each call.

While torch decomposes a program, it overrides every composite operator so that it stays as it is. Making these
overrides takes two thirds of the time of capturing a small model. Here they are remembered: the operators are
overridden by the very kernels that torch made the first time, as long as they are then as they were before.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._export import utils
from torch._subclasses import fake_impls
from torch.export import exported_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    Operators = dict[Any, Callable[..., Any]]
    Override = Callable[[Operators], contextlib.AbstractContextManager[None]]

_OVERRIDE = "_override_composite_implicit_decomp"
_LIST = "_materialize_cpp_cia_ops"
"""Lists the composite operators, for each namespace again."""

_LOCK = threading.RLock()


@dataclass(frozen=True)
class _Known:
    """What torch has made of one operator.

    Attributes:
        before: its kernels by dispatch key, without the override.
        callable: what it was overridden by.
        during: its kernels with the override.
        rule: how fake tensors compute it meanwhile, None where there was a rule before.
    """

    before: dict[Any, Any]
    callable: Callable[..., Any]
    during: dict[Any, Any]
    rule: Callable[..., Any] | None

    def is_of(self, operator: Any, callable_: Callable[..., Any]) -> bool:
        """Whether the same override of the operator as it is now would give the same."""
        ruled = operator in fake_impls.op_implementations_dict
        return self.callable is callable_ and ruled == (self.rule is None) and self.before == operator.py_kernels


_known: dict[Any, _Known] = {}


def decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """``program.run_decompositions({})``: functional, and no operator decomposed."""
    with _LOCK, _replaced(exported_program, _OVERRIDE, _remembering), _replaced(utils, _LIST, functools.cache):
        found: torch.export.ExportedProgram = program.run_decompositions({})
    return found


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, by: Callable[[Any], Any]) -> Iterator[None]:
    """A function of a module replaced by what is made of it; another torch may not have it."""
    original = getattr(module, name, None)
    if original is None:
        yield
        return
    setattr(module, name, by(original))
    try:
        yield
    finally:
        setattr(module, name, original)


def _remembering(original: Override) -> Override:
    return lambda operators: _overridden(operators, original)


@contextlib.contextmanager
def _overridden(operators: Operators, original: Override) -> Iterator[None]:
    """The operators overridden: those that are known as they were, the others by torch."""
    rules = fake_impls.op_implementations_dict
    again = {op: _known[op] for op, how in operators.items() if op in _known and _known[op].is_of(op, how)}
    new = {op: how for op, how in operators.items() if op not in again}
    before = {op: (dict(op.py_kernels), op in rules) for op in new}
    with original(new):
        for op, how in new.items():
            kernels, ruled = before[op]
            _known[op] = _Known(kernels, how, dict(op.py_kernels), None if ruled else rules.get(op))
        try:
            for op, known in again.items():
                _set(op, known.during)
                if known.rule is not None:
                    rules[op] = known.rule
            yield
        finally:
            for op, known in again.items():
                _set(op, known.before)
                fake_impls._deregister_op_impl(op)


def _set(operator: Any, kernels: dict[Any, Any]) -> None:
    operator.py_kernels.clear()
    operator.py_kernels.update(kernels)
    operator._dispatch_cache.clear()
