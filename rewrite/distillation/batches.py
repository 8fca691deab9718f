"""Calls of a module, from whatever a user iterates over."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rewrite.distillation.distributed import World


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def of(self, function: Callable[..., Any], *first: Any) -> Any:
        """Call a function, behind ``first``."""
        return function(*first, *self.args, **self.kwargs)

    def check(self, module: nn.Module, name: str) -> None:
        """Check that a module takes it.

        Raises:
            InputError: it does not.
        """
        try:
            signature = inspect.signature(module.forward)
        except (TypeError, ValueError):
            return
        try:
            signature.bind(*self.args, **self.kwargs)
        except TypeError as error:
            given = ", ".join([*(type(arg).__name__ for arg in self.args), *(f"{key}=" for key in self.kwargs)])
            raise InputError(
                f"the forward of the {name} does not take a batch as ({given}): {error}; pass inputs=, such as "
                "inputs=lambda batch: batch[0] for pairs of inputs and labels"
            ) from error


class Batches:
    """This process's share of batches, as calls with their tensors on a device.

    A loader with a sampler for several processes is taken as it is, and told the epoch. Of everything else the process
    of rank r takes batches r, r + size, r + 2 size, and so on; an incomplete last round is left out in training.

    Args:
        batches: an iterable.
        inputs: gives the argument or arguments of the call from a batch; None for the batch itself.
        world: whose share; tensors are moved to its device.
        name: of the argument, for messages.
        takers: the modules that are called, by what they are for messages.

    Raises:
        InputError: not an iterable of batches.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        inputs: Callable[[Any], Any] | None,
        world: World,
        name: str,
        takers: Mapping[str, nn.Module],
    ):
        if isinstance(batches, (Tensor, Mapping, str, bytes)):
            raise InputError(f"{name} is one {type(batches).__name__}, not several batches; pass a list, [{name}]")
        if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
            raise InputError(f"{name} is a {type(batches).__name__}, which cannot be iterated over; pass a list")
        if inputs is not None and not callable(inputs):
            raise InputError(f"inputs={inputs!r} is no function; pass one, such as inputs=lambda batch: batch[0]")
        self._batches, self._inputs, self._world, self.name = batches, inputs, world, name
        self._takers = takers
        self._samplers = _samplers(batches)
        own = any(hasattr(sampler, "num_replicas") for sampler in self._samplers)
        self.sharded = world.size > 1 and not own
        self.once = isinstance(batches, Iterator)

    @property
    def length(self) -> int | None:
        """How many batches an epoch has for this process, where that is known."""
        try:
            total = len(self._batches)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None
        return total // self._world.size if self.sharded else total

    @property
    def generators(self) -> list[torch.Generator]:
        """The random generators of a loader's own, each once."""
        holders = (self._batches, *self._samplers)
        found = [getattr(holder, "generator", None) for holder in holders]
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())

    def epoch(self, number: int, ragged: bool = False) -> Iterator[Call]:
        """The calls of an epoch. Nothing is read before it is asked for, so that random numbers are drawn in order.

        Args:
            number: of the epoch.
            ragged: whether an incomplete last round is given out, which gives the processes unequal numbers.
        """
        for holder in (self._batches, *self._samplers):
            tell = getattr(holder, "set_epoch", None)
            if callable(tell):
                tell(number)
        for index, batch in enumerate(self._share(ragged)):
            call = self._call(batch, index)
            if index == 0:
                for role, module in self._takers.items():
                    call.check(module, role)
            yield call

    def _share(self, ragged: bool) -> Iterator[Any]:
        if not self.sharded:
            yield from self._batches
            return
        size, rank = self._world.size, self._world.rank
        mine: Any = None
        place = -1
        for index, batch in enumerate(self._batches):
            place = index % size
            if place == rank:
                mine = batch
            if place == size - 1:
                yield mine
        if ragged and place != size - 1 and rank <= place:
            yield mine

    def _call(self, batch: Any, index: int) -> Call:
        given = batch if self._inputs is None else self._inputs(batch)
        if isinstance(given, Mapping):
            call = Call((), dict(given))
        else:
            call = Call(tuple(given) if isinstance(given, (tuple, list)) else (given,))
        tensors = [leaf for leaf in compat.tree_flatten((call.args, call.kwargs))[0] if isinstance(leaf, Tensor)]
        if not tensors:
            raise InputError(
                f"batch {index} of {self.name} is a {type(given).__name__} without tensors; pass tensors, tuples or "
                "dicts of them, or inputs= that gives them"
            )
        if tensors[0].numel() == 0:  # others may be, as caches that nothing is in
            raise InputError(f"batch {index} of {self.name} is empty; leave it out")
        args, kwargs = compat.tree_map(self._moved, (call.args, call.kwargs))
        return Call(args, kwargs)

    def _moved(self, leaf: Any) -> Any:
        return leaf.to(self._world.device, non_blocking=True) if isinstance(leaf, Tensor) else leaf


def _samplers(batches: Any) -> list[Any]:
    """What decides on a loader's order."""
    outer = getattr(batches, "batch_sampler", None)
    found = (getattr(batches, "sampler", None), outer, getattr(outer, "sampler", None))
    return list({id(one): one for one in found if one is not None}.values())
