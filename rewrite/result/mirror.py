"""The result's own module tree: the model's structure and names, without its code.

While the result follows the model, its tensors are aliases: new ``Parameter`` objects over the model's memory. So
``state_dict()``, ``named_parameters()`` and ``requires_grad_()`` work on the result and never reach the model.
"""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from rewrite.errors import RewriteError
from rewrite.result.probe import has_memory
from rewrite.trace.twin import clones

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_STRUCTURE = (
    "the structure of an optimized module is fixed, so '{name}' cannot be set to another module; change the model and "
    "optimize it again"
)
TRAINING = "optimize makes a module for inference, which has no training mode; use rewrite.transform to train the model"


class Home(Protocol):
    """What the parts of the tree ask of the result that they belong to."""

    def stop_following(self) -> None:
        """Give the result tensors of its own."""

    def changes(self, module: nn.Module, fn: Callable[[Tensor], Tensor]) -> bool:
        """Whether ``fn`` would give a module other tensors; if so, the result owns its tensors from now on."""
        ...


class Mirror(nn.Module):
    """One module of the tree, named as the module that it stands for. Calling it raises."""

    _home: Callable[[], Any]
    _source_name: str

    def __init__(self, source: nn.Module, home: Home):
        super().__init__()
        self.__dict__.update(_home=weakref.ref(home), _source_name=source._get_name())
        self.training = False
        if hasattr(source, "_version"):
            self.__dict__["_version"] = source._version

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise: a part of an optimized module has no code of its own."""
        raise RewriteError(
            f"{self._source_name} is a part of an optimized module and holds tensors only; call the whole module, or "
            "optimize the part by itself"
        )

    def train(self, mode: bool = True) -> Mirror:
        """Raise for ``True``: see :meth:`OptimizedModule.train`."""
        if mode:
            raise RewriteError(TRAINING)
        return self

    def _get_name(self) -> str:
        return self._source_name

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Mirror:
        if self._home().changes(self, fn):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def share_memory(self) -> Mirror:
        """Move the tensors, the result's own from now on, to shared memory."""
        self._home().stop_following()
        return super().share_memory()

    def _load_from_state_dict(self, *args: Any) -> None:
        self._home().stop_following()
        super()._load_from_state_dict(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module) or name in self._modules:
            raise RewriteError(_STRUCTURE.format(name=name))
        if name in self._parameters or name in self._buffers:
            self._home().stop_following()
        super().__setattr__(name, value)


class _Container(Mirror):
    """A mirror of a list or dict of modules or parameters, which can be indexed."""

    def __len__(self) -> int:
        return len(self._modules) or len(self._parameters)

    def __getitem__(self, key: Any) -> Any:
        held: Mapping[str, Any] = self._modules or self._parameters
        if isinstance(key, str):
            return held[key]
        return list(held.values())[key]

    def __iter__(self) -> Iterator[Any]:
        keyed = not all(key.isdigit() for key in (*self._modules, *self._parameters))
        held: Mapping[str, Any] = self._modules or self._parameters
        return iter(held if keyed else held.values())


class _Stateful(Mirror):
    """A mirror of a module whose ``state_dict`` has an extra state."""

    _read_state: Callable[[], Any]

    def __init__(self, source: nn.Module, home: Home):
        super().__init__(source, home)
        self.__dict__["_read_state"] = source.get_extra_state

    def get_extra_state(self) -> Any:
        """A copy of the module's extra state, or what was loaded since."""
        return copy.deepcopy(self._read_state())

    def set_extra_state(self, state: Any) -> None:
        """Keep a loaded state; the model does not see it."""
        self.__dict__["_read_state"] = lambda: state


class _StatefulContainer(_Stateful, _Container):
    pass


def _mirror(source: nn.Module, home: Home) -> Mirror:
    kind = type(source)
    stateful = kind.get_extra_state is not nn.Module.get_extra_state
    indexed = hasattr(kind, "__getitem__") and hasattr(kind, "__len__")
    classes = {(False, False): Mirror, (False, True): _Container, (True, False): _Stateful,
               (True, True): _StatefulContainer}  # fmt: skip
    return classes[stateful, indexed](source, home)


class Reflection:
    """The tie between a source tree and a mirror tree.

    Args:
        source: the module that is reflected; not changed.
        root: the home of the tree, which becomes the mirror of ``source``.

    Attributes:
        owned: names of tensors that are the mirror's own and no longer follow the source.
    """

    def __init__(self, source: nn.Module, root: Mirror):
        self.source = source
        self.root = root
        self.owned: set[str] = set()
        self._pairs: list[tuple[str, nn.Module, nn.Module]] = []
        self._aliases: dict[int, tuple[Tensor, int, Tensor]] = {}
        self._build()
        self.update()

    def _build(self) -> None:
        known: dict[int, nn.Module] = {id(self.source): self.root}
        stack: list[tuple[str, nn.Module]] = [("", self.source)]
        self.root._modules.clear()
        while stack:
            path, module = stack.pop()
            mirror = known[id(module)]
            self._pairs.append((f"{path}." if path else "", module, mirror))
            mirror.__dict__["_non_persistent_buffers_set"] = set(module._non_persistent_buffers_set)
            for name, child in module._modules.items():
                if child is not None and id(child) not in known:
                    known[id(child)] = _mirror(child, self.root._home())
                    stack.append((f"{path}.{name}" if path else name, child))
                mirror._modules[name] = None if child is None else known[id(child)]

    def update(self) -> None:
        """Take over every tensor of the source that was replaced or moved since, except owned ones."""
        aliases: dict[int, tuple[Tensor, int, Tensor]] = {}
        for path, module, mirror in self._pairs:
            for held, mine in ((module._parameters, mirror._parameters), (module._buffers, mirror._buffers)):
                for key in [key for key in mine if key not in held]:
                    del mine[key]
                for key, tensor in held.items():
                    if f"{path}{key}" in self.owned and mine.get(key) is not None:
                        continue
                    if tensor is not None and id(tensor) not in aliases:
                        aliases[id(tensor)] = self._alias(tensor)
                    mine[key] = None if tensor is None else aliases[id(tensor)][2]  # type: ignore[assignment]
        self._aliases = aliases

    def _alias(self, tensor: Tensor) -> tuple[Tensor, int, Tensor]:
        known = self._aliases.get(id(tensor))
        if known is not None and known[0] is tensor and known[1] == _place(tensor) and _same_kind(known[2], tensor):
            return known
        return tensor, _place(tensor), _alias(tensor)

    def same_structure(self) -> bool:
        """Whether the source still consists of the very modules that were reflected."""
        modules = {id(module) for module in self.source.modules()}
        return modules == {id(module) for _, module, _ in self._pairs} and all(
            module._modules.keys() == mirror._modules.keys() for _, module, mirror in self._pairs
        )

    def own(self, only: Iterable[str] | None = None) -> None:
        """Give the mirror copies instead of aliases: of all tensors, or of some by name.

        Tensors that share memory share it among the copies too. What the mirror was given by other means stays.
        """
        wanted = None if only is None else set(only)
        borrowed = {id(alias) for tensor, place, alias in self._aliases.values() if _place(alias) == place}
        places = [
            (held, key, tensor)
            for path, _, mirror in self._pairs
            for held in (mirror._parameters, mirror._buffers)
            for key, tensor in held.items()
            if tensor is not None and id(tensor) in borrowed and (wanted is None or f"{path}{key}" in wanted)
        ]
        with torch.inference_mode(False):
            copies = clones([tensor for _, _, tensor in places])
        for (held, key, _), made in zip(places, copies, strict=True):
            held[key] = made
        if wanted is not None:
            self.owned |= wanted
            return
        for _, _, mirror in self._pairs:
            if isinstance(mirror, _Stateful):
                mirror.set_extra_state(mirror.get_extra_state())


def _alias(tensor: Tensor) -> Tensor:
    """A new object over the memory of ``tensor``, with its version counter."""
    if not isinstance(tensor, nn.Parameter):
        return tensor.detach()
    with torch.inference_mode(tensor.is_inference()):
        return nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)


def _place(tensor: Tensor) -> int:
    return tensor.data_ptr() if has_memory(tensor) else 0


def _same_kind(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype, a.device, a.layout) != (b.shape, b.dtype, b.device, b.layout):
        return False
    return a.layout is not torch.strided or a.stride() == b.stride()


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """The module of a tree at a path, '' for the root, or None."""
    module: nn.Module | None = root
    for part in path.split(".") if path else ():
        module = module._modules.get(part) if module is not None else None
    return module


def find(root: nn.Module, name: str) -> Tensor | None:
    """The parameter or buffer of a tree by its qualified name, or None."""
    path, _, key = name.rpartition(".")
    module = submodule(root, path)
    if module is None:
        return None
    return module._parameters.get(key, module._buffers.get(key))
