"""Calling a replica of the model twice, to see what it returns and what a call leaves behind.

Tracing shows one call. Whether a second call does the same, only calling twice tells: lazily initialized modules,
counters and caches are all found here, by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.errors import CaptureError
from rewrite.trace import twin
from rewrite.trace.compare import PLAIN, difference, same, shared_memory, show
from rewrite.trace.errors import capture_error, input_error, is_known, place, user_line
from rewrite.trace.hidden import HiddenWriteError, without_hidden_writes
from rewrite.trace.isolate import Generators, foreign_name, foreign_state

if TYPE_CHECKING:
    from collections.abc import Mapping

MISSING = "nothing"


@dataclass(frozen=True)
class Call:
    """One eager call.

    Attributes:
        outputs: the flat outputs, as they were when the call returned.
        inputs: the flat inputs after the call.
        spec: the tree of the outputs.
        sharing: which outputs share memory with inputs, weights and each other.
        written: registered tensors and attributes that the call wrote, value before and after.
    """

    outputs: list[Any]
    inputs: list[Any]
    spec: compat.TreeSpec
    sharing: frozenset[frozenset[str]]
    written: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Rehearsal:
    """Two calls of a replica on the example, the second with what the first left behind.

    Attributes:
        first, second: the calls.
        registered: the names of parameters and buffers.
    """

    first: Call
    second: Call
    registered: frozenset[str]

    @property
    def once(self) -> dict[str, tuple[Any, Any]]:
        """What the first call wrote and the second did not."""
        return {name: pair for name, pair in self.first.written.items() if name not in self.second.written}

    @property
    def state(self) -> dict[str, tuple[Any, Any]]:
        """The parameters and buffers that the first call wrote."""
        return {name: pair for name, pair in self.first.written.items() if name in self.registered}


def rehearse(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Rehearsal:
    """Call a replica of ``model`` twice with the same random numbers.

    Raises:
        InputError: the call raises.
        CaptureError: the calls cannot come from one graph: forward registers tensors, initializes itself on its first
            call, draws from Python's generators, or depends on an attribute that it changes.
    """
    generators = Generators(model)
    foreign = foreign_state()
    with twin.replica(model) as copy:
        names = twin.registered(copy)
        # what a call has not written is still equal to the user's, so no copies are needed to compare with
        known = twin.leaves(model)
        first = _call(copy, args, kwargs, model, known)
        _refuse_registration(model, names, twin.registered(copy))
        moved = foreign_name(foreign, foreign_state())
        if moved:
            raise CaptureError(
                f"{type(model).__name__} draws from Python's module '{moved}' in forward, and a graph would repeat one "
                "draw for ever; draw with torch"
            )
        generators.rewind()
        known = {name: value for name, value in known.items() if first.written.get(name, (0, 0))[1] is not MISSING}
        known |= {name: new for name, (_, new) in first.written.items() if new is not MISSING}
        second = _call(copy, args, kwargs, model, known)
    rehearsal = Rehearsal(first, second, frozenset(names))
    _refuse_first_call(model, rehearsal)
    _refuse_hidden_state(model, rehearsal)
    return rehearsal


def refuse_hidden_writes(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Call a replica with gradients on, and refuse a model that writes values where autograd does not see it.

    Raises:
        CaptureError: forward writes under ``no_grad``, or through ``detach()`` or ``.data``, to a value with gradients.
    """
    flat, spec = compat.tree_flatten((args, dict(kwargs)))
    call_args, call_kwargs = compat.tree_unflatten(twin.clones(flat), spec)
    with twin.replica(model) as copy:
        try:
            with without_hidden_writes():
                copy(*call_args, **call_kwargs)
        except HiddenWriteError as error:
            raise CaptureError(
                f"{type(model).__name__} writes with '{error.operator}'{place(user_line(error))} to a value with "
                "gradients, where autograd does not see it, and a graph would lose its gradient; compute a new value "
                "instead, or leave this part out"
            ) from error
        except Exception:  # forward may be one that runs without gradients only, and the calls before went well
            return


def _call(
    copy: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], model: nn.Module, known: Mapping[str, Any]
) -> Call:
    """One call of ``copy``, whose state has the values ``known``."""
    flat, spec = compat.tree_flatten((args, dict(kwargs)))
    inputs = twin.clones(flat)
    call_args, call_kwargs = compat.tree_unflatten(inputs, spec)
    before = {name: (value, _mark(value)) for name, value in twin.leaves(copy).items()}
    try:
        with torch.no_grad():
            result = copy(*call_args, **call_kwargs)
    except Exception as error:
        raise (capture_error if is_known(error) else input_error)(error, model) from error
    outputs, out_spec = compat.tree_flatten(result)
    for leaf in outputs:
        if not isinstance(leaf, (Tensor, *PLAIN)):
            raise CaptureError(
                f"{type(model).__name__} returns a {type(leaf).__qualname__}, neither a tensor nor a number nor a "
                "container of such; call torch.export.register_dataclass for a dataclass, or register it as a pytree"
            )
    after = twin.leaves(copy)
    written: dict[str, tuple[Any, Any]] = {}
    for name, value in after.items():
        if name not in known:
            written[name] = (MISSING, _kept(value))
        elif not same(known[name], value) or _rewritten(before.get(name), value):
            written[name] = (known[name], _kept(value))
    written.update({name: (value, MISSING) for name, value in known.items() if name not in after})
    tensors = {name: value for name, value in after.items() if isinstance(value, Tensor)}
    sharing = shared_memory(outputs, inputs, tensors)
    # the next call may write to what this one returned
    return Call(twin.clones(outputs), twin.clones(inputs), out_spec, sharing, written)


def _rewritten(before: tuple[Any, Any] | None, value: Any) -> bool:
    """Whether a tensor was written or replaced, perhaps by the values it had."""
    return isinstance(value, Tensor) and (before is None or before[0] is not value or before[1] != _mark(value))


def _kept(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _mark(value: Any) -> Any:
    """What changes when a tensor is written in place, or given other memory through ``.data``."""
    if not isinstance(value, Tensor) or value.is_inference():
        return None
    return value._version, value.data_ptr() if value.layout is torch.strided else 0


def change(name: str, pair: tuple[Any, Any]) -> str:
    """``'done' (False, then True)``."""
    old, new = (value if value is MISSING else show(value) for value in pair)
    return f"'{name}' ({old}, then {new})" if old != new else f"'{name}'"


def changes(written: Mapping[str, tuple[Any, Any]], most: int = 3) -> str:
    """Changed names and values for a message, at most a few."""
    parts = [change(name, pair) for name, pair in list(written.items())[:most]]
    more = len(written) - most
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def _refuse_registration(model: nn.Module, before: set[str], after: set[str]) -> None:
    new = sorted((after - before) or (before - after))
    if new:
        verb = "registers" if after - before else "removes"
        raise CaptureError(
            f"{type(model).__name__} {verb} '{new[0]}' in forward; call the model once on an example input first, so "
            "that its parameters and buffers are complete"
        )


def _refuse_first_call(model: nn.Module, rehearsal: Rehearsal) -> None:
    """Refuse a module whose first call writes parameters or buffers and whose second call does not."""
    if any(name in rehearsal.registered for name in rehearsal.once):
        raise CaptureError(
            f"{type(model).__name__} initializes itself on its first call: it changes {changes(rehearsal.once)} and "
            "then no more; call the model once on an example input first"
        )


def _refuse_hidden_state(model: nn.Module, rehearsal: Rehearsal) -> None:
    """Refuse a module whose two calls differ although no parameter or buffer was written that could explain it."""
    first, second = rehearsal.first, rehearsal.second
    if first.spec != second.spec:
        found = "have another structure"
    else:
        exact = [difference(a, b, exact=True) for a, b in zip(first.outputs, second.outputs, strict=True)]
        found = next((text for text in exact if text), "")
    if not found or (rehearsal.state and first.spec == second.spec):
        return
    changed = first.written
    if changed:
        what = f"forward changes {changes(changed)}, and the result depends on it"
    else:
        # equal inputs, weights and random numbers, and nothing was seen to change
        if all(not difference(a, b) for a, b in zip(first.outputs, second.outputs, strict=False)):
            return
        what = "two calls on the same input do not agree"
    remedy = (
        "call the model once on an example input first" if rehearsal.once else "keep the state out of forward, or in a "
        "buffer that is written in place"
    )  # fmt: skip
    raise CaptureError(f"{type(model).__name__} has state that a graph cannot keep: {what}; {remedy}")
