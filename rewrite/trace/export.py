"""From a module to an exported, decomposed and unlifted program."""

from __future__ import annotations

import contextlib
import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from rewrite import compat
from rewrite.errors import CaptureError
from rewrite.provenance import location
from rewrite.trace import batch, twin
from rewrite.trace.errors import place

if TYPE_CHECKING:
    from torch.fx import Node

aten = torch.ops.aten

_FEW = 64


@dataclass(frozen=True)
class Exported:
    """An unlifted program.

    Attributes:
        module: operators on placeholders and ``get_attr`` weights; state is written by ``copy_`` before the output.
        functions: names of the custom autograd functions that tracing went through.
        checkpoints: whether activation checkpoints were.
        decided: names of the buffers on whose values Python decided.
    """

    module: fx.GraphModule
    functions: tuple[str, ...]
    checkpoints: bool
    decided: tuple[str, ...] = ()


def may_decide(tensor: torch.Tensor) -> bool:
    """Whether Python may decide on the value of a buffer: a flag or a counter, not statistics that training moves."""
    return tensor.numel() <= _FEW and not tensor.is_floating_point() and not tensor.is_complex()


def export(
    shadow: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plan: batch.Plan,
    decide: bool = False,
) -> Exported:
    """Export ``shadow`` and decompose the program to functional, high-level ATen.

    Args:
        shadow: the module.
        args, kwargs: the example call.
        plan: which sizes are symbolic.
        decide: whether Python may ask for the values of the buffers that :func:`may_decide` allows.

    Raises:
        CaptureError: forward registers tensors, or calls graphs of its own.
        Exception: whatever ``torch.export`` raises.
    """
    _name_keywords(shadow, kwargs)
    args, kwargs, shapes = batch.example(plan, args, kwargs, shadow)
    before = twin.registered(shadow)
    seen: dict[str, None] = {}
    known = compat.known_values(may_decide) if decide else contextlib.nullcontext()
    with compat.watch_autograd_functions(lambda name: seen.setdefault(name)), known, compat.whole_stacks():
        program = torch.export.export(shadow, args, kwargs, dynamic_shapes=shapes, strict=False)
    # with a tensor registered while tracing, decomposing writes its value into the user's input
    new = sorted(twin.registered(shadow) ^ before)
    if new:
        raise CaptureError(
            f"{type(shadow).__name__} registers '{new[0]}' in forward; call the model once on an example input first"
        )
    allowed = {name for name, buffer in shadow.named_buffers(remove_duplicate=False) if may_decide(buffer)}
    decided = compat.decided_buffers(program, allowed.__contains__) if decide else ()
    _keep_no_grad(program.graph_module)
    module = compat.unlift(compat.decomposed(program))
    _refuse_nested_graphs(module, shadow)
    functions = tuple(name for name in seen if name != "checkpoint")
    return Exported(module, functions, "checkpoint" in seen, decided)


def _name_keywords(shadow: torch.nn.Module, kwargs: dict[str, Any]) -> None:
    """Give a forward that takes ``**kwargs`` a signature that names them: ``export`` loses the shapes of others."""
    signature = inspect.signature(shadow.forward)
    explicit = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    known = {p.name for p in explicit}
    named = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY) for key in kwargs if key not in known]
    if not named:
        return
    forward = shadow.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    call.__signature__ = signature.replace(parameters=[*explicit, *named])  # type: ignore[attr-defined]
    shadow.forward = call


def _keep_no_grad(module: fx.GraphModule) -> None:
    """Detach what regions without grad return, before decomposing inlines them and their gradients come back."""
    for child in module.children():
        if isinstance(child, fx.GraphModule):
            _keep_no_grad(child)
    changed = False
    for node in list(module.graph.nodes):
        if compat.grad_region(node) is not False:
            continue
        for item in list(node.users):
            if not isinstance(item.meta.get("val"), torch.Tensor):
                continue
            with module.graph.inserting_after(item):
                detached = module.graph.call_function(aten.detach.default, (item,))
            detached.meta = dict(item.meta)
            item.replace_all_uses_with(detached, delete_user_cb=lambda user, new=detached: user is not new)
            changed = True
    if changed:
        module.recompile()


def _refuse_nested_graphs(module: fx.GraphModule, shadow: torch.nn.Module) -> None:
    for node in module.graph.nodes:
        if node.op == "call_function" and compat.is_nested_graph(node.target):
            raise CaptureError(_nested(node, shadow))


def _nested(node: Node, shadow: torch.nn.Module) -> str:
    # `cond` is traced by Dynamo on the way, whose generated code is the innermost frame
    node.meta["stack_trace"] = re.sub(r' *File "<.*\n.*\n?', "", node.meta.get("stack_trace") or "")
    return (
        f"{type(shadow).__name__} cannot be captured: '{node.target}'{place(location(node))} calls graphs of its own, "
        "which no rewrite looks into; use torch.where, or optimize the parts before and after it"
    )
