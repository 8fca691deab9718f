"""One method of a model as a module of its own, so that everything which takes a module takes it."""

from __future__ import annotations

from typing import Any

from torch import nn

from rewrite.errors import InputError
from rewrite.names import nearest

_MARK = "_rewrite_method"


def bound(model: nn.Module, method: str | None) -> nn.Module:
    """A module whose call is ``model.method(...)``; the model itself for None and ``"forward"``.

    It is the model under another class: it has the model's very attributes, parameters, buffers and submodules, and
    what changes in one changes in the other. Hooks of the model do not run, as they do not when the method is called.

    Raises:
        InputError: the model has no such method.
    """
    if method is None or method == "forward":
        return model
    kind = type(model)
    if not callable(getattr(kind, method, None)):
        own = (name for name in dir(kind) if not name.startswith("_") and not hasattr(nn.Module, name))
        known = [name for name in own if callable(getattr(kind, name, None))]
        raise InputError(f"method={method!r} is no method of {kind.__name__}{nearest(method, known)}")
    if hasattr(nn.Module, method):
        raise InputError(f"method={method!r} is a method of every module and computes nothing; name one of the model's")
    return _view(model, method)


def class_of(model: nn.Module) -> type[nn.Module]:
    """The class of a module, for one of :func:`bound` that of the model."""
    return type(model).__bases__[0] if method_of(model) is not None else type(model)


def method_of(model: nn.Module) -> str | None:
    """The method that a module of :func:`bound` calls; None for any other module."""
    return type(model).__dict__.get(_MARK)


def _view(model: nn.Module, method: str) -> nn.Module:
    kind = type(model)
    function = getattr(kind, method)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    members = {"forward": function, "__call__": call, "__module__": kind.__module__, _MARK: method}
    view: nn.Module = object.__new__(type(f"{kind.__name__}.{method}", (kind,), members))
    object.__setattr__(view, "__dict__", model.__dict__)
    return view
