"""Which kinds of calls a result is ready for, and what becomes of the others."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

from rewrite import compat
from rewrite.errors import InputError
from rewrite.events import emit
from rewrite.names import nearest
from rewrite.result import call

if TYPE_CHECKING:
    from collections.abc import Hashable

Policy = Literal["compile", "eager", "error"]
"""What becomes of a call that the result is not ready for."""

_DONE = {"compile": "compiled", "eager": "run operator by operator", "error": "refused"}
_LISTED = 8


class Shapes:
    """The kinds of calls that were announced, in the sense of :func:`rewrite.result.call.kind`.

    As long as there is none, the first call that succeeds is one.

    Args:
        policy: what becomes of calls of other kinds.

    Raises:
        InputError: an unknown policy.
    """

    def __init__(self, policy: Policy = "compile"):
        if policy not in _DONE:
            raise InputError(f"on_new_shape={policy!r} is unknown{nearest(str(policy), _DONE)}")
        self.policy = policy
        self._ready: dict[Hashable, str] = {}

    @property
    def undecided(self) -> bool:
        """Whether no call was announced yet."""
        return not self._ready

    def announce(self, flat: list[Any], structure: call.Tree) -> None:
        """Be ready for calls like this one from now on."""
        # made anew, since copies share it
        self._ready = {**self._ready, call.kind(flat, structure): _text(flat, structure)}

    def ready(self, kind: Hashable) -> bool:
        """Whether a kind was announced."""
        return kind in self._ready

    def compiles(self, flat: list[Any], structure: call.Tree) -> bool:
        """Whether a call that has no lowering gets one.

        Raises:
            InputError: the result is not ready for the call, and that is an error.
        """
        if self.undecided or self.ready(call.kind(flat, structure)):
            return True
        given, known = _text(flat, structure), tuple(dict.fromkeys(self._ready.values()))
        emit("new-shape", f"a call is not like the announced ones and is {_DONE[self.policy]}: ({given})",
             given=given, ready=list(known), policy=self.policy)  # fmt: skip
        if self.policy == "error":
            more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
            raise InputError(
                f"the result is not ready for ({given}), only for ({'), ('.join(known[:_LISTED])}){more}; call "
                "result.warmup(...) with such inputs first, or pass on_new_shape='compile' or 'eager' to optimize"
            )
        return self.policy == "compile"

    def copy(self) -> Shapes:
        """One of the same policy, ready for the same kinds."""
        return copy.copy(self)


def _text(flat: list[Any], structure: call.Tree) -> str:
    args, kwargs = compat.tree_unflatten(flat, call.tree_of(structure))
    parts = [*map(_argument, args), *(f"{key}={_argument(value)}" for key, value in kwargs.items())]
    return f"{', '.join(parts)}{' under autocast' if compat.is_any_autocast() else ''}"


def _argument(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_argument(each)}' for key, each in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_argument, value))}]"
    return call.text([value])
