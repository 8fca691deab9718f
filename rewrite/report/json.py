"""Reports as plain data, and back."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import sympy

from rewrite.errors import InputError
from rewrite.formulas import parsed

if TYPE_CHECKING:
    from rewrite.report.data import Report

FORMAT = 2

_KEYS = {"model_name": "model", "records": "steps", "model_verdict": "verification"}
"""The fields of a report that go by another name in its data."""

_NEW = frozenset({"choices", "costs", "per_sample"})
"""Those that data of this format may lack."""


def report_data(report: Report) -> dict[str, Any]:
    """All of a report as dictionaries, lists, strings and finite numbers, for ``json.dumps``; formulas are strings."""
    fields = {spec.name: getattr(report, spec.name) for spec in dataclasses.fields(report)}
    return {"format": FORMAT, **{_KEYS.get(name, name): plain(value) for name, value in fields.items()}}


def plain(value: Any) -> Any:
    """A value of dataclasses, lists, mappings, strings, numbers and formulas as JSON has it, None for what it lacks."""
    if dataclasses.is_dataclass(value):
        return {spec.name: plain(getattr(value, spec.name)) for spec in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, sympy.Expr):
        return int(value) if value.is_Integer else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return {key: plain(item) for key, item in value.items()} if hasattr(value, "items") else value


def report_fields(data: Any, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a report from :func:`report_data`, for their types by name.

    Raises:
        InputError: data of another format, or malformed.
    """
    found = data.get("format") if isinstance(data, Mapping) else None
    if found != FORMAT:
        raise InputError(f"the report has format {found!r}, and this version reads {FORMAT}; pass what to_dict gave")
    try:
        named = {name: _KEYS.get(name, name) for name in kinds if name not in _NEW or name in data}
        return {name: restored(kinds[name], data[key]) for name, key in named.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the report is malformed ({error!r}); pass what to_dict gave") from error


def restored(kind: Any, value: Any) -> Any:
    """The value of a type from its plain data: dataclasses field by field, containers item by item.

    Fields that the data does not have take their defaults, and numbers that JSON does not have are NaN.

    Raises:
        TypeError: the data does not fit the type.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in parts:
            return None
        if isinstance(value, str) and sympy.Expr in parts:
            return parsed(value)
        return restored(next(part for part in parts if part is not type(None)), value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        known = [spec.name for spec in dataclasses.fields(kind) if spec.init and spec.name in value]
        return kind(**{name: restored(hints[name], value[name]) for name in known})
    if origin is tuple:
        kinds = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return tuple(restored(part, item) for part, item in zip(kinds, value, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        return {restored(parts[0], key): restored(parts[1], item) for key, item in value.items()}
    if origin is not None and issubclass(origin, Iterable):
        return [restored(parts[0], item) for item in value]
    if kind is float:
        return math.nan if value is None else float(value)
    if kind in (str, int, bool) and type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
