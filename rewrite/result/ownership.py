"""Whose tensors a result computes with: the model's, which its tree follows, or its own."""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.result.mirror import Mirror, Reflection, find
from rewrite.result.modes import neutral
from rewrite.result.reading import attribute, place
from rewrite.result.specialize import Misfit
from rewrite.result.staleness import Holdings, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from rewrite.result.specialize import Specialization


class Ownership:
    """The tie between a model and the tree of a result, until the result has tensors of its own.

    Not safe for threads by itself: the engine calls it under its lock.

    Args:
        source: the model; never changed.
        root: the result, as a tree of tensors.
    """

    def __init__(self, source: nn.Module, root: Mirror):
        self.source = source
        self.root = root
        self._reflection: Reflection | None = Reflection(source, root)
        # plain tensor attributes of the model that programs read, as they are once the result has its own
        self._attributes: dict[str, Tensor] = {}
        self._observed = False

    @property
    def following(self) -> bool:
        """Whether the tensors are those of the model."""
        return self._reflection is not None

    # -- reading ------------------------------------------------------------------------------------------------------

    def sources(self, special: Specialization) -> dict[str, Tensor]:
        """The present tensors that a program is computed from, by name.

        Raises:
            Misfit: one is gone.
        """
        found = {}
        for name in special.reads:
            tensor = find(self.root, name) if name in special.registered else self._attribute(name)
            if tensor is None:
                raise Misfit(f"there is no '{name}' any more")
            found[name] = tensor.detach()
        return found

    def find(self, name: str) -> Tensor | None:
        """The present tensor of that name in the tree, None where there is none."""
        return find(self.root, name)

    def _attribute(self, name: str) -> Tensor:
        return self._attributes[name] if self._reflection is None else attribute(self.source, name)

    def in_tree(self, special: Specialization, weights: Sequence[Tensor]) -> list[Any]:
        """The weights of a program, in order: what the tree holds as it does at the moment, and the given ones else."""
        return [
            find(self.root, name) if name in special.registered else tensor
            for name, tensor in zip(special.names, weights, strict=True)
        ]

    def is_swapped(self) -> bool:
        """Whether an exporter has put stand-ins in the place of the tensors of the tree for the moment."""
        return any(map(compat.is_stand_in, Holdings(self.root).tensors))

    def watch(self, specials: Collection[Specialization]) -> Watch:
        """The state of the tensors at this moment, without the values that calls of the programs write."""
        written = {name for special in specials for name in special.written}
        if self._reflection is None:
            return Watch(self.root, excluded={id(find(self.root, name)) for name in written})
        excluded = {id(find(self.source, name)) for name in written | self._reflection.owned}
        attributes = sorted({name for special in specials for name in special.attributes})
        places = [found for name in attributes if (found := place(self.source, name)) is not None]
        watch = Watch(self.source, places, excluded)
        if self._observed:
            watch.also(self.root)
        return watch

    def example(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], autocast: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call of the result as the model can take it, which may be of another dtype and on another device."""
        dtypes: dict[torch.dtype, torch.dtype] = {}
        devices: dict[torch.device, torch.device] = {}
        for name, theirs in itertools.chain(self.source.named_parameters(), self.source.named_buffers()):
            mine = find(self.root, name)
            if mine is not None:
                devices.setdefault(mine.device, theirs.device)
                if theirs.is_floating_point():
                    dtypes.setdefault(mine.dtype, theirs.dtype)
        if autocast and dtypes:
            wide = next(iter(dtypes.values()))
            dtypes = {torch.float16: wide, torch.bfloat16: wide} | dtypes

        def convert(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            dtype = dtypes.get(leaf.dtype, leaf.dtype) if leaf.is_floating_point() else leaf.dtype
            return leaf.to(devices.get(leaf.device, leaf.device), dtype)

        return compat.tree_map(convert, (args, kwargs))  # type: ignore[no-any-return]

    # -- following ----------------------------------------------------------------------------------------------------

    def adopt(self, special: Specialization) -> None:
        """Prepare for a program: what it writes is the result's own from now on."""
        for name in special.attributes:
            self._attributes.setdefault(name, self._attribute(name).detach().clone())
        if self._reflection is not None and special.written:
            self._reflection.own(special.written)

    def follow(self, watch: Watch) -> bool:
        """Bring the tree up to date; whether the model still consists of the modules that its programs are of."""
        if self._reflection is None:
            return True
        if watch.edited():
            self._own()
        elif self._reflection.same_structure():
            self._reflection.update()
        else:
            self._reflection = Reflection(self.source, self.root)
            return False
        return True

    def observe(self, watch: Watch) -> None:
        """Watch the result's tensors too: from now on the caller may hold them and give them other memory."""
        if self._reflection is None:
            return
        updated = self._update(watch)
        if updated or not self._observed:
            self._observed = True
            watch.also(self.root)

    def _update(self, watch: Watch) -> bool:
        """Let the tree follow at once where the model holds other tensors; folded weights follow at the next call."""
        if self._reflection is None or not watch.moved() or watch.edited() or not self._reflection.same_structure():
            return False
        self._reflection.update()
        watch.stale = True
        return True

    # -- owning -------------------------------------------------------------------------------------------------------

    def stop_following(self, watch: Watch) -> None:
        """Copy the tensors, so that the result can change them, and look at the model's no longer."""
        if self._reflection is not None:
            self._update(watch)
            self._own()
            watch.stale = True

    def _own(self) -> None:
        assert self._reflection is not None
        for name in self._attributes:
            self._attributes[name] = self._attribute(name).detach().clone()
        self._reflection.own()
        self._reflection = None

    def keep(self) -> None:
        """Take over the model's tensors as they are and leave it none; for a model that nobody else has."""
        self._reflection = None
        for module in self.source.modules():
            module._parameters.clear()
            module._buffers.clear()

    def copy(self, root: Mirror) -> Ownership:
        """Copies of the tensors in another tree, which does not follow the model."""
        twin = copy.copy(self)
        twin.root, twin._observed = root, False
        twin._reflection = Reflection(self.root, root)
        twin._reflection.own()
        twin._reflection = None
        twin._attributes = {name: self._attribute(name).detach().clone() for name in self._attributes}
        return twin


def changes(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> bool:
    """Whether ``fn`` gives another tensor than it is given for one of a module's tensors."""
    with neutral():
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            given = tensor.detach()
            if fn(given) is not given:
                return True
    return False
