"""Values as digests: equal in every process for values that a program cannot tell apart."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import hashlib
import sys
import types
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite.trace import class_of
from rewrite.trace.compare import PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterable

_TENSORS = (Tensor, nn.Parameter, nn.Buffer)
_CONTAINERS = (list, tuple, torch.Size, collections.deque)
_MAPPINGS = (dict, collections.OrderedDict, collections.defaultdict)
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_SKIPPED = frozenset(nn.Module().__dict__) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class DoubtError(Exception):
    """Something of which equal fingerprints would not mean that it does the same; the message names it."""


class Fingerprint:
    """Collects values into one digest.

    Objects that occur again are recorded as such, so tied weights and views of one memory count as what they are.

    Attributes:
        classes: the classes of the modules and other objects that were met.
        functions: the functions that were met.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._storages: dict[int, int] = {}
        self._kept: list[Any] = []
        self.classes: dict[type, None] = {}
        self.functions: dict[types.FunctionType, None] = {}

    def hexdigest(self) -> str:
        """The digest of all that was added."""
        return self._digest.hexdigest()

    def text(self, *parts: object) -> None:
        """Add pieces of text, with their boundaries."""
        for part in parts:
            data = str(part).encode(errors="surrogatepass")
            self._digest.update(b"%d:" % len(data) + data)

    def value(self, value: Any, name: str) -> None:
        """Add a value.

        Raises:
            DoubtError: its behaviour cannot be seen; ``name`` says where it is.
        """
        if isinstance(value, PLAIN):
            self.text(type(value).__name__, repr(value))
        elif isinstance(value, _OPERATORS):
            self.text("operator", value)
        elif isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            self._named(value, name)
        elif self._again(value):
            return
        elif isinstance(value, Tensor):
            self._tensor(value, name)
        elif isinstance(value, nn.Module):
            self._module(value, name)
        elif isinstance(value, enum.Enum):
            self._named(type(value), name)
            self.text(value.name)
        elif type(value) in _MAPPINGS:
            self.text(type(value).__name__, len(value))
            for key, item in value.items():
                self.value(key, f"a key of {name}")
                self.value(item, f"{name}[{key!r}]")
        elif type(value) in (set, frozenset):
            self._unordered(value, name)
        elif type(value) in _CONTAINERS or hasattr(value, "_fields"):
            self._sequence(value, name)
        elif isinstance(value, functools.partial):
            self.text("partial")
            for part in (value.func, value.args, value.keywords):
                self.value(part, name)
        elif dataclasses.is_dataclass(value):
            self._named(type(value), name)
            held = {spec.name: getattr(value, spec.name) for spec in dataclasses.fields(value)}
            for key, item in {**held, **getattr(value, "__dict__", {})}.items():
                self.value(item, f"{name}.{key}")
        else:
            raise DoubtError(f"{name} is a {type(value).__module__}.{type(value).__qualname__}")

    def _again(self, value: Any) -> bool:
        if isinstance(value, (tuple, frozenset)):
            return False  # which of these are one object is up to the interpreter
        known = self._seen.get(id(value))
        if known is not None:
            self.text("again", known)
            return True
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)  # an id holds as long as its object
        return False

    def _named(self, value: Any, name: str) -> None:
        """Add a class or function that its module knows by its name."""
        found: Any = sys.modules.get(value.__module__ or "")
        for part in value.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not value:
            raise DoubtError(f"{name} is {value.__qualname__}, which no import gives")
        self.text(value.__module__, value.__qualname__)
        if isinstance(value, type):
            self.classes[value] = None
        elif isinstance(value, types.FunctionType):
            self.functions[value] = None

    def _sequence(self, value: Iterable[Any], name: str) -> None:
        items = list(value)
        if type(value) not in _CONTAINERS:  # a named tuple
            self._named(type(value), name)
        self.text(type(value).__name__, len(items))
        for i, item in enumerate(items):
            self.value(item, f"{name}[{i}]")

    def _unordered(self, value: Iterable[Any], name: str) -> None:
        items = list(value)
        if not all(isinstance(item, PLAIN) for item in items):
            raise DoubtError(f"{name} is a set of more than plain values")
        self.text("set", *sorted(f"{type(item).__name__} {item!r}" for item in items))

    def _tensor(self, value: Tensor, name: str) -> None:
        """Add all of a tensor but its values, which programs read when they run."""
        if type(value) not in _TENSORS or value.layout is not torch.strided or value.is_quantized:
            raise DoubtError(f"{name} is no plain tensor")
        memory = value.untyped_storage().data_ptr() if not value.is_meta else 0
        self.text(
            type(value).__name__, value.dtype, tuple(value.shape), value.stride(), value.device, value.requires_grad,
            value.is_inference(), value.storage_offset(), self._storages.setdefault(memory, len(self._storages)),
        )  # fmt: skip

    def _module(self, module: nn.Module, name: str) -> None:
        held = module.__dict__
        for hooks in _HOOKS:
            if held.get(hooks):
                raise DoubtError(f"{name} has hooks")
        if "forward" in held:
            raise DoubtError(f"{name} has a forward of its own")
        self._named(class_of(module), name)
        for kind in ("_parameters", "_buffers"):
            self.text(kind, len(held[kind]))
            for key, tensor in held[kind].items():
                self.text(key)
                self.value(tensor, f"{name}.{key}")
        others = {key: item for key, item in held.items() if key not in _SKIPPED}
        self.text("attributes", len(others))
        for key, item in others.items():
            self.text(key)
            self.value(item, f"{name}.{key}")
        self.text("modules", len(module._modules))
        for key, child in module._modules.items():
            self.text(key)
            self.value(child, f"{name}.{key}")
