"""The arguments of operators as JSON.

``None``, booleans, whole numbers, finite floats, strings and lists stand for themselves; everything else is an object
with one key, its kind: ``{"node": "conv2d"}``, ``{"float": "inf"}``, ``{"dtype": "float32"}``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import Node

from rewrite.artifact.names import DAMAGED
from rewrite.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMED = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


def encode(value: Any) -> Any:
    """An argument as JSON; nodes by name.

    Raises:
        ArtifactError: nothing that an operator of ATen takes.
    """
    if value is None or isinstance(value, str) or type(value) in (bool, int):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, complex):
        return {"complex": [encode(value.real), encode(value.imag)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, cls in _NAMED.items():
        if isinstance(value, cls):
            return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode(item) for key, item in value.items()}}
    raise ArtifactError(
        f"an argument is {value!r}, a {type(value).__name__}, which cannot be saved; pass numbers, text, dtypes, and "
        "lists and tuples of such"
    )


def decode(data: Any, node: Callable[[str], Node], device: Callable[[str], torch.device] = torch.device) -> Any:
    """The argument again.

    Args:
        data: what :func:`encode` gave.
        node: a node by its name.
        device: a device by its name.

    Raises:
        ArtifactError: something else.
    """
    if isinstance(data, list):
        return [decode(item, node, device) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise ArtifactError(f"{data!r} is not an argument of an operator; {DAMAGED}")
    kind, value = next(iter(data.items()))
    if kind == "node":
        return node(value)
    if kind == "tuple":
        return tuple(decode(item, node, device) for item in value)
    if kind == "dict":
        return {str(key): decode(item, node, device) for key, item in value.items()}
    if kind == "device":
        return device(value)
    if kind == "float" and value in ("inf", "-inf", "nan"):
        return float(value)
    if kind == "complex" and len(value) == 2:
        return complex(*(decode(part, node, device) for part in value))
    if kind in _NAMED:
        return torch_name(value, _NAMED[kind])
    raise ArtifactError(f"{data!r} is not an argument of an operator; {DAMAGED}")


def torch_name(name: Any, kind: type[Any]) -> Any:
    """The dtype, layout or memory format that torch has under a name.

    Raises:
        ArtifactError: it has none.
    """
    # getattr would import the modules that torch imports late
    found = vars(torch).get(name) if isinstance(name, str) else None
    if not isinstance(found, kind):
        raise ArtifactError(
            f"this torch has no {kind.__name__} '{name}'; load the file with the torch that it was saved with"
        )
    return found
