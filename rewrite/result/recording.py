"""Programs for whoever records their operators: exporters, ``torch.jit.trace``, modes that count or log.

Compiled code shows nothing of what it does, so programs run operator by operator here. Weights that the model has too
are taken from the tree of the result, where an exporter looks for them; folded ones are constants.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.errors import InputError
from rewrite.result import call
from rewrite.result.plans import result_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewrite.result.plans import Snapshot
    from rewrite.result.specialize import Specialization

_NAMED = "_named_constants"
_PROGRAM = "_exported_program"

COMPILED = (
    "a rewritten module runs code that is compiled already; leave out fullgraph=True, or compile result.graph_module"
)
"""Why Dynamo does not read what runs."""

UNSCRIPTABLE = "a rewritten module has no code that torch.jit.script can read; use torch.jit.trace"
"""Why TorchScript does not read what runs."""

RECORDED = (_NAMED, _PROGRAM)
"""Attributes of results that exporters leave behind."""


def is_traced() -> bool:
    """Whether what runs becomes a program of its own, by ``torch.export`` or ``torch.jit.trace``."""
    return torch.compiler.is_exporting() or compat.is_jit_tracing()


def record(special: Specialization, weights: Sequence[Any], flat: Sequence[Any]) -> Any:
    """Run a call with these weights, writes included; the user's result."""
    return result_of(special, compat.interpret(special.writing, (*flat, *weights)))


def refusal(flat: Sequence[Any]) -> InputError:
    """The error for a call that no program takes, where none can be made."""
    return InputError(
        f"no program takes ({call.text(flat)}), and none can be made while it is traced; call the result once with "
        "such inputs first"
    )


# -- names for constants ----------------------------------------------------------------------------------------------


def name_constants(root: nn.Module, snapshot: Snapshot) -> None:
    """Let exporters find the tensors that programs alone have, by name: as plain attributes of the result."""
    own = root.__dict__
    for name in constant_names(root):
        del own[name]
    found: dict[str, Tensor] = {}
    for special, weights in snapshot.weights.items():
        for name, tensor in zip(special.names, weights.plain, strict=True):
            if name in special.folded or name in special.constants:
                found[_unused(name, found, own)] = tensor
    own.update(found)
    own[_NAMED] = tuple(found)


def _unused(name: str, *taken: Mapping[str, Any]) -> str:
    """The name, numbered where it is taken: programs for other sizes have constants of the same names."""
    numbered = (f"{name}_{number}" if number > 1 else name for number in itertools.count(1))
    return next(candidate for candidate in numbered if not any(candidate in each for each in taken))


def constant_names(root: nn.Module) -> tuple[str, ...]:
    """The attributes that :func:`name_constants` has made."""
    return root.__dict__.get(_NAMED, ())  # type: ignore[no-any-return]


# -- Dynamo's exports -------------------------------------------------------------------------------------------------


@runtime_checkable
class Exportable(Protocol):
    """A result with programs that Dynamo can trace."""

    def exported(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, nn.Module]:
        """The program for a call, as a module over the tensors of the result's tree."""
        ...


def is_traced_by_dynamo() -> bool:
    """Whether Dynamo reads the code that runs for ``torch.export(..., strict=True)``; it knows the answer itself."""
    return torch.compiler.is_exporting() and torch.compiler.is_dynamo_compiling()


def trace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What Dynamo traces in the place of a call: the sizes that the program is for, and the program.

    Raises:
        InputError: arguments in containers, or sizes that the program is not for.
    """
    values = (*args, *kwargs.values())
    for value in values:
        if isinstance(value, (dict, list, tuple)):
            raise InputError("strict export takes no arguments in containers here; pass strict=False")
    sizes: tuple[tuple[tuple[int, int], ...], ...] = _prepare(module, len(args), tuple(kwargs), *values)
    tensors = [value for value in values if isinstance(value, Tensor)]
    for tensor, fixed in zip(tensors, sizes, strict=True):
        for dim, size in fixed:
            if tensor.shape[dim] != size:
                raise InputError("the program is for fixed sizes, except the batch; make no other size dynamic")
    return getattr(module, _PROGRAM)(*args, **kwargs)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _prepare(
    module: nn.Module, count: int, keywords: tuple[str, ...], *values: Any
) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Put the program for a call where Dynamo finds it; of each tensor, the dimensions that are fixed, and their sizes.

    Dynamo runs this on the values of the example while it traces.
    """
    assert isinstance(module, Exportable)
    special, program = module.exported(values[:count], dict(zip(keywords, values[count:], strict=True)))
    module.__dict__[_PROGRAM] = program
    recorded = [node.meta["val"] for node in special.graph.inputs]
    return tuple(_fixed(value) for value in recorded if isinstance(value, Tensor))


def _fixed(value: Tensor) -> tuple[tuple[int, int], ...]:
    sizes: tuple[Any, ...] = tuple(value.shape)
    return tuple((dim, size) for dim, size in enumerate(sizes) if isinstance(size, int))
