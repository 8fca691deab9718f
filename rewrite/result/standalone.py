"""Results without a model: all they know is what an artifact holds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.fx import Node

from rewrite import compat
from rewrite.artifact import Artifact, graphs_of, refusing, unpacked
from rewrite.errors import ArtifactError, InputError, VerificationError
from rewrite.lowering import run_eagerly, weight_order
from rewrite.printer import type_text
from rewrite.result import call
from rewrite.result.modes import neutral
from rewrite.result.module import OptimizedModule
from rewrite.result.program import Program
from rewrite.result.signature import signature_of, with_signature
from rewrite.trace import isolated
from rewrite.trace.twin import clones
from rewrite.verify import verify_recorded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewrite.artifact import StoredProgram
    from rewrite.graph import Graph
    from rewrite.lowering import Lowering
    from rewrite.result.shapes import Shapes

_OTHERS = "load(path, model) captures other calls"


class Alone(nn.Module):
    """In the place of the model, for a result that has none: it holds tensors and attributes, and no code."""


def from_artifact(
    artifact: Artifact,
    lowering: Lowering | None,
    name: str,
    *,
    shapes: Shapes | None = None,
    verify: bool = True,
    remedy: str = _OTHERS,
) -> OptimizedModule:
    """A result that runs the programs of an artifact on its tensors, which become the result's own.

    It is on the devices where the programs were made, or on the CPU where there are no such devices.

    Args:
        artifact: the programs.
        lowering: runs graphs; None runs them operator by operator.
        name: what messages call the artifact.
        shapes: the calls that the result is ready for, and what becomes of others.
        verify: whether each program has to give the outputs that were saved with it.
        remedy: what messages say of calls that no program takes.

    Raises:
        ArtifactError: a program is malformed, or operators here give other shapes.
        VerificationError: a program gives other outputs.
    """
    names = {name for stored in artifact.programs for name in stored.devices}
    device = None if all(map(compat.has_device, names)) else torch.device("cpu")
    with neutral():
        # names of one tensor stay names of one tensor on another device
        moved: dict[int, Tensor] = {}
        programs = [_program(artifact, stored, device, moved) for stored in artifact.programs]
        held = {key: value for program in programs for key, value in program.graph.weights.items()}
        forward = with_signature(nn.Module.forward, signature_of(programs[0].graph.signature))
        source = _tree(artifact.model, forward, {key: held[key] for key in artifact.weights if key in held})
        source.__dict__.update(artifact.attributes)
        if verify:
            with isolated(source):
                for program, stored in zip(programs, artifact.programs, strict=True):
                    _verify(program, stored, name)
        closed = _Closed([program.graph for program in programs], remedy)
        return OptimizedModule(source, closed.refuse, lowering, programs, private=True, shapes=shapes)


def released(result: OptimizedModule) -> OptimizedModule:
    """A result on copies of the weights that it still needs, which knows nothing of the model.

    Raises:
        ArtifactError: the result holds something that cannot be separated from its model.
    """
    engine = result._engine
    artifact = engine.artifact()
    held = [*artifact.weights.values(), *(each for stored in artifact.programs for each in stored.constants.values())]
    copies = dict(zip(map(id, held), clones(held), strict=True))
    programs = [replace(stored, constants=_copied(stored.constants, copies)) for stored in artifact.programs]
    artifact = replace(artifact, weights=_copied(artifact.weights, copies), programs=tuple(programs))
    return from_artifact(
        artifact, engine.lowering, "the released result", shapes=engine.shapes.copy(), verify=False,
        remedy="optimize without release=True captures other calls",
    )  # fmt: skip


def _copied(tensors: Mapping[str, Tensor], copies: Mapping[int, Tensor]) -> dict[str, Tensor]:
    return {name: copies[id(tensor)] for name, tensor in tensors.items()}


def unpickled(data: bytes, lowering: Lowering | None, shapes: Shapes) -> OptimizedModule:
    """A pickled result: what :meth:`OptimizedModule.__reduce_ex__` names.

    Raises:
        ArtifactError, VerificationError: as :func:`from_artifact`.
    """
    name = "the pickled result"
    with refusing(f"{name} cannot be read", VerificationError):
        return from_artifact(Artifact.of(unpacked(data, name)), lowering, name, shapes=shapes)


# -- programs ---------------------------------------------------------------------------------------------------------


def _program(
    artifact: Artifact, stored: StoredProgram, device: torch.device | None, moved: dict[int, Tensor]
) -> Program:
    """A program with its weights. Of the weight program it keeps the code only, for when it is saved again."""
    graphs = graphs_of(stored.graphs, device=device)
    captured, graph = graphs["captured"], graphs["rewritten"]
    nodes = (node for each in (captured, graph) for node in each.nodes if node.op == "get_attr")
    recorded = {str(node.target): node.meta["val"] for node in nodes}
    for name in weight_order(graph):
        tensor = artifact.weights.get(name, stored.constants.get(name))
        if tensor is None:
            raise ArtifactError(f"the file lacks the weight '{name}', which its program reads; save it again")
        graph.weights[name] = _placed(name, tensor, recorded.get(name), moved)
    graph.check(shapes=False)
    captured.weights = {
        name: _placed(name, tensor, recorded.get(name), moved) for name, tensor in stored.constants.items()
    }
    # what it took to lower it was another machine's time
    time = {phase: seconds for phase, seconds in stored.report.time.items() if phase != "lowering"}
    return Program(
        graph, replace(stored.report, time=time), stored.value_rules, stored.one_row, time, stored.plan, captured,
        tuple(stored.inputs(device)), artifact.settings, stored.identity, standalone=True,
    )  # fmt: skip


def _placed(name: str, tensor: Tensor, recorded: Any, moved: dict[int, Tensor]) -> Tensor:
    """A tensor on the device on which its program has it.

    Raises:
        ArtifactError: it has another shape or dtype than the program says.
    """
    if recorded is None:  # a program writes some weights and reads others
        return tensor
    if tensor.shape != recorded.shape or tensor.dtype != recorded.dtype:
        raise ArtifactError(
            f"the weight '{name}' is {type_text(tensor)} in the file, and its program reads {type_text(recorded)}; the "
            "file is damaged, save it again"
        )
    if tensor.device == recorded.device:
        return tensor
    known = moved.get(id(tensor))
    if known is None:
        known = tensor.detach().to(recorded.device)
        if isinstance(tensor, nn.Parameter):
            known = nn.Parameter(known, requires_grad=tensor.requires_grad)
        moved[id(tensor)] = known
    return known


def _verify(program: Program, stored: StoredProgram, name: str) -> None:
    """Compare what a program computes here with the outputs that were saved with it.

    Raises:
        VerificationError: they differ beyond rounding.
    """
    names = weight_order(program.graph)
    tensors, run = [program.graph.weights[each] for each in names], run_eagerly(program.graph, names)
    devices = [node.meta["val"].device if _is_tensor(node) else None for node in program.graph.outputs]
    recorded = [
        leaf.to(device) if isinstance(leaf, Tensor) and device is not None else leaf
        for leaf, device in zip(stored.outputs, devices, strict=True)
    ]
    verdict = verify_recorded(lambda flat: run(flat, tensors), program.graph, program.sample, recorded)
    if not verdict.accepted:
        raise VerificationError(
            f"{name} does not give the outputs that were saved with it: {verdict.reason}; save it again on this machine"
        )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Node) and isinstance(value.meta.get("val"), Tensor)


# -- what stands for the model ----------------------------------------------------------------------------------------


def _tree(model: str, forward: Any, weights: Mapping[str, Tensor]) -> nn.Module:
    """Modules that hold tensors under their qualified names, in a root named like the model and with its signature."""
    root: nn.Module = type(model, (Alone,), {"forward": forward})().eval()
    for name, tensor in weights.items():
        *path, key = name.split(".")
        module = root
        for part in path:
            child = module._modules.get(part)
            if child is None:
                child = module._modules[part] = nn.Module().eval()
            module = child
        held: dict[str, Any] = module._parameters if isinstance(tensor, nn.Parameter) else module._buffers
        held[key] = tensor
    return root


class _Closed:
    """What is asked for programs where there is no model to capture."""

    def __init__(self, graphs: Sequence[Graph], remedy: str):
        self._saved = [call.text(node.meta.get("val") for node in graph.inputs) for graph in graphs]
        self._remedy = remedy

    def refuse(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        """Raise: there is no program for this call.

        Raises:
            InputError: always.
        """
        given = call.text(compat.tree_flatten((args, kwargs))[0])
        raise InputError(
            f"no saved program takes ({given}): there are those for ({'), ('.join(self._saved)}), where N is any "
            f"batch; {self._remedy}"
        )
