"""Exported programs."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import TreeSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor


_ASKS = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))


def unlift(program: torch.export.ExportedProgram) -> torch.fx.GraphModule:
    """The exported program as a module whose weights are attributes under their original names, without guards."""
    module = program.module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    return module


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


def data_dependent_errors() -> tuple[type[Exception], ...]:
    """What tracing raises where Python needs the value of a tensor."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException)


@contextlib.contextmanager
def known_values(known: Callable[[Tensor], bool]) -> Iterator[None]:
    """Within, ``torch.export`` traces with the values of the buffers that are ``known``, so that Python may ask for
    them, and for what is computed from them alone."""
    from torch.export import _trace

    names = vars(_trace)
    fakify = names["_fakify_params_buffers"]

    def with_values(mode: Any, module: torch.nn.Module) -> dict[str, Tensor]:
        fakes: dict[str, Any] = fakify(mode, module)
        for name, buffer in module.named_buffers(remove_duplicate=False):
            if known(buffer) and fakes[name].constant is None:
                # a copy, for what writes to the buffer while tracing writes to it too
                fakes[name].constant = buffer.detach().clone()
                mode.fake_tensor_converter.add_constant_storage_mapping(fakes[name])
        return fakes

    names["_fakify_params_buffers"] = with_values
    try:
        yield
    finally:
        names["_fakify_params_buffers"] = fakify


def decided_buffers(program: torch.export.ExportedProgram, known: Callable[[str], bool]) -> tuple[str, ...]:
    """The names of the ``known`` buffers whose values, or what was computed from them, Python asked for.

    All that are known where the program does not tell: in regions of their own, or if nothing is left of the question.
    """
    buffers = program.graph_signature.inputs_to_buffers
    every = tuple(name for name in dict.fromkeys(buffers.values()) if known(name))
    asked = [node for node in program.graph.nodes if _asks(node)]
    regions = [module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    if not asked or any(_asks(node) for region in regions[1:] for node in region.graph.nodes):
        return every
    stack, seen = asked, set(asked)
    while stack:
        for node in stack.pop().all_input_nodes:
            if node not in seen:
                seen.add(node)
                stack.append(node)
    named = {buffers.get(str(node.name)) for node in seen if node.op == "placeholder"}
    return tuple(name for name in every if name in named)


def _asks(node: torch.fx.Node) -> bool:
    """Whether a node gives Python the value of a tensor: what ``bool(tensor)`` and ``tensor.item()`` leave behind."""
    return isinstance(node.target, torch._ops.OpOverload) and not _ASKS.isdisjoint(node.target.tags)


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


@contextlib.contextmanager
def without_partial_graphs() -> Iterator[None]:
    """Within, ``torch.export`` does not print the part of a program that it got to before it raises."""
    from torch.export import _trace

    names = vars(_trace)
    names["print"] = lambda *_, **__: None
    try:
        yield
    finally:
        names.pop("print", None)
