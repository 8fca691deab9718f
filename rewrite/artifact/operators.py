"""Operators by name: ``"aten.conv2d.default"``, ``"operator.getitem"``, ``"torch.sym_max"``.

Loading looks names up among torch's operators and in one table, so a file cannot name any other function. Of the
operators it takes those that compute: they are in the dispatcher, give something, and make it of tensors or numbers.
"""

from __future__ import annotations

import builtins
import math
import operator
from typing import TYPE_CHECKING, Any

import torch

from rewrite import compat
from rewrite.artifact.names import DAMAGED
from rewrite.errors import ArtifactError
from rewrite.names import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_ON_SIZES: Mapping[Any, str] = {
    operator: "getitem add sub mul floordiv truediv mod neg pos abs pow eq ne lt le gt ge and_ or_ not_",
    builtins: "max min abs round",
    math: "ceil floor trunc sqrt pow",
    torch: "sym_max sym_min sym_float sym_int sym_ite sym_not sym_sum sym_sqrt",
}
"""What graphs call besides operators: items of tuples, and arithmetic on sizes."""

_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module, names in _ON_SIZES.items()
    for name in names.split()
    if hasattr(module, name)
}
_POWERS = (operator.pow, math.pow, round)
_EXPONENT = 64
_NUMBERS = (bool, int, float, torch.SymFloat, torch.SymBool)
_NAMES = {function: name for name, function in reversed(list(_FUNCTIONS.items()))}


def name_of(target: Any) -> str:
    """The name of an operator or function of a graph.

    Raises:
        ArtifactError: it can only be called from the process that made it.
    """
    if isinstance(target, torch._ops.OpOverload):
        if not _computes(target):
            raise ArtifactError(
                f"the program calls '{target}', which does more than to compute; leave it out, save again"
            )
        return str(target)
    name: str | None = _NAMES.get(target)
    if name is None:
        raise ArtifactError(
            f"the program calls {target!r}, which is no operator and cannot be saved; register it with "
            "torch.library.custom_op"
        )
    return name


def find(name: str) -> Any:
    """The operator or function of a name.

    Raises:
        ArtifactError: there is none in this process.
    """
    known = _FUNCTIONS.get(name)
    if known is not None:
        return known
    parts = name.split(".")
    if len(parts) != 3:
        raise ArtifactError(f"'{name}' is no operator{nearest(name, _FUNCTIONS)}; {DAMAGED}")
    found = compat.dispatched(*parts)
    if found is None:
        library, what = parts[0], ".".join(parts[:2])
        raise ArtifactError(
            f"the program calls the operator '{name}', which "
            + (f"this torch {torch.__version__} does not have; load it with the torch that it was saved with"
               if library in ("aten", "prims") else
               f"no library has registered here; import the package that registers '{what}' first")
        )  # fmt: skip
    if not _computes(found):
        raise ArtifactError(f"the program calls the operator '{name}', which does more than to compute; {DAMAGED}")
    return found


def _computes(operator: torch._ops.OpOverload) -> bool:
    """Whether an operator makes values of tensors, or tensors of numbers: none opens files, prints, or sets a seed."""
    schema = operator._schema
    takes, gives = ([str(each.type) for each in part] for part in (schema.arguments, schema.returns))
    if any("Tensor" in each for each in takes):
        return bool(gives)
    return any("Tensor" in each for each in gives) and not any("str" in each for each in takes)


def check_operands(target: Any, given: tuple[Sequence[Any], Mapping[str, Any]]) -> None:
    """Check what a function on sizes is given: numbers of 64 bits, and small exponents, which cannot grow out of hand.

    Raises:
        ArtifactError: something else.
    """
    operands = [*given[0], *given[1].values()]
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):  # a sum of many
        operands = list(operands[0])
    numbers = [_number(each) if isinstance(each, torch.SymInt) else each for each in operands]
    small = all(isinstance(each, _NUMBERS) and (not isinstance(each, int) or abs(each) < 1 << 63) for each in numbers)
    huge = target in _POWERS and any(isinstance(each, int) and abs(each) > _EXPONENT for each in numbers[1:])
    if huge or not small:
        raise ArtifactError(f"'{_NAMES[target]}' is given {operands}, which no sizes are; {DAMAGED}")


def _number(size: torch.SymInt) -> int:
    """What a size is in the example; the largest number for one that depends on values."""
    return (1 << 63) - 1 if compat.is_unbacked(size) else compat.hint(size)
