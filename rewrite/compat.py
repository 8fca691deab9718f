"""The private or young torch names that this project stands on, one place for all.

Everything else imports them from here, so that a new torch release is a change to this file and its tests alone.
Supported: torch 2.11 and newer.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch._dispatch.python import enable_python_dispatcher as python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "CodeGen",
    "FakeTensor",
    "FakeTensorMode",
    "TreeSpec",
    "argument_names",
    "cpp_compiler",
    "data_dependent_errors",
    "device_kinds",
    "fake_mode_of",
    "grad_region",
    "has_unbacked_size",
    "inductor_compile",
    "is_any_autocast",
    "is_fsdp",
    "is_nested_graph",
    "is_transforming",
    "on_optimizer_step",
    "pytree_codegen",
    "python_dispatcher",
    "statically_known_true",
    "signature_trees",
    "tree_flatten",
    "tree_map",
    "tree_unflatten",
    "uncompiled",
    "unlift",
    "watch_autograd_functions",
]


def pytree_codegen(argument_names: Sequence[str], in_spec: TreeSpec, out_spec: TreeSpec | None) -> CodeGen:
    """Code generation that gives a flat graph the user's own signature: nested inputs, keywords, nested outputs."""
    return _PyTreeCodeGen(_PyTreeInfo(list(argument_names), in_spec, out_spec))


def unlift(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """The exported program as a module whose weights are attributes under their original names, without guards."""
    module = program.module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    return module


def fake_mode_of(graph: torch.fx.Graph) -> FakeTensorMode | None:
    """The fake mode that all recorded values of a graph share, or None where no value is a tensor."""
    for node in graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None:
            return mode  # type: ignore[no-any-return]
    return None


def on_optimizer_step(hook: Callable[..., None]) -> torch.utils.hooks.RemovableHandle:
    """Call ``hook(optimizer, args, kwargs)`` after each step of any optimizer, fused ones included."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    return register_optimizer_step_post_hook(hook)


def is_any_autocast() -> bool:
    """Whether autocast is on for some kind of device."""
    return bool(torch._C._is_any_autocast_enabled())


def cpp_compiler() -> str | None:
    """The C++ compiler that TorchInductor would use, or None."""
    from torch._inductor import cpp_builder, exc

    try:
        return str(cpp_builder.get_cpp_compiler())
    except (exc.InvalidCxxCompiler, ImportError):
        return None


def is_transforming() -> bool:
    """Whether a transform of ``torch.func`` (``grad``, ``vmap``, ``jvp``) is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def device_kinds() -> tuple[str, ...]:
    """The kinds of devices that this process can compute on: ``"cpu"``, and the accelerator's."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


def inductor_compile(
    module: torch.fx.GraphModule, inputs: Sequence[Any], options: dict[str, Any]
) -> Callable[..., Any]:
    """Compile a functional ATen graph for inputs of these sizes with TorchInductor, without Dynamo and its guards.

    The module's plain code is replaced. It must return a tuple of tensors.
    """
    from torch import _inductor

    return _inductor.compile(module, list(inputs), options)  # type: ignore[no-any-return]


def is_fsdp(module: Any) -> bool:
    """Whether a module shards its parameters: FullyShardedDataParallel or ``fully_shard``."""
    name = type(module).__name__
    return name in ("FullyShardedDataParallel", "FSDPModule") or any(
        base.__name__ == "FSDPModule" for base in type(module).__mro__
    )


def uncompiled(module: Any) -> Any:
    """The module that ``torch.compile`` was given, for what it returned; any other module as it is."""
    return getattr(module, "_orig_mod", module) if type(module).__name__ == "OptimizedModule" else module


# -- exported programs ------------------------------------------------------------------------------------------------


def argument_names(module: torch.fx.GraphModule) -> tuple[str, ...]:
    """The names of the arguments of an unlifted program, as in the user's ``forward``."""
    return tuple(module.graph._codegen.pytree_info.orig_args)  # type: ignore[attr-defined]


def signature_trees(module: torch.fx.GraphModule) -> tuple[TreeSpec, TreeSpec]:
    """The trees of ``(args, kwargs)`` and of the result of an unlifted program."""
    info = module.graph._codegen.pytree_info  # type: ignore[attr-defined]
    return info.in_spec, info.out_spec


def is_nested_graph(target: Any) -> bool:
    """Whether an operator calls graphs of its own: ``cond``, ``map``, ``while_loop``, regions of another mode."""
    return isinstance(target, torch._ops.HigherOrderOperator)


def grad_region(node: torch.fx.Node) -> bool | None:
    """For a node that calls a region of another grad mode, that mode; None for every other node.

    ``export`` makes such a node for ``torch.no_grad()``, and decomposing the program inlines it without a trace.
    """
    if node.op == "call_function" and node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        return bool(node.args[0])
    return None


def has_unbacked_size(value: Any) -> bool:
    """Whether the recorded value is a tensor with a size that depends on the values of other tensors."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return isinstance(value, torch.Tensor) and bool(free_unbacked_symbols(value.shape))


def data_dependent_errors() -> tuple[type[Exception], ...]:
    """What tracing raises where Python needs the value of a tensor."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException)


@contextlib.contextmanager
def watch_autograd_functions(seen: Callable[[str], None]) -> Iterator[None]:
    """Call ``seen(name)`` for each custom autograd function that this thread applies; a checkpoint is ``"checkpoint"``.

    Tracing goes through such functions and loses their backward, and nothing in the exported program tells.
    """
    from torch.utils import checkpoint

    here = threading.get_ident()
    function: Any = torch.autograd.Function
    module: Any = checkpoint
    apply = function.__dict__["apply"]
    generator = module._checkpoint_without_reentrant_generator

    def watched_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == here:
            if cls is checkpoint.CheckpointFunction:
                seen("checkpoint")
            elif not cls.__module__.startswith("torch."):
                seen(cls.__qualname__)
        return apply.__func__(cls, *args, **kwargs)

    def watched_generator(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == here:
            seen("checkpoint")
        return generator(*args, **kwargs)

    function.apply, module._checkpoint_without_reentrant_generator = classmethod(watched_apply), watched_generator
    try:
        yield
    finally:
        function.apply, module._checkpoint_without_reentrant_generator = apply, generator
