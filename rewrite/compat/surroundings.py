"""What surrounds a call: modes, hooks, autocast, optimizers, devices, wrappers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch._C._dynamo.eval_frame import get_eval_frame_callback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


def on_optimizer_step(hook: Callable[..., None]) -> torch.utils.hooks.RemovableHandle:
    """Call ``hook(optimizer, args, kwargs)`` after each step of any optimizer, fused ones included."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    return register_optimizer_step_post_hook(hook)


def are_modes_active() -> bool:
    """Whether a mode that changes what operators do is active: of functions (a default device), or of dispatch."""
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    return bool(_get_current_function_mode_stack() or _get_current_dispatch_mode_stack())


def has_global_hooks() -> bool:
    """Whether hooks are registered that run at every call of any module."""
    from torch.nn.modules import module

    return bool(module._has_any_global_hook())


def is_any_autocast() -> bool:
    """Whether autocast is on for some kind of device."""
    return bool(torch._C._is_any_autocast_enabled())


def without_autocast() -> contextlib.AbstractContextManager[None]:
    """No autocast, at less cost than one ``torch.autocast`` for each kind of device."""
    return torch._C._DisableAutocast()


@contextlib.contextmanager
def autocast(dtypes: Mapping[str, torch.dtype]) -> Iterator[None]:
    """Autocast to the given dtypes, by kind of device, and none besides."""
    with without_autocast(), contextlib.ExitStack() as stack:
        for kind, dtype in dtypes.items():
            # with the cache on, a conversion is seen once only
            stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
        yield


def is_dynamo_watching() -> bool:
    """Whether Dynamo looks at each Python function that this thread calls, to compile it."""
    return get_eval_frame_callback() not in (None, False)


def is_transforming() -> bool:
    """Whether a transform of ``torch.func`` (``grad``, ``vmap``, ``jvp``) is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def device_kinds() -> tuple[str, ...]:
    """The kinds of devices that this process can compute on: ``"cpu"``, and the accelerator's."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


def has_device(name: str) -> bool:
    """Whether this process can compute on a device such as ``"cuda:1"``."""
    device = torch.device(name)
    if device.type == "cpu":
        return True
    return device.type in device_kinds() and (device.index or 0) < torch.accelerator.device_count()


def is_fsdp(module: Any) -> bool:
    """Whether a module shards its parameters: FullyShardedDataParallel or ``fully_shard``."""
    name = type(module).__name__
    return name in ("FullyShardedDataParallel", "FSDPModule") or any(
        base.__name__ == "FSDPModule" for base in type(module).__mro__
    )


def uncompiled(module: Any) -> Any:
    """The module that ``torch.compile`` was given, for what it returned; any other module as it is."""
    return getattr(module, "_orig_mod", module) if type(module).__name__ == "OptimizedModule" else module
