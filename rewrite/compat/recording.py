"""Operators that are recorded, by exporters, traces and modes."""

from __future__ import annotations

import contextlib
import os
import traceback
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def is_recording() -> bool:
    """Whether something sees each operator that runs: an export, a trace, or a mode that counts or logs them."""
    # the second stack is the whole process's, and the key says whether it is this thread that uses it
    return (
        is_jit_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch)
    )


def is_jit_tracing() -> bool:
    """Whether ``torch.jit.trace`` records what runs."""
    return torch._C._get_tracing_state() is not None


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Nothing sees what runs: no mode of dispatch or of functions, no trace."""
    from torch.overrides import _pop_mode, _push_mode
    from torch.utils._python_dispatch import _disable_current_modes

    jit: Any = torch._C
    state = jit._get_tracing_state()
    jit._set_tracing_state(None)
    functions = [_pop_mode() for _ in range(jit._len_torch_function_stack())]
    try:
        with _disable_current_modes():
            yield
    finally:
        for mode in reversed(functions):
            _push_mode(mode)
        jit._set_tracing_state(state)


@contextlib.contextmanager
def whole_stacks() -> Iterator[None]:
    """Recorded operators keep the whole of the user's stack from the first ``forward`` on.

    Exports keep the frames named ``forward`` alone, and an operator in a helper function then seems to be on the line
    that calls the helper. Holds for all threads, and for the others does no more than this.
    """
    from torch.fx import proxy

    tracer: Any = proxy.TracerBase
    original = tracer._filter_traceback_frames
    folder = os.path.dirname(torch.__file__)

    def filtered(self: Any, summary: traceback.StackSummary) -> Any:
        if not self._record_forward_stack_traces_only:
            return original(self, summary)
        first = next((i for i, frame in enumerate(summary) if frame.name == "forward"), len(summary))
        kept = [frame for frame in summary[first:] if frame.name == "forward" or not frame.filename.startswith(folder)]
        return traceback.StackSummary.from_list(kept)

    tracer._filter_traceback_frames = filtered
    try:
        yield
    finally:
        tracer._filter_traceback_frames = original


def is_stand_in(value: Any) -> bool:
    """Whether a tensor has no values: an exporter puts it in the place of one that has."""
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(value, (FakeTensor, FunctionalTensor))


def interpret(module: torch.fx.GraphModule, args: Sequence[Any]) -> Any:
    """Run a module node by node; what is recorded meanwhile takes over the metadata of its nodes."""
    from torch.fx.traceback import preserve_node_meta

    with preserve_node_meta():
        return torch.fx.Interpreter(module).run(*args)
