"""TorchInductor."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _forget_threads() -> None:
    """In a forked process: let Inductor start threads of its own, for those of its parent are not there to wait for."""
    module = sys.modules.get("torch._inductor.async_compile")
    if module is not None:
        module.AsyncCompile.pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def cpp_compiler() -> str | None:
    """The C++ compiler that TorchInductor would use, or None."""
    from torch._inductor import cpp_builder, exc

    try:
        return str(cpp_builder.get_cpp_compiler())
    except (exc.InvalidCxxCompiler, ImportError):
        return None


def inductor_compile(
    module: torch.fx.GraphModule, inputs: Sequence[Any], options: dict[str, Any]
) -> Callable[..., Any]:
    """Compile a functional ATen graph for inputs of these sizes with TorchInductor, without Dynamo and its guards.

    The module's plain code is replaced. It must return a tuple of tensors.
    """
    from torch import _inductor

    return _inductor.compile(module, list(inputs), options)  # type: ignore[no-any-return]


def inductor_compile_traced(
    module: torch.fx.GraphModule, examples: Sequence[Any], options: dict[str, Any]
) -> Callable[..., Any]:
    """Compile a graph with AOTAutograd and TorchInductor for recorded values, inside a backend of ``torch.compile``.

    Sizes may be symbolic, gradients pass through, and the graph may write to its inputs.
    """
    from torch._inductor.compile_fx import compile_fx

    compiled: Any = compile_fx(module, list(examples), config_patches=options)
    return compiled  # type: ignore[no-any-return]


def inductor_mode(mode: str) -> dict[str, Any]:
    """The options that a ``mode`` of ``torch.compile`` stands for.

    Raises:
        RuntimeError: there is no such mode.
    """
    from torch import _inductor

    return dict(_inductor.list_mode_options(mode))


def inductor_options() -> frozenset[str]:
    """The names of Inductor's options."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())
