"""Values inside a model: by forward hooks on modules, or by a module that gives them itself."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor, nn

from rewrite import compat
from rewrite.errors import InputError
from rewrite.names import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rewrite.distillation.batches import Call


class Observable(Protocol):
    """A module that gives values inside it, by names of its own, as programs of graph operators can.

    A student of this kind is compared with its teacher, if that is of this kind and has the same names, or else with
    ``student.source``: a module of this kind with the same names and call that computes with the original weights.
    ``source`` is no submodule of the student, and shares no trainable parameter with it. Both methods and names are
    found on the class and the object: ``observe`` is a method of the class.

    Attributes:
        boundaries: the names, in the order in which the values are computed.
    """

    @property
    def boundaries(self) -> tuple[str, ...]:
        """The names, in the order in which the values are computed."""

    def observe(self, names: Sequence[str], /, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """What ``forward`` gives for a call, and the values of ``names``, with gradients where these are enabled."""


@dataclass(frozen=True)
class Called:
    """Reads the output of a module."""

    module: nn.Module

    def __call__(self, call: Call) -> Any:
        """The output."""
        return call.of(self.module)


@dataclass(frozen=True)
class Observed:
    """Reads values that a module gives itself."""

    module: Observable
    names: tuple[str, ...]

    def __call__(self, call: Call) -> dict[str, Any]:
        """The values by name."""
        values = call.of(self.module.observe, self.names)[1]
        missing = [name for name in self.names if name not in values]
        if missing:
            raise InputError(
                f"{type(self.module).__name__}.observe gives no value for '{missing[0]}'; it has to give each name"
            )
        return {name: values[name] for name in self.names}


@dataclass(frozen=True)
class Hooked:
    """Reads the outputs of submodules, by hooks that are there for the length of a call.

    Attributes:
        module: which is called.
        paths: of submodules, by name of the boundary.
        role: of the module, for messages.
    """

    module: nn.Module
    paths: Mapping[str, str]
    role: str

    def __call__(self, call: Call) -> dict[str, Any]:
        """For each name the outputs, one for each time that the submodule was called."""
        values: dict[str, list[Any]] = {name: [] for name in self.paths}
        with self._hooks(values):
            call.of(self.module)
        silent = [name for name, outputs in values.items() if not outputs]
        if silent:
            raise InputError(
                f"the {self.role} does not call its module '{self.paths[silent[0]]}'; name a module that its forward "
                "calls"
            )
        return values

    @contextlib.contextmanager
    def _hooks(self, values: dict[str, list[Any]]) -> Iterator[None]:
        with contextlib.ExitStack() as hooks:
            for name, path in self.paths.items():
                handle = self.module.get_submodule(path).register_forward_hook(_keeping(values[name]))
                hooks.callback(handle.remove)
            yield


def _keeping(outputs: list[Any]) -> Callable[..., None]:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        # what follows may overwrite it, as nn.ReLU(inplace=True) does
        outputs.append(compat.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output))

    return keep


Reader = Called | Observed | Hooked


def readers(
    student: nn.Module, teacher: nn.Module, boundaries: Mapping[str, str] | Sequence[str] | None
) -> tuple[Reader, Reader] | None:
    """What reads the boundaries of student and teacher; None where there are none.

    Args:
        student, teacher: the modules.
        boundaries: paths of submodules, or the student's own names; None for all of the student's own.

    Raises:
        InputError: a boundary that is not there.
    """
    if isinstance(boundaries, str):
        raise InputError(f"boundaries={boundaries!r} is a text; pass a list, [{boundaries!r}]")
    if boundaries is not None and not isinstance(boundaries, (Mapping, Sequence)):
        raise InputError(f"boundaries={boundaries!r} is no list; pass paths of modules, or a dict of such")
    if is_observable(student) and not isinstance(boundaries, Mapping):
        return _own(student, teacher, boundaries)
    if not boundaries:
        return None
    paths = dict(boundaries) if isinstance(boundaries, Mapping) else {path: path for path in boundaries}
    for path, other in paths.items():
        _require(student, path, "student")
        _require(teacher, other, "teacher")
    return Hooked(student, {path: path for path in paths}, "student"), Hooked(teacher, paths, "teacher")


def is_observable(module: Any) -> bool:
    """Whether a module is :class:`Observable`, without asking ``__getattr__`` for a method that it passes on."""
    return callable(getattr(type(module), "observe", None)) and hasattr(module, "boundaries")


def source_of(student: nn.Module, teacher: nn.Module) -> nn.Module | None:
    """What a student of own names is compared with, where there is anything."""
    if not is_observable(student):
        return None
    names = set(cast("Observable", student).boundaries)
    for other in (teacher, getattr(student, "source", None)):
        if isinstance(other, nn.Module) and is_observable(other) and names <= set(cast("Any", other).boundaries):
            return other
    return None


def _own(student: nn.Module, teacher: nn.Module, asked: Sequence[str] | None) -> tuple[Reader, Reader] | None:
    known = tuple(cast("Observable", student).boundaries)
    for name in asked or ():
        if name not in known:
            raise InputError(f"the student has no boundary '{name}'{nearest(str(name), known)}")
    names = known if asked is None else tuple(name for name in known if name in asked)
    source = source_of(student, teacher)
    if not names or (source is None and asked is None):
        return None
    if source is None:
        raise InputError(
            f"neither {type(student).__name__}.source nor the teacher gives the boundaries of the student; pass "
            "boundaries={path: path} of modules, or none"
        )
    return Observed(cast("Observable", student), names), Observed(cast("Observable", source), names)


def _require(module: nn.Module, path: Any, role: str) -> None:
    known = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    if path not in known:
        raise InputError(f"the {role} has no module '{path}'{nearest(str(path), known)}")
