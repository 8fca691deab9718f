"""What objects hold: the items of containers and their subclasses, attributes, slots."""

from __future__ import annotations

import collections
import decimal
import enum
import re
import types
import typing
from typing import TYPE_CHECKING, Any

import torch

from rewrite.trace.compare import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FIELD = type(vars(collections.namedtuple("_Field", "value"))["value"])
_BY_TEXT = {*PLAIN, _FIELD, types.EllipsisType, types.NotImplementedType, range, slice, decimal.Decimal, torch.layout,
            torch.Size, types.GenericAlias, types.UnionType, typing.TypeVar, typing.ParamSpec}  # fmt: skip
_ATOMS = (int, float, complex, str, bytes)
_ITEMS = (list, tuple, collections.deque)
_PAIRS = (dict, collections.OrderedDict)
_SETS = (set, frozenset)
_EMPTY = (object, enum.Enum, typing.Generic, typing.Protocol, types.SimpleNamespace)


def text_of(value: Any) -> str | None:
    """A value that its text tells completely, None for any other."""
    kind = type(value)
    if kind in _BY_TEXT or kind.__module__ == "typing":
        return f"{kind.__name__} {value!r}"
    if kind is re.Pattern:
        return f"pattern {value.pattern!r} {value.flags}"
    if kind in _SETS and all(isinstance(item, (*_ATOMS, *_SETS, tuple, type(None))) for item in value):
        texts = [text_of(item) for item in value]
        if None not in texts:
            return f"{kind.__name__} {sorted(map(str, texts))}"
    if kind is tuple:  # which of these are one object is up to the interpreter
        texts = [text_of(item) for item in value]
        if None not in texts:
            return f"tuple {texts}"
    return None


def parts_of(value: Any) -> Iterator[tuple[str, Any]] | None:
    """All that an object of a class written in Python holds, by what it is; None for an object that may hold more.

    Methods of the class are not asked: what the object is made of decides, not what it says.
    """
    mro = type(value).__mro__
    if not all(base in (*_ATOMS, *_ITEMS, *_PAIRS, *_SETS, *_EMPTY, collections.defaultdict) or _is_python(base)
               for base in mro):  # fmt: skip
        return None
    if isinstance(value, _SETS) and text_of(frozenset(value)) is None:  # in no order
        return None
    return _parts(value, mro)


def _parts(value: Any, mro: Iterable[type]) -> Iterator[tuple[str, Any]]:
    for base in mro:
        if base in _ATOMS:
            yield base.__name__, base.__repr__(value)
        elif base is collections.defaultdict:
            yield "factory", value.default_factory
        elif base in _PAIRS:
            for key, item in base.items(value):
                yield "key", key
                yield f"[{key!r}]", item
            break
        elif base in _ITEMS:
            for i, item in enumerate(base.__iter__(value)):
                yield f"[{i}]", item
        elif base in _SETS:
            yield "items", frozenset(value)
        for key, slot in vars(base).items():
            if isinstance(slot, types.MemberDescriptorType) and _is_python(base):
                try:
                    yield f".{key}", slot.__get__(value, type(value))
                except AttributeError:
                    yield f"no {key}", None
    if hasattr(type(value), "__dict__"):
        for key, item in _dict_of(value).items():
            yield f".{key}", item


def _dict_of(value: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found


def _is_python(kind: type) -> bool:
    """Whether a class was made by a ``class`` statement, so that its objects hold no more than Python can read."""
    return bool(kind.__flags__ & 1 << 9) and not any(
        isinstance(item, (types.WrapperDescriptorType, types.MethodDescriptorType, types.GetSetDescriptorType))
        and item.__objclass__ is kind
        for key, item in vars(kind).items()
        if key not in ("__dict__", "__weakref__")
    )
