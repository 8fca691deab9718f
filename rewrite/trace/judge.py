"""Comparing a captured graph with the rehearsal: results, what calls write, and who shares memory."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.aliases import alias_classes
from rewrite.errors import CaptureError
from rewrite.graph import is_random
from rewrite.trace import twin
from rewrite.trace.compare import difference, shared_memory
from rewrite.trace.rehearse import change, changes, rehearse

if TYPE_CHECKING:
    from rewrite.graph import Graph
    from rewrite.trace.rehearse import Call, Rehearsal

_REMEDY = "keep state out of forward, or in a buffer that is written in place"


def judge(model: nn.Module, graph: Graph, rehearsal: Rehearsal, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the graph as the model was run and raise :class:`CaptureError` where it does something else.

    A graph that writes state runs twice, each call on the state that the last one left. Of a random graph only shapes
    are compared.
    """
    name = type(model).__name__
    held = twin.leaves(model)
    written = [mutation.target for mutation in graph.signature.mutations if mutation.kind == "weight"]
    _refuse_unseen_writes(name, graph, rehearsal, held, written)
    if rehearsal.first.spec != graph.signature.out_spec:
        raise CaptureError(f"{name} returns another structure when it is traced; return the same one on every call")
    own = dict(zip(written, twin.clones([graph.weights[target] for target in written]), strict=True))
    module = graph.to_module(own)
    random = any(is_random(node) for node in graph.nodes)
    calls = [rehearsal.first, rehearsal.second]
    flat, spec = compat.tree_flatten((args, kwargs))
    for number, call in enumerate(calls):
        if number == 0 or graph.signature.mutations:
            inputs = twin.clones(flat)
            call_args, call_kwargs = compat.tree_unflatten(inputs, spec)
            with torch.no_grad():
                outputs = compat.tree_flatten(module(*call_args, **call_kwargs))[0]
            if number == 0:
                _compare_sharing(name, graph, rehearsal.first, outputs, inputs, _tensors(graph, held, own))
        _compare_call(name, rehearsal, call, number, outputs, inputs, random)
        _compare_state(name, call, held, graph, own, random)


def takes_one_row(model: nn.Module, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the graph is also right for one row: export decides a branch on a batch of one without saying so."""
    flat, spec = compat.tree_flatten((args, kwargs))
    carriers = [i for i, node in enumerate(graph.inputs) if _is_free(node.meta.get("val"))]
    if not carriers or flat[carriers[0]].shape[0] == 1:
        return True
    row = [leaf[:1] if i in carriers else leaf for i, leaf in enumerate(flat)]
    args, kwargs = compat.tree_unflatten(row, spec)
    try:
        judge(model, graph, rehearse(model, args, kwargs), args, kwargs)
    except Exception:  # the model itself may not take one row
        return False
    return True


def _is_free(value: Any) -> bool:
    """Whether the first size of a recorded input is a symbol."""
    return isinstance(value, Tensor) and value.dim() > 0 and isinstance(value.shape[0], torch.SymInt)


def _refuse_unseen_writes(
    name: str, graph: Graph, rehearsal: Rehearsal, held: dict[str, Any], written: list[str]
) -> None:
    """Refuse writes that tracing did not see: to parameters and buffers through ``.data``, to tensors by assignment.

    They may write what is there already, when the example was called before; another input would tell.
    """
    seen = {id(graph.weights[target]) for target in written}
    read = {id(tensor) for tensor in graph.weights.values()}
    for key, pair in rehearsal.first.written.items():
        tensor = held.get(key)
        if key in rehearsal.registered and id(tensor) not in seen:
            raise CaptureError(
                f"{name} writes {change(key, pair)} in forward in a way that tracing does not see; write with an "
                "in-place operator under torch.no_grad(), or keep the change out of forward"
            )
        if key not in rehearsal.registered and isinstance(tensor, Tensor) and id(tensor) in read:
            raise CaptureError(f"{name} reads {change(key, pair)} and assigns it anew in forward; {_REMEDY}")


def _compare_call(
    name: str, rehearsal: Rehearsal, call: Call, number: int, outputs: list[Any], inputs: list[Any], random: bool
) -> None:
    which = ("first", "second")[number]
    state = changes(rehearsal.first.written)
    because = f"; forward changes {state}" if state else ""
    for kind, expected, found in (("output", call.outputs, outputs), ("input", call.inputs, inputs)):
        for i, (a, b) in enumerate(zip(expected, found, strict=True)):
            text = difference(a, b, shapes_only=random)
            if text:
                after = " after the call" if kind == "input" else ""
                raise CaptureError(
                    f"the graph of {name} is not what the {which} call computes: {kind} {i}{after} {text}{because}; "
                    + (_REMEDY if state else "please report this model")
                )


def _compare_state(
    name: str, call: Call, held: dict[str, Any], graph: Graph, own: dict[str, Tensor], random: bool
) -> None:
    for key, (_, new) in call.written.items():
        for target, found in own.items():
            if held.get(key) is graph.weights[target] and isinstance(new, Tensor):
                text = difference(new, found, shapes_only=random)
                if text:
                    raise CaptureError(f"the graph of {name} leaves another '{key}': it {text}; {_REMEDY}")


def _tensors(graph: Graph, held: dict[str, Any], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the graph's module runs on, by their names in the model, then by those in the graph."""
    copies = {id(graph.weights[target]): tensor for target, tensor in own.items()}
    tensors = {key: copies.get(id(value), value) for key, value in held.items() if isinstance(value, Tensor)}
    known = {id(value) for value in held.values()}
    return tensors | {key: value for key, value in graph.weights.items() if id(value) not in known}


def _compare_sharing(
    name: str, graph: Graph, call: Call, outputs: list[Any], inputs: list[Any], tensors: dict[str, Tensor]
) -> None:
    found = shared_memory(outputs, inputs, tensors)
    for pair in sorted(map(sorted, found - call.sharing)):
        raise CaptureError(f"the graph of {name} gives {pair[1]} the memory of {pair[0]}, and forward does not; "
                           "please report this model")  # fmt: skip
    # a reshape may copy here and be a view for other strides; anything else that is lost was a promise
    for pair in sorted(map(sorted, call.sharing - found - _possible(graph, tensors))):
        raise CaptureError(
            f"{name} returns {pair[1]} in the memory of {pair[0]}, which a graph keeps only where forward does not "
            "write to it; return a copy, or do not write to what is returned"
        )


def _possible(graph: Graph, tensors: dict[str, Tensor]) -> set[frozenset[str]]:
    """The pairs that may share memory by the schemas, named as the eager ones are."""
    position = {f"input {node.target}": f"input {i}" for i, node in enumerate(graph.inputs)}
    first: dict[int, str] = {}
    for key, tensor in sorted(tensors.items()):
        if tensor.layout is torch.strided:
            first.setdefault(tensor.untyped_storage().data_ptr(), key)
    for key, tensor in graph.weights.items():
        if tensor.layout is torch.strided:
            position[f"weight {key}"] = f"weight {first.get(tensor.untyped_storage().data_ptr(), key)}"
    pairs: set[frozenset[str]] = set()
    for group in alias_classes(graph):
        members = sorted({position.get(member, member) for member in group})
        pairs.update(frozenset(pair) for pair in combinations(members, 2))
    return pairs
