"""Programs that were made before, bound to a model again and checked against it as fresh ones are."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import compat
from rewrite.artifact import graphs_of
from rewrite.errors import ArtifactError, CaptureError
from rewrite.lowering import written_weights
from rewrite.result import Program
from rewrite.result.reading import constants_of, holder
from rewrite.trace import isolated, replica
from rewrite.trace.compare import difference
from rewrite.trace.guard import check_call
from rewrite.trace.judge import judge, takes_one_row
from rewrite.trace.rehearse import rehearse
from rewrite.trace.twin import clones
from rewrite.verify import sample_of, verify_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from rewrite.artifact import StoredProgram
    from rewrite.graph import Graph
    from rewrite.recipe import Settings


_LARGE = 64.0


def revive(
    model: nn.Module,
    stored: StoredProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    settings: Settings,
    phase: str,
    note: str,
    whole: bool = True,
) -> Program:
    """A stored program over the weights of a model, folded values computed anew.

    The model is called twice and compared with the captured graph, again on larger inputs, then with the rewritten
    program. None of that shows all that a model does: the caller has to know that the program was made of this model.

    Args:
        model: the model, in evaluation mode.
        stored: the program.
        args, kwargs: a call that the program takes.
        settings: how it was made.
        phase: what the time is reported as.
        note: what the report says of it.
        whole: whether the rewritten program is compared with the model.

    Raises:
        ArtifactError: the model has no such weights, or the program cannot be read.
        InputError, CaptureError: the call raises, or the model does something else than the captured graph.
        VerificationError: the rewritten program is not equal to the model.
    """
    started = time.perf_counter()
    check_call(model, args, kwargs, training=False)
    check_weights(model, stored)
    graphs = graphs_of(stored.graphs, device=_moved_to(model, stored.weights))
    captured, graph = graphs["captured"], graphs["rewritten"]
    for each in (captured, graph):
        each.weights = _bound(model, each, stored.constants)
    graph.weights.update(graph.program.evaluate(graph.weights))
    with isolated(model):
        judge(model, captured, rehearse(model, args, kwargs), args, kwargs)
        _judge_large(model, captured, args, kwargs)
        one_row = stored.one_row and takes_one_row(model, captured, args, kwargs)
    seconds = time.perf_counter() - started
    verdict = verify_whole(model, captured, graph, args, kwargs) if whole else None
    split = {phase: seconds, "verification": verdict.seconds if verdict else 0.0}
    report = replace(stored.report, model_verdict=verdict, time=split, notes=(*stored.report.notes, note))
    sample = sample_of(captured, compat.tree_flatten((args, kwargs))[0])
    captured.weights = constants_of(model, captured)
    return Program(
        graph, report, stored.value_rules, one_row, split, stored.plan, captured, sample, settings, stored.identity
    )


def _judge_large(model: nn.Module, captured: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Compare the outputs of the model and of the graph for much larger inputs, where clamps and thresholds act.

    Raises:
        CaptureError: they differ.
    """
    flat, spec = compat.tree_flatten((args, kwargs))
    if not any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in flat):
        return
    large = [leaf * _LARGE if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf for leaf in flat]
    program = captured.to_module({name: captured.weights[name].clone() for name in written_weights(captured)})
    with replica(model) as source, torch.no_grad():
        try:
            expected = _outputs(source, large, spec)
        except Exception:  # the model itself may not take them
            return
        found = _outputs(program, large, spec)
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        text = difference(a, b)
        if text:
            raise CaptureError(
                f"the graph is not what {type(model).__name__} computes for inputs {_LARGE:g} times as large: output "
                f"{i} {text}"
            )


def _outputs(module: nn.Module, flat: list[Any], spec: compat.TreeSpec) -> list[Any]:
    args, kwargs = compat.tree_unflatten(clones(flat), spec)
    return compat.tree_flatten(module(*args, **kwargs))[0]


def check_weights(model: nn.Module, stored: StoredProgram) -> None:
    """Compare the model's tensors with those that a program was captured with.

    Raises:
        ArtifactError: the first that is missing, or has another shape or dtype.
    """
    for name, wanted in stored.weights.items():
        held = holder(model, name)
        if held is None and name in stored.constants:
            continue
        theirs = _type(wanted["dtype"], wanted["shape"])
        mine = "nothing"
        if held is not None:
            tensor = held[name.rpartition(".")[2]]
            mine = _type(str(tensor.dtype).removeprefix("torch."), tensor.shape)
        if mine != theirs:
            raise ArtifactError(
                f"'{name}' is {mine} in the model and {theirs} in the saved program; pass the model that was saved, or "
                "one of the same architecture and dtype"
            )


def _type(dtype: str, shape: Iterable[int]) -> str:
    return f"{dtype}{list(shape)}"


def _bound(model: nn.Module, graph: Graph, constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a graph reads or writes: the model's own, and the constants of the program."""
    nodes = {str(node.target): node for node in (*graph.nodes, *graph.program.fx.nodes) if node.op == "get_attr"}
    names = {*nodes, *written_weights(graph)}
    bound = {}
    for name in sorted(names - graph.program.results.keys()):
        held = holder(model, name)
        if held is not None:
            bound[name] = held[name.rpartition(".")[2]]
        elif name in constants:
            bound[name] = constants[name].to(nodes[name].meta["val"].device)
        else:
            raise ArtifactError(f"the saved program reads '{name}', which neither it nor the model has; save it again")
    return bound


def _moved_to(model: nn.Module, recorded: Mapping[str, Mapping[str, Any]]) -> torch.device | None:
    """The device of the model where the program was captured on another one."""
    for name, wanted in recorded.items():
        held = holder(model, name)
        if held is not None and wanted["shape"]:
            device: torch.device = held[name.rpartition(".")[2]].device
            return None if str(device) == wanted["device"] else device
    return None
