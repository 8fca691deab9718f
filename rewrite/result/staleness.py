"""Noticing that weights have changed, outside compiled code and cheaply enough to do it at each call.

What is compared: which objects the modules hold (parameters replaced, ``assign=True``), where each tensor lies
(``p.data = ...``, ``model.to(...)``), how often it was written in place, whether an optimizer that owns it made a step
(fused ones do not count as writes), and a few of its bytes (writes through ``.data``).
"""

from __future__ import annotations

import sys
import threading
import weakref
from itertools import chain
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rewrite import compat
from rewrite.result.glance import Glance, ready
from rewrite.result.probe import Probe, has_memory

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

WORTH = 3
"""The look from which on it is worth to have it done by compiled code."""
_END = object()
_version = attrgetter("_version")
_data_ptr = Tensor.data_ptr


class Holdings:
    """Which objects the modules of a tree hold as submodules, parameters and buffers, and where the tensors lie."""

    def __init__(self, root: nn.Module):
        # not root.modules(), which a class may override
        modules = [module for _, module in nn.Module.named_modules(root)]
        dicts = [held for module in modules for held in (module._modules, module._parameters, module._buffers)]
        self.dicts = [held for held in dicts if held]
        views: list[Any] = [held.values() for held in self.dicts]
        # the mark at the end tells a list that became shorter or longer
        self._views = [*views, (_END,)]
        self._held = [*chain.from_iterable(views), _END]
        self.tensors = list({id(held): held for held in self._held if isinstance(held, Tensor)}.values())
        self.placed = [tensor for tensor in self.tensors if has_memory(tensor)]
        self._places = list(map(_data_ptr, self.placed))

    def changed(self) -> bool:
        """Whether an object was replaced, or a tensor given other memory."""
        return (
            not all(map(is_, chain.from_iterable(self._views), self._held))
            or list(map(_data_ptr, self.placed)) != self._places
        )


class Marks:
    """What writing to tensors leaves behind: version counters, optimizer steps, and a few of the bytes themselves.

    The tensors are not kept alive, at most their memory is: who asks brings them.

    Attributes:
        stale: whether a change is known without looking; may be set.
        ids: the ids of the tensors.

    Args:
        tensors: none of them made in inference mode, which counts no versions.
        probed: the tensors whose bytes are watched.
        keep: keep their memory alive, see :class:`Probe`.
    """

    def __init__(self, tensors: Sequence[Tensor], probed: Iterable[Tensor], keep: bool = True):
        self._versions = list(map(_version, tensors))
        self._probe = Probe(probed, keep)
        self.stale = False
        self.ids = frozenset(map(id, tensors))
        _steps.watch(self)

    def written(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a version counter of the same tensors moved, or an optimizer made a step."""
        return self.stale or list(map(_version, tensors)) != self._versions

    @property
    def windows(self) -> Sequence[memoryview]:
        """The watched bytes."""
        return self._probe.windows

    def bytes_changed(self) -> bool:
        """Whether a watched byte differs, of the memory in which the tensors lay at first."""
        return self._probe.changed()


class Watch(Marks):
    """The state of the weights of a tree of modules at one moment, to compare with the present.

    Args:
        root: the module whose weights are watched.
        attributes: tensors that are plain attributes: the dict of the module and the key.
        excluded: ids of tensors whose values do not matter.
    """

    def __init__(
        self,
        root: nn.Module,
        attributes: Iterable[tuple[dict[str, Any], str]] = (),
        excluded: Collection[int] = (),
    ):
        self._holdings = Holdings(root)
        self._attributes: list[tuple[dict[str, Any], str, Tensor, int]] = [
            (held, key, held[key], held[key].data_ptr()) for held, key in attributes
        ]
        tensors = [*self._holdings.tensors, *(tensor for _, _, tensor, _ in self._attributes)]
        watched = [tensor for tensor in tensors if id(tensor) not in excluded]
        self._versioned = [tensor for tensor in watched if not tensor.is_inference()]
        super().__init__(self._versioned, watched)
        self.ids = frozenset(map(id, watched))
        self._second: Holdings | None = None
        self._looks = 0
        self._glance: tuple[Glance, Holdings | None] | None = None  # and the second tree that it was taken of

    def also(self, root: nn.Module) -> None:
        """Watch what another tree holds too, but not its values."""
        self._second = Holdings(root)

    def moved(self) -> bool:
        """Whether an object of the tree was replaced, or a tensor given other memory."""
        return self._holdings.changed()

    def edited(self) -> bool:
        """Whether the second tree holds other objects, or its tensors other memory."""
        return self._second is not None and self._second.changed()

    def rewritten(self) -> bool:
        """Whether the watched tensors have other values, whatever the tree holds at the moment."""
        return self.written(self._versioned) or self.bytes_changed()

    def changed(self) -> bool:
        """Whether anything is seen to have changed."""
        taken = self._glance
        if taken is not None and taken[1] is self._second:
            return self.stale or self._attributes_changed() or taken[0].changed()
        if self._looked():
            return True
        self._looks += 1
        if self._looks >= WORTH and ready():
            self._take_glance()
        return False

    def _looked(self) -> bool:
        """What Python sees."""
        second = self._second
        # the places come before the probe, which reads memory at the places that were found at first
        return (
            self.written(self._versioned)
            or self._holdings.changed()
            or self._attributes_changed()
            or (second is not None and second.changed())
            or self.bytes_changed()
        )

    def _take_glance(self) -> None:
        """Have compiled code compare with the present state from now on, unless it changes just now."""
        second = self._second
        try:
            glance = Glance([self._holdings, *([] if second is None else [second])], self._versioned, self.windows)
        except ValueError:
            self._looks = -sys.maxsize
            return
        # between the look before and the glance another thread may have written
        if not self._looked():
            self._glance = glance, second

    def _attributes_changed(self) -> bool:
        return any(held.get(key) is not tensor or tensor.data_ptr() != place
                   for held, key, tensor, place in self._attributes)  # fmt: skip


class _Steps:
    """Hears every optimizer step of the process and marks the watches whose tensors the optimizer owns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: list[weakref.ref[Marks]] = []
        self._handle: Any = None

    def watch(self, watch: Marks) -> None:
        with self._lock:
            self._watches = [known for known in self._watches if known() is not None]
            self._watches.append(weakref.ref(watch))
            if self._handle is None:
                self._handle = compat.on_optimizer_step(self._stepped)

    def _stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        with self._lock:
            watches = [watch for watch in (known() for known in self._watches) if watch is not None]
        if watches:
            owned = {id(parameter) for parameter in _parameters(optimizer)}
            for watch in watches:
                if not watch.ids.isdisjoint(owned):
                    watch.stale = True


def _parameters(optimizer: Any) -> Iterator[Any]:
    for group in optimizer.param_groups:
        yield from group["params"]


_steps = _Steps()
