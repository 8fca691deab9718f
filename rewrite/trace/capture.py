"""``capture``: a module and an example call become a graph that has been compared with the module."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rewrite import compat
from rewrite.errors import CaptureError, GraphError
from rewrite.events import emit
from rewrite.example import remember
from rewrite.provenance import location
from rewrite.trace import guard, twin
from rewrite.trace.batch import plans, squeezes_batch
from rewrite.trace.build import build
from rewrite.trace.compare import same, show
from rewrite.trace.errors import capture_error, depends_on_values, first_line, is_hopeless, place
from rewrite.trace.export import Exported, export, may_decide
from rewrite.trace.isolate import isolated
from rewrite.trace.judge import judge, takes_one_row
from rewrite.trace.normalize import normalize
from rewrite.trace.rehearse import changes, refuse_hidden_writes, rehearse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rewrite.graph import Graph
    from rewrite.trace.batch import Plan
    from rewrite.trace.rehearse import Rehearsal


@dataclass(frozen=True)
class Capture:
    """A captured model.

    Attributes:
        graph: the program in canonical functional form, over the user's very tensors.
        model: the module that was captured, without its wrappers.
        batch: the symbol of the batch in recorded sizes, None where the batch is fixed.
        flat_inputs: the leaves of the example ``(args, kwargs)``.
        notes: what the user should know, one sentence each.
        seconds: what capture took.
        one_row: whether the graph is right for a batch of one as well; forward may do something else with it.
        decided: the buffers on whose values Python decided in forward, and these values.
    """

    graph: Graph
    model: nn.Module
    batch: str | None
    flat_inputs: tuple[Any, ...]
    notes: tuple[str, ...]
    seconds: float
    one_row: bool = True
    decided: Mapping[str, torch.Tensor] = field(default_factory=dict)


def capture(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, *, training: bool = False
) -> Capture:
    """Capture ``model`` for an example call and compare the graph with it.

    The model is traced through a copy of its structure and called twice through a copy of its own; it is not changed.
    Inputs whose dimension 0 is that of the first tensor get a symbolic batch where forward allows it.

    Args:
        model: the module; wrappers for data parallelism and ``torch.compile`` are taken off.
        args: positional arguments of the example call.
        kwargs: keyword arguments of the example call.
        training: capture training behaviour and gradients; else the model has to be in evaluation mode.

    Raises:
        InputError: the model or the inputs do not fit.
        CaptureError: the model cannot be a functional graph; the message names the line or the attribute and a remedy.
    """
    start = time.perf_counter()
    kwargs = {} if kwargs is None else kwargs
    model = guard.unwrap(model)
    guard.check_call(model, args, kwargs, training)
    flat = compat.tree_flatten((args, kwargs))[0]
    with isolated(model):
        rehearsal = rehearse(model, args, kwargs)
        if training:
            refuse_hidden_writes(model, args, kwargs)
        graph, plan, notes, decided = _trace(model, args, kwargs, rehearsal, training)
        graph.differentiated = training
        remember(graph, flat)
        one_row = takes_one_row(model, graph, args, kwargs)
    notes += _state_notes(rehearsal) + _constant_notes(graph, flat) + _container_notes(model, graph, training)
    if not one_row:
        notes.append("forward does something else with a batch of one, which is captured on its own")
    seconds, name, batch = time.perf_counter() - start, type(model).__name__, _symbol(graph, plan)
    emit("captured", f"{name}: captured in {seconds:.2f} s", model=name, seconds=seconds, batch=batch, notes=notes)
    return Capture(graph, model, batch, tuple(flat), tuple(notes), seconds, one_row, decided)


def _trace(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rehearsal: Rehearsal, training: bool
) -> tuple[Graph, Plan, list[str], dict[str, torch.Tensor]]:
    """The first plan that gives a graph which does what the model does."""
    flat = compat.tree_flatten((args, kwargs))[0]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    failure: Exception | None = None
    for plan in plans(flat):
        last = not plan.carriers
        try:
            exported = _export(model, args, kwargs, plan)
            _check_decisions(model, exported, rehearsal)
            _check_functions(model, exported, training)
            graph = normalize(build(exported.module, flat, {**parameters, **buffers}))
        except CaptureError:
            raise
        except Exception as error:
            if last or is_hopeless(error):
                raise capture_error(error, model) from error
            failure = failure or error
            continue
        try:
            squeeze = squeezes_batch(graph)
            if squeeze is not None and any(flat[i].shape[0] == 1 for i in plan.carriers):
                raise GraphError(f"forward drops a batch of 1{place(location(squeeze))}")
            graph.check()
            judge(model, graph, rehearsal, args, kwargs)
        except Exception as error:
            if last:
                raise (error if isinstance(error, CaptureError) else capture_error(error, model)) from error
            failure = failure or error
            continue
        decided = {name: buffers[name].detach().clone() for name in exported.decided}
        notes = _function_notes(exported, training)
        notes += [
            f"forward decides on the value of '{name}', which is {show(value)}" for name, value in decided.items()
        ]
        if last and failure is not None:
            notes.append(_fixed_batch(flat, failure))
        return graph, plan, notes, decided
    raise AssertionError("the last plan is static and either returns or raises")


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], plan: Plan) -> Exported:
    """Export the model; where Python asks for the values of tensors, once more with those of flags and counters."""
    with twin.shadow(model) as shadow:
        try:
            return export(shadow, args, kwargs, plan)
        except Exception as error:
            if not depends_on_values(error) or not any(map(may_decide, model.buffers())):
                raise
            first = error
    with twin.shadow(model) as shadow:
        try:
            return export(shadow, args, kwargs, plan, decide=True)
        except Exception:
            raise first from None


def _check_decisions(model: nn.Module, exported: Exported, rehearsal: Rehearsal) -> None:
    written = [name for name in exported.decided if name in rehearsal.state]
    if written:
        raise CaptureError(
            f"{type(model).__name__} cannot be captured: Python decides on the value of '{written[0]}', which forward "
            "writes; use torch.where, or move the decision out of forward"
        )


def _check_functions(model: nn.Module, exported: Exported, training: bool) -> None:
    if training and exported.functions:
        raise CaptureError(
            f"{type(model).__name__} applies the autograd function '{exported.functions[0]}', whose backward a graph "
            "does not keep; register it with torch.library.custom_op, or leave this part out"
        )


# -- what the user should know ----------------------------------------------------------------------------------------


def _function_notes(exported: Exported, training: bool) -> list[str]:
    notes = [f"the backward of the autograd function '{name}' is not kept" for name in exported.functions]
    if training and exported.checkpoints:
        notes.append("activation checkpoints are not kept: training needs the memory of all activations")
    return notes


def _fixed_batch(flat: list[Any], failure: Exception) -> str:
    size = next(leaf.shape[0] for leaf in flat if isinstance(leaf, torch.Tensor) and leaf.dim() > 0)
    guard = re.search(r"generated guard (.+)", str(failure))
    if guard is not None:
        condition = re.sub(r"L\[[^ ]*\.size\(\)\[0\]", "batch", guard[1]).strip().removesuffix(".")
        condition = condition.replace(" and batch <= IntInfinity()", "")
        return f"the batch size is fixed at {size}: forward depends on it ({condition})"
    if "specialized it to be a constant" in str(failure):
        return f"the batch size is fixed at {size}: forward uses it as a constant"
    return f"the batch size is fixed at {size}: {first_line(failure)}"


def _state_notes(rehearsal: Rehearsal) -> list[str]:
    written = rehearsal.first.written
    lost = {name: pair for name, pair in written.items() if name not in rehearsal.registered and not same(*pair)}
    if not lost:
        return []
    return [f"forward assigns {changes(lost)}, and the graph does not: what reads it later sees the old value"]


def _constant_notes(graph: Graph, flat: list[Any]) -> list[str]:
    return [
        f"argument '{node.target}' is fixed at {leaf!r}"
        for node, leaf in zip(graph.inputs, flat, strict=True)
        if not isinstance(leaf, torch.Tensor) and leaf is not None
    ]


def _container_notes(model: nn.Module, graph: Graph, training: bool) -> list[str]:
    """The tensors that forward takes from lists and dicts: a graph has them as constants of its own.

    Raises:
        CaptureError: one would be trained.
    """
    leaves = twin.leaves(model)
    read = {tensor.untyped_storage().data_ptr() for name, tensor in graph.weights.items() if name not in leaves}
    notes = []
    for name, leaf in leaves.items():
        if "[" not in name or not isinstance(leaf, torch.Tensor) or leaf.layout is not torch.strided:
            continue
        if leaf.numel() == 0 or leaf.untyped_storage().data_ptr() not in read:
            continue
        what = f"forward reads the tensor '{name}', which no module holds under a name of its own"
        remedy = "register it, in an nn.ParameterList or as a buffer"
        if training and leaf.requires_grad:
            raise CaptureError(f"{what}, and a graph would lose its gradient; {remedy}")
        notes.append(f"{what}, so its changes are not followed; {remedy}")
    return notes


def _symbol(graph: Graph, plan: Plan) -> str | None:
    sizes = [graph.inputs[i].meta["val"].shape[0] for i in plan.carriers]
    return next((str(size) for size in sizes if isinstance(size, torch.SymInt)), None)
