"""The signature of a result: that of its model, for exporters and for whoever inspects it."""

from __future__ import annotations

import inspect
import types
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

    from rewrite import graph

Kind = TypeVar("Kind", bound="type[nn.Module]")


def signed(kind: Kind, model: nn.Module) -> Kind:
    """A class like ``kind`` whose ``forward`` has the signature of the model's; ``kind`` itself if that has none."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        return kind
    members = {"forward": with_signature(kind.forward, signature), "__module__": kind.__module__}
    return type(kind.__name__, (kind,), members)  # type: ignore[return-value]


def with_signature(method: Any, signature: inspect.Signature) -> Any:
    """A copy of a plain method that says that it has another signature, which lacks ``self``."""
    copied: Any = types.FunctionType(method.__code__, method.__globals__, method.__name__, None, method.__closure__)
    copied.__doc__ = method.__doc__
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    copied.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])
    return copied


def signature_of(recorded: graph.Signature) -> inspect.Signature:
    """The signature of a captured call: arguments by position have names too, arguments by name have names only."""
    args, kwargs = recorded.in_spec.children()
    positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    kinds = [positional for _ in args.children()] + [keyword for _ in kwargs.children()]
    names = recorded.argument_names
    return inspect.Signature([inspect.Parameter(name, kind) for name, kind in zip(names, kinds, strict=True)])
