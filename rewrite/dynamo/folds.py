"""Folded weights of a compiled graph, apart for each set of tensors that a call brings.

Dynamo calls one compiled graph with the weights of every instance of a class, and with weights that were replaced or
written since. So the graph takes what is folded as arguments, and each call looks up, by the tensors themselves, what
was folded from them, and whether they are still as they were.
"""

from __future__ import annotations

import logging
import threading
import weakref
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rewrite.events import emit
from rewrite.result.modes import neutral
from rewrite.result.staleness import Marks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rewrite.graph import Graph

Key = tuple[int, ...]

_version = attrgetter("_version")
_data_ptr = Tensor.data_ptr
_IN_A_ROW = 8
"""So many folds without a call in between that finds its own are worth a word."""


def refold() -> None:
    """Compute folded weights again at the next call of each compiled graph.

    Changes are noticed without it, except writes through ``.data`` to a few elements of a large weight.
    """
    for folds in list(_all):
        folds.forget()


class Folds:
    """What an executable takes for weights, computed from the tensors of a call.

    Args:
        graph: the rewritten graph; its weight program is copied, its tensors are not kept.
        names: the weights that the executable takes, in order.
        sources: the weights that a call brings, in order; other tensors of the graph are constants.
        written: those of them that a call writes: they are handed on as they are, and their values do not matter.
        arrange: gives weights the layout that the executable wants.
    """

    def __init__(
        self,
        graph: Graph,
        names: Sequence[str],
        sources: Sequence[str],
        written: Sequence[str],
        arrange: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    ):
        self._program = graph.program.copy()
        self._program.keep(names)
        needed = dict.fromkeys((*names, *self._program.sources))
        known = set(sources)
        self._constants = {
            name: graph.weights[name] for name in needed if name not in known and name not in self._program.results
        }
        self._names = tuple(names)
        self._sources = [(i, name) for i, name in enumerate(sources) if name in needed]
        self._watched = [i for i, name in self._sources if name not in written]
        self._written = frozenset(written)
        self._arrange = arrange
        self._sets: dict[Key, _Set] = {}
        self._lock = threading.Lock()
        self._misses = 0
        _all.add(self)

    def __len__(self) -> int:
        """How many sets of tensors there are folds of."""
        return len(self._sets)

    def forget(self) -> None:
        """Forget what was folded."""
        self._sets.clear()

    def weights(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the executable takes, for the tensors of a call in the order of ``sources``."""
        watched = [tensors[i] for i in self._watched]
        key = tuple(map(id, watched))
        found = self._sets.get(key)
        if found is None or found.changed(watched):
            found = self._fold(key, tensors, watched)
        else:
            self._misses = 0
        return [tensors[part] if isinstance(part, int) else part for part in found.weights]

    def _fold(self, key: Key, tensors: Sequence[Tensor], watched: list[Tensor]) -> _Set:
        with self._lock, neutral():
            # the marks come first: what changes while the weights are read is noticed at the next call
            made = _Set(watched)
            values = {name: tensors[i].detach() for i, name in self._sources}
            known = {**self._constants, **values}
            known.update(self._program.evaluate(known))
            arranged = self._arrange({name: known[name] for name in self._names})
            made.weights = self._parts(arranged, values)
            made.keep_while_alive(watched, self._sets, key)
            self._misses += 1
        if self._misses == _IN_A_ROW:
            emit("folding-in-vain", f"the weights changed before each of {_IN_A_ROW} calls, so each call folds them "
                 "again; options={'exclude': 'fold-constants'} keeps them live", logging.WARNING)  # fmt: skip
        emit("folded", f"weights folded from {len(watched)} tensors; {len(self._sets)} sets are known",
             tensors=len(watched), sets=len(self._sets))  # fmt: skip
        return made

    def _parts(self, arranged: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> tuple[Tensor | int, ...]:
        """What stands for each weight in a set, which must not keep the memory of the call's tensors alive.

        A tensor of the call is handed on by its position, so a written one is written and a returned one is itself.
        """
        positions = {name: i for i, name in self._sources}
        memory = {value.untyped_storage()._cdata for value in values.values()}
        parts: list[Tensor | int] = []
        for name in self._names:
            tensor = arranged[name]
            if name in values and (name in self._written or tensor is values[name]):
                parts.append(positions[name])
            else:
                parts.append(tensor.clone() if tensor.untyped_storage()._cdata in memory else tensor)
        return tuple(parts)


_all: weakref.WeakSet[Folds] = weakref.WeakSet()


class _Set:
    """The folds of one set of tensors.

    Attributes:
        weights: what the executable takes; a number is the position of a tensor of the call.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        # tensors of the inference mode count no versions
        self._versioned = [i for i, tensor in enumerate(tensors) if not tensor.is_inference()]
        self._marks = Marks([tensors[i] for i in self._versioned], tensors, keep=False)
        self._places = list(map(_data_ptr, tensors))
        self._refs: list[weakref.ref[Any]] = []
        self.weights: tuple[Tensor | int, ...] = ()

    def changed(self, tensors: Sequence[Tensor]) -> bool:
        """Whether one of the same tensors was written, or given other memory."""
        return (
            self._marks.written([tensors[i] for i in self._versioned])
            # the places come before the bytes, which are read where the tensors lay at first
            or list(map(_data_ptr, tensors)) != self._places
            or self._marks.bytes_changed()
        )

    def keep_while_alive(self, tensors: Sequence[Tensor], sets: dict[Key, _Set], key: Key) -> None:
        """Be found under a key as long as the memory of every tensor lives; afterwards it may be another one's."""
        sets[key] = self

        def forget(_: object) -> None:
            if sets.get(key) is self:
                del sets[key]

        # not of the tensors themselves: one that has weak references cannot be swapped, as `module.to` may do
        self._refs = [weakref.ref(tensor.untyped_storage(), forget) for tensor in tensors]
