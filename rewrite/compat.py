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
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, statically_known_true
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

__all__ = [
    "CodeGen",
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "TreeSpec",
    "are_modes_active",
    "argument_names",
    "autocast",
    "cpp_compiler",
    "data_dependent_errors",
    "device_kinds",
    "dispatched",
    "dynamo_requests",
    "dynamo_source",
    "fake_mode_of",
    "float_symbol",
    "functional_graph",
    "grad_region",
    "graph_number",
    "has_device",
    "has_global_hooks",
    "has_unbacked_size",
    "hint",
    "inductor_compile",
    "inductor_compile_traced",
    "inductor_mode",
    "inductor_options",
    "interpret",
    "is_any_autocast",
    "is_fsdp",
    "is_jit_tracing",
    "is_nested_graph",
    "is_recording",
    "is_stand_in",
    "is_static_by_default",
    "is_subclass",
    "is_transforming",
    "is_tree_class",
    "is_unbacked",
    "leaf_spec",
    "on_optimizer_step",
    "pytree_codegen",
    "python_dispatcher",
    "registered_class",
    "registered_name",
    "statically_known_true",
    "signature_trees",
    "specialize_floats",
    "symbolic_mode",
    "tree_flatten",
    "tree_map",
    "tree_unflatten",
    "uncompiled",
    "unlift",
    "unrecorded",
    "without_autocast",
    "without_fresh_symbols",
    "without_partial_graphs",
    "watch_autograd_functions",
]


def leaf_spec() -> TreeSpec:
    """The structure of a value that is no container."""
    return tree_flatten(0)[1]


def registered_class(name: str) -> Any:
    """The class that torch has for trees under a name for files, or None; nothing is imported for it."""
    return None if name == _pytree.NO_SERIALIZED_TYPE_NAME_FOUND else _pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(name)


def registered_name(kind: Any) -> str | None:
    """The name of such a class for files, None for one that has none."""
    found = _pytree.SUPPORTED_SERIALIZED_TYPES.get(kind)
    name = None if found is None else found.serialized_type_name
    return None if name == _pytree.NO_SERIALIZED_TYPE_NAME_FOUND else name


def is_tree_class(kind: Any) -> bool:
    """Whether torch takes values of a class apart."""
    return kind in _pytree.SUPPORTED_NODES


def dispatched(library: str, name: str, overload: str) -> torch._ops.OpOverload | None:
    """An operator of the dispatcher, or None: ``torch.ops`` has those of TorchScript too, which print and save."""
    if not torch._C._dispatch_has_kernel(f"{library}::{name}{'' if overload == 'default' else f'.{overload}'}"):
        return None
    found = getattr(getattr(getattr(torch.ops, library), name), overload)
    return found if isinstance(found, torch._ops.OpOverload) else None


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


def symbolic_mode(hints: Mapping[str, int]) -> tuple[FakeTensorMode, dict[str, torch.SymInt]]:
    """A new fake mode and symbolic sizes in it, by name; ``hints`` are the numbers that they have in an example."""
    from torch._dynamo.source import ConstantSource

    shapes = ShapeEnv()
    sizes: dict[str, Any] = {}
    for name, number in hints.items():
        symbol = shapes.create_symbol(number, ConstantSource(name), dynamic_dim=DimDynamic.DYNAMIC)
        sizes[name] = shapes.create_symintnode(symbol, hint=number)
    return FakeTensorMode(shape_env=shapes), sizes


def hint(size: torch.SymInt) -> int:
    """The number that a symbolic size has in the example that it was traced with."""
    return int(size.node.hint)


def is_unbacked(size: torch.SymInt) -> bool:
    """Whether a number depends on the values of tensors, so that there is none for the example."""
    return size.node.hint is None


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


def has_device(name: str) -> bool:
    """Whether this process can compute on a device such as ``"cuda:1"``."""
    device = torch.device(name)
    if device.type == "cpu":
        return True
    return device.type in device_kinds() and (device.index or 0) < torch.accelerator.device_count()


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


# -- operators that are recorded --------------------------------------------------------------------------------------


def is_recording() -> bool:
    """Whether something sees each operator that runs: an export, a trace, or a mode that counts or logs them."""
    return is_jit_tracing() or bool(torch._C._len_torch_dispatch_stack() or _len_torch_dispatch_stack_pre_dispatch())


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


def is_stand_in(value: Any) -> bool:
    """Whether a tensor has no values: an exporter puts it in the place of one that has."""
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(value, (FakeTensor, FunctionalTensor))


def interpret(module: torch.fx.GraphModule, args: Sequence[Any]) -> Any:
    """Run a module node by node; what is recorded meanwhile takes over the metadata of its nodes."""
    from torch.fx.traceback import preserve_node_meta

    with preserve_node_meta():
        return torch.fx.Interpreter(module).run(*args)


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


# -- the graphs of Dynamo ---------------------------------------------------------------------------------------------


def dynamo_source(node: torch.fx.Node) -> str:
    """Where Dynamo found the value of a placeholder: ``L['self']._modules['conv']._parameters['weight']``, or ''."""
    source = getattr(node.meta.get("grapharg"), "source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def functional_graph(module: torch.fx.GraphModule, examples: Sequence[Any]) -> tuple[torch.fx.GraphModule, Any]:
    """A graph of Dynamo as a functional one of high-level ATen, and its signature.

    The placeholders are the module's own parameters and buffers, then its inputs; the outputs are the values of
    mutations, then those of the module. ``examples`` are recorded values.
    """
    from torch._functorch.aot_autograd import aot_export_module
    from torch.fx.experimental import proxy_tensor

    try:
        made: Any = aot_export_module(module, examples, trace_joint=False, pre_dispatch=True, decompositions={})
    finally:
        # which would keep the module and its weights alive until the next trace
        getattr(proxy_tensor, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", {}).clear()
    return made[0], made[1]


def float_symbol(node: torch.fx.Node) -> str | None:
    """For a placeholder of Dynamo that is a Python float, taken for a tensor of which the graph reads the item: the
    name of its symbol; None for any other."""
    memo = getattr(node.meta.get("example_value"), "item_memo", None)
    reads_item = any(user.op == "call_method" and user.target == "item" for user in node.users)
    return getattr(getattr(getattr(memo, "node", None), "_expr", None), "name", None) if reads_item else None


def is_static_by_default() -> bool:
    """Whether Dynamo takes a size or a number for a constant until it changes: without ``dynamic=True``."""
    from torch._dynamo import config

    return bool(config.assume_static_by_default)


def specialize_floats(symbols: Collection[str]) -> None:
    """Let Dynamo trace again, with Python floats as constants: raises its own request to begin anew.

    Args:
        symbols: of the floats; those that were asked for before are no reason to begin anew.
    """
    from torch._dynamo.exc import TensorifyScalarRestartAnalysis
    from torch._dynamo.symbolic_convert import TensorifyState

    fresh = [symbol for symbol in symbols if not TensorifyState.should_specialize(symbol)]
    for symbol in fresh:
        TensorifyState.specialize(symbol)
    if fresh:
        raise TensorifyScalarRestartAnalysis


@contextlib.contextmanager
def without_fresh_symbols(mode: FakeTensorMode) -> Iterator[None]:
    """Within, sizes that depend on values are made and forgotten."""
    if mode.shape_env is None:
        yield
    else:
        with mode.shape_env.ignore_fresh_unbacked_symbols():
            yield


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


def is_subclass(value: torch.Tensor) -> bool:
    """Whether a tensor is a wrapper around others (DTensor, quantized weights)."""
    return is_traceable_wrapper_subclass(value)


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


def dynamo_requests() -> tuple[type[Exception], ...]:
    """What a backend raises, or lets pass, to make Dynamo do something else: no failures."""
    from torch._dynamo import exc

    return (exc.TensorifyScalarRestartAnalysis, exc.SkipFrame)


def graph_number() -> str:
    """Dynamo's number of the graph that it compiles: that of the frame, and that of its compilation; '' outside."""
    from torch._guards import CompileContext

    number = CompileContext.current_compile_id()
    return "" if number is None else str(number)


def inductor_options() -> frozenset[str]:
    """The names of Inductor's options."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())
