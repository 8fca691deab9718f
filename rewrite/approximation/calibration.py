"""The data of an approximation: batches that weights are fitted to, and some that are held out to measure on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import compat
from rewrite.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import Node

    from rewrite.graph import Graph

EVERY = 4
"""One of so many batches is held out."""

KEPT = 2
"""Held-out batches that are kept in memory at most; what comes later is fitted to."""

_NOTHING = object()


def flat_of(graph: Graph, batch: Any, number: int) -> list[Any]:
    """The flat inputs of a call.

    Args:
        graph: what is called.
        batch: one argument, a tuple of the positional ones, or a dict of keyword arguments.
        number: of the batch, for messages.

    Raises:
        InputError: the batch is empty, has no finite numbers, or is not a call like the first one.
    """
    args, kwargs = call_of(batch)
    flat, spec = compat.tree_flatten((args, kwargs))
    if spec != graph.signature.in_spec:
        raise InputError(f"batch {number} is not a call like the first one: its arguments are built otherwise; pass "
                         "batches of one kind, or inputs= to take the arguments out of them")  # fmt: skip
    for node, found in zip(graph.inputs, flat, strict=True):
        recorded = node.meta.get("val")
        if isinstance(recorded, Tensor) and isinstance(found, Tensor) and found.numel() == 0:
            raise InputError(f"batch {number} is empty: '{node.target}' has shape {list(found.shape)}; leave it out")
        reason = mismatch(node, found)
        if reason:
            raise InputError(f"batch {number} has {reason}; pass batches of one kind")
        if isinstance(recorded, Tensor):
            _check(node.target, recorded, found, number)
    return flat


def mismatch(node: Node, found: Any) -> str:
    """What an argument has that the program was not made for, in words; '' where it fits.

    Args:
        node: a placeholder with the value of the first call recorded.
        found: what is given.
    """
    recorded = node.meta.get("val")
    if not isinstance(recorded, Tensor):
        free = isinstance(recorded, torch.SymInt) and type(found) is int
        fits = free or (type(found) is type(recorded) and bool(found == recorded))
        return "" if fits else f"'{node.target}' of {found!r}, not {recorded!r}"
    if not isinstance(found, Tensor):
        return f"{type(found).__name__} for the tensor '{node.target}'"
    sizes: list[Any] = list(recorded.shape)  # symbols where any size does
    if found.dim() == len(sizes) and all(type(a) is not int or a == b for a, b in zip(sizes, found.shape, strict=True)):
        return ""
    said = ", ".join(str(size) if type(size) is int else "any" for size in sizes)
    return f"'{node.target}' of shape {list(found.shape)}, not [{said}]"


def call_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments that a batch stands for."""
    if isinstance(batch, dict):
        return (), dict(batch)
    return (batch if isinstance(batch, tuple) else (batch,)), {}


def _check(name: Any, recorded: Tensor, found: Tensor, number: int) -> None:
    if found.dtype != recorded.dtype:
        raise InputError(f"batch {number} has '{name}' in {found.dtype}, and the first one in {recorded.dtype}")
    if found.device != recorded.device:
        raise InputError(f"batch {number} has '{name}' on {found.device}, and the first one on {recorded.device}")
    if found.is_floating_point() and not bool(found.isfinite().all()):
        raise InputError(f"batch {number} has NaN or infinities in '{name}'; nothing can be fitted to these")


class Batches:
    """The calls of an iterable, split into those that are fitted to and those that are held out.

    The iterable is read once. Every fourth batch is held out, up to two; of less than four batches the last one; a
    single one is cut in two along the first dimension of its tensors.

    Args:
        given: batches.
        inputs: takes the arguments out of a batch.

    Raises:
        InputError: it is not iterable, there is no batch, or ``inputs`` is no function.
    """

    def __init__(self, given: Iterable[Any], inputs: Callable[[Any], Any] | None = None):
        if inputs is not None and not callable(inputs):
            raise InputError(f"inputs={inputs!r} is no function; pass one that takes a batch, or leave it out")
        if isinstance(given, (Tensor, str, dict)) or not isinstance(given, Iterable):
            kind = "a tensor" if isinstance(given, Tensor) else type(given).__name__
            raise InputError(f"batches is {kind}; pass an iterable of batches, such as a DataLoader or a list")
        self._given, self._inputs = given, inputs
        self._rest = iter(given)
        first = next(self._rest, _NOTHING)
        if first is _NOTHING:
            raise InputError("batches has no batch; pass at least one, of two samples or more")
        self.example = self._taken(first)
        self.held_out: list[list[Any]] = []
        self.fitted = 0
        self._keeps = True

    def _taken(self, batch: Any) -> Any:
        found = batch if self._inputs is None else self._inputs(batch)
        return tuple(found) if isinstance(found, list) else found

    def again(self) -> Batches:
        """The same once more, from the beginning; held out is what was.

        Raises:
            InputError: the iterable can be read once only.
        """
        if iter(self._given) is self._given:
            raise InputError("batches can be read once only, and these rules take turns that read them each; pass a "
                             "list or a DataLoader")  # fmt: skip
        twin = Batches(self._given, self._inputs)
        twin.held_out, twin._keeps = self.held_out, False
        return twin

    def fitting(self, graph: Graph) -> Iterator[list[Any]]:
        """The flat inputs that weights are fitted to; those that are held out go to :attr:`held_out`.

        Raises:
            InputError: as :func:`flat_of`; or there is a single sample.
        """
        number, waiting = 1, flat_of(graph, self.example, 1)
        held = 0
        for batch in self._rest:
            number += 1
            flat = flat_of(graph, self._taken(batch), number)
            if number % EVERY == 0 and held < KEPT:
                held += 1
                self._hold(flat)
                continue
            self.fitted += 1
            yield waiting
            waiting = flat
        if number == 1:
            waiting, flat = _halves(graph, waiting)
            self._hold(flat)
        elif not held:
            self._hold(waiting)
            return
        self.fitted += 1
        yield waiting

    def _hold(self, flat: list[Any]) -> None:
        if self._keeps:
            self.held_out.append(flat)


def _halves(graph: Graph, flat: list[Any]) -> tuple[list[Any], list[Any]]:
    """One batch as two."""
    free = [isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dim() > 0
            and not isinstance(node.meta["val"].shape[0], int) for node in graph.inputs]  # fmt: skip
    sizes = {int(x.shape[0]) for x, cut in zip(flat, free, strict=True) if cut}
    rows = sizes.pop() if len(sizes) == 1 else 0
    if rows < 2:
        raise InputError("there is one batch, and it cannot be cut in two, one to fit weights to and one to measure "
                         "on; pass two batches, or one of at least two samples")  # fmt: skip
    half = -(-rows // 2)
    return ([x[:half] if cut else x for x, cut in zip(flat, free, strict=True)],
            [x[half:] if cut else x for x, cut in zip(flat, free, strict=True)])  # fmt: skip
