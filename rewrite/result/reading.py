"""Names in a model: what they stand for, and what may be read of a model through its result."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rewrite.errors import RewriteError
from rewrite.result.mirror import find, submodule

if TYPE_CHECKING:
    from rewrite.graph import Graph


def kinds(source: nn.Module, graph: Graph) -> tuple[frozenset[str], frozenset[str]]:
    """Of the weights of a graph: the model's parameters and buffers, and the plain tensor attributes of its modules."""
    names = frozenset((*graph.weights, *graph.program.sources))
    registered = frozenset(name for name in names if find(source, name) is not None)
    return registered, frozenset(name for name in names - registered if holder(source, name) is not None)


def constants_of(source: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """The weights of a graph that no module of the model holds: tensors that forward makes of numbers."""
    return {name: tensor for name, tensor in graph.weights.items() if holder(source, name) is None}


def holder(root: nn.Module, name: str) -> dict[str, Any] | None:
    """The dict in which a module of the tree holds a parameter, a buffer or a tensor attribute, by qualified name."""
    path, _, key = name.rpartition(".")
    module = submodule(root, path)
    if module is None:
        return None
    held = (module._parameters, module._buffers, module.__dict__)
    return next((each for each in held if isinstance(each.get(key), Tensor)), None)


def place(root: nn.Module, name: str) -> tuple[dict[str, Any], str] | None:
    """Where a tensor is held, by its qualified name: the dict and the key."""
    held = holder(root, name)
    return None if held is None else (held, name.rpartition(".")[2])


def attribute(root: nn.Module, name: str) -> Tensor:
    """The tensor that a module of the tree has as a plain attribute, by its qualified name.

    Raises:
        RewriteError: there is none.
    """
    held = holder(root, name)
    if held is None:
        raise RewriteError(f"the model has no tensor '{name}' any more, which its program reads; rewrite it again")
    return held[name.rpartition(".")[2]]  # type: ignore[no-any-return]


def read_through(source: nn.Module, name: str) -> Any:
    """An attribute of the model that runs none of its code.

    Raises:
        AttributeError: there is none, or it is a method or a module.
    """
    try:
        value = getattr(source, name)
    except AttributeError:
        raise AttributeError(f"neither the rewritten module nor its {type(source).__name__} has '{name}'") from None
    owner = getattr(value, "__self__", None)
    if isinstance(value, nn.Module) or (isinstance(owner, nn.Module) and isinstance(value, types.MethodType)):
        raise AttributeError(f"'{name}' of {type(source).__name__} {_remedy(name)}")
    return value.detach() if isinstance(value, Tensor) else value


def _remedy(name: str) -> str:
    """What is wrong with a method or module of the model as an attribute of its result, and what to do."""
    if name.startswith("forward"):
        return (
            f"would run the model as it was; pass method='{name}' to optimize or transform for a rewritten one, or "
            "call it on the model itself"
        )
    return "belongs to the model as it was; use it on the model itself, and optimize that again if it has changed"
