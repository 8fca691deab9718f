"""Values as digests: equal in every process for values that a program cannot tell apart."""

from __future__ import annotations

import functools
import hashlib
import logging
import types
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite.artifact.tensors import pack
from rewrite.cache.payload import parts_of, text_of
from rewrite.cache.versioned import is_operator_of_torch, is_versioned, outside
from rewrite.trace import class_of

if TYPE_CHECKING:
    from collections.abc import Iterable

_TENSORS = (Tensor, nn.Parameter, nn.Buffer)
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
_BUILTIN = (types.BuiltinFunctionType, types.MethodWrapperType)
_DESCRIPTORS = (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType,
                types.GetSetDescriptorType, types.MemberDescriptorType)  # fmt: skip
_SKIPPED = frozenset(nn.Module().__dict__) - {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MOST = 200_000
"""How many values a key may have; more would take longer than what the cache saves."""


class DoubtError(Exception):
    """Something of which equal fingerprints would not mean that it does the same; the message names it."""


class Fingerprint:
    """Collects values into one digest.

    Objects that occur again are recorded as such, so tied weights and views of one memory count as what they are.
    Parameters and buffers of the model are taken without their values, for programs read them when they run. All other
    tensors count with theirs.

    Attributes:
        classes: the classes of the objects that were met; True for those that were met themselves, of which code can
            make more objects.
        functions: the functions that were met, by where.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._seen: dict[int, int] = {}
        self._storages: dict[int, int] = {}
        self._kept: list[Any] = []
        self._live: set[int] = set()
        self._count = 0
        self.classes: dict[type, bool] = {}
        self.functions: dict[types.FunctionType, str] = {}

    def hexdigest(self) -> str:
        """The digest of all that was added."""
        return self._digest.hexdigest()

    def text(self, *parts: object) -> None:
        """Add pieces of text, with their boundaries."""
        for part in parts:
            data = str(part).encode(errors="surrogatepass")
            self._digest.update(b"%d:" % len(data) + data)

    def live(self, tensors: Iterable[Tensor]) -> None:
        """Take the values of these tensors for no part of the fingerprint: programs are given them when they run."""
        for tensor in tensors:
            self._live.add(id(tensor))
            self._kept.append(tensor)

    def value(self, value: Any, name: str) -> None:
        """Add a value.

        Raises:
            DoubtError: its behaviour cannot be seen; ``name`` says where it is.
        """
        self._count += 1
        if self._count > _MOST:
            raise DoubtError(f"{name} is one of more than {_MOST} values")
        text = text_of(value)
        if text is not None:
            self.text(text)
        elif isinstance(value, _OPERATORS):
            self._operator(value, name)
        elif isinstance(value, type):
            self.value_of_class(value, name, itself=True)
        elif isinstance(value, types.FunctionType):
            self.text("function", value.__module__, value.__qualname__, self._number(value))
            self.functions.setdefault(value, name)
        elif isinstance(value, _DESCRIPTORS):
            self.text("descriptor", value.__qualname__)
            self._of_class(value.__objclass__, name)
        elif self._again(value):
            return
        elif isinstance(value, _BUILTIN):
            self._builtin(value, name)
        elif isinstance(value, types.MethodType):
            self._parts("method", {"__self__": value.__self__, "__func__": value.__func__}, name)
        elif type(value) is functools.partial:
            parts = {"func": value.func, "args": value.args, "keywords": value.keywords, "dict": vars(value)}
            self._parts("partial", parts, name)
        elif isinstance(value, types.MappingProxyType):
            self._parts("proxy", {"items": dict(value)}, name)
        elif type(value) is functools._lru_cache_wrapper:
            self._cached(value, name)
        elif type(value) in (logging.Logger, logging.RootLogger):  # what is logged computes nothing
            self.text("logger", value.name, value.getEffectiveLevel())
        elif isinstance(value, Tensor):
            self._tensor(value, name)
        elif isinstance(value, nn.Module):
            self._module(value, name)
        else:
            self._object(value, name)

    def _again(self, value: Any) -> bool:
        if isinstance(value, (tuple, frozenset)):
            return False  # which of these are one object is up to the interpreter
        known = id(value) in self._seen
        number = self._number(value)
        if known:
            self.text("again", number)
        return known

    def _number(self, value: Any) -> int:
        """The number of an object in the order in which they were met."""
        if id(value) not in self._seen:
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)  # an id holds as long as its object
        return self._seen[id(value)]

    def _parts(self, kind: str, parts: dict[str, Any], name: str) -> None:
        self.text(kind)
        for key, part in parts.items():
            self.value(part, f"{name}.{key}")

    def value_of_class(self, value: type, name: str, *, itself: bool = False) -> None:
        """Add a class; ``itself`` says whether code has it, and not its objects alone.

        Raises:
            DoubtError: as :meth:`value`.
        """
        self.text("class", value.__module__, value.__qualname__, self._number(value))
        self._of_class(value, name, itself=itself)

    def _of_class(self, value: type, name: str, *, itself: bool = False) -> None:
        """Note a class.

        Raises:
            DoubtError: it is of the standard library, and its objects may read more than they are given.
        """
        for base in value.__mro__:
            reason = outside(base) if is_versioned(base.__module__) else ""
            if reason:
                raise DoubtError(f"{name} is of {reason}")
        self.classes[value] = itself or self.classes.get(value, False)

    def _cached(self, value: Any, name: str) -> None:
        """Add a function that keeps its results, as long as it has none."""
        if value.cache_info().currsize:
            raise DoubtError(f"{name} has results in its cache, which cannot be seen")
        self.text("cached", value.cache_parameters())
        self.value(value.__wrapped__, name)

    def _operator(self, value: Any, name: str) -> None:
        if not is_operator_of_torch(value):
            raise DoubtError(f"{name} is the operator '{value}', whose kernels cannot be seen")
        self.text("operator", value)

    def _builtin(self, value: Any, name: str) -> None:
        """Add a function that is not written in Python, or a method of an object of its own class."""
        owner = value.__self__
        self.text("builtin", value.__qualname__)
        if value.__module__ is None and owner is not None:
            self.value(owner, f"{name}.__self__")
            return
        reason = outside(value)
        if reason:
            raise DoubtError(f"{name} is {reason}")
        self.text(value.__module__)

    def _object(self, value: Any, name: str) -> None:
        kind = type(value)
        self.text("object", kind.__module__, kind.__qualname__, self._number(kind))
        if kind.__module__ == "numpy" and hasattr(value, "dtype") and not value.dtype.hasobject:
            self.text(value.dtype.descr if value.dtype.fields else value.dtype.str, value.shape, value.tobytes().hex())
            return
        parts = parts_of(value)
        if parts is None:
            raise DoubtError(f"{name} is a {kind.__module__}.{kind.__qualname__}, which may hold what cannot be seen")
        self._of_class(kind, name)
        for key, part in parts:
            self.text(key)
            self.value(part, f"{name}{key}")
        self.text("end")

    def _tensor(self, value: Tensor, name: str) -> None:
        if type(value) not in _TENSORS or value.layout is not torch.strided or value.is_quantized:
            raise DoubtError(f"{name} is no plain tensor")
        memory = value.untyped_storage().data_ptr() if not value.is_meta else 0
        self.text(
            type(value).__name__, value.dtype, tuple(value.shape), value.stride(), value.device, value.requires_grad,
            value.is_inference(), value.storage_offset(), self._storages.setdefault(memory, len(self._storages)),
        )  # fmt: skip
        if id(value) not in self._live and not value.is_meta:
            self.text(hashlib.sha256(pack({"": value.detach()})[0]).hexdigest())
        if vars(value):
            self.value(vars(value), f"{name}.__dict__")

    def _module(self, module: nn.Module, name: str) -> None:
        held = module.__dict__
        for hooks in _HOOKS:
            if held.get(hooks):
                raise DoubtError(f"{name} has hooks")
        if "forward" in held:
            raise DoubtError(f"{name} has a forward of its own")
        parts = parts_of(module)
        if parts is None:
            raise DoubtError(f"{name} is a module that may hold what cannot be seen")
        kind = class_of(module)
        self.text("module", kind.__module__, kind.__qualname__, self._number(kind))
        self._of_class(kind, name)
        for held_as in ("_parameters", "_buffers"):
            self.text(held_as, len(held[held_as]))
            for key, tensor in held[held_as].items():
                self.text(key)
                self.value(tensor, f"{name}.{key}")
        others = {key: item for key, item in parts if key.removeprefix(".") not in _SKIPPED}
        self.text("attributes", len(others))
        for key, item in others.items():
            self.text(key)
            self.value(item, f"{name}{key}")
        self.text("modules", len(module._modules))
        for key, child in module._modules.items():
            self.text(key)
            self.value(child, f"{name}.{key}")
