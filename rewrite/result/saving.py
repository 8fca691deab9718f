"""A result as an artifact: its programs in their present dtypes, on the present weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite.artifact import Artifact, StoredProgram, graphs_of, stored_graphs
from rewrite.artifact.literals import encode
from rewrite.artifact.names import is_attribute
from rewrite.errors import ArtifactError
from rewrite.lowering import run_eagerly
from rewrite.result.mirror import find
from rewrite.result.specialize import Conversion
from rewrite.trace import isolated
from rewrite.trace.compare import same

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rewrite.graph import Graph
    from rewrite.result.mirror import Mirror
    from rewrite.result.plans import Weights
    from rewrite.result.specialize import Specialization


def artifact_of(source: nn.Module, root: Mirror, programs: Mapping[Specialization, Weights]) -> Artifact:
    """All that it takes to make a result again.

    Args:
        source: the model.
        root: the result, as a tree of tensors.
        programs: its programs with their present weights.

    Raises:
        ArtifactError: there is no program yet, or something in one that cannot be saved.
    """
    name = source._get_name()
    if not programs:
        raise ArtifactError(f"the optimized {name} has no program yet, so there is nothing to save; call it once first")
    stored, weights = [], dict[str, Tensor]()
    for special, held in programs.items():
        stored.append(_stored(name, special, held, weights, root))
    program = next(iter(programs)).program
    assert program.settings is not None
    return Artifact(name, program.settings, tuple(stored), weights, _attributes(source))


def _stored(
    name: str, special: Specialization, held: Weights, weights: dict[str, Tensor], root: Mirror
) -> StoredProgram:
    """One program; what it reads of the tree, and what was folded, goes into ``weights``."""
    program = special.program
    if program.captured is None or program.settings is None:
        raise ArtifactError(
            f"the program of {name} was made without the graph that it was captured as, so it cannot be saved; make "
            "the result with rewrite.optimize"
        )
    plain = dict(zip(special.names, held.plain, strict=True))
    own = {each: tensor for each, tensor in plain.items() if each in special.registered or each in special.folded}
    others = {each: tensor for each, tensor in plain.items() if each not in own}
    constants = {**program.captured.weights, **special.constants, **others}
    renamed = {each: _unused(each, weights, tensor) for each, tensor in own.items() if each in special.folded}
    for each, tensor in own.items():
        weights[renamed.get(each, each)] = _as_held(find(root, each), tensor)
    inputs = [_converted(special, leaf) for leaf in program.sample]
    with isolated(root), torch.no_grad():
        outputs = run_eagerly(special.graph, special.names)(inputs, held.plain)
    graphs = stored_graphs(program.captured, _with_names(program.graph, renamed))
    change = special.conversion
    if change != Conversion():
        kept = constants.keys() | special.attributes
        graphs = stored_graphs(**graphs_of(graphs, device=change.device, dtypes=change.dtypes, kept=kept))
    return StoredProgram(
        graphs, program.report, program.one_row, program.value_rules, program.plan, constants, tuple(inputs),
        tuple(outputs), program.identity, tuple(program.decided),
    )  # fmt: skip


def _converted(special: Specialization, leaf: Any) -> Any:
    """A leaf of the sample in the present dtype and on the present device."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.to(special.conversion.device or leaf.device, special.conversion.dtype_of(leaf.dtype))


def _as_held(mine: Tensor | None, tensor: Tensor) -> Tensor:
    """A tensor as a parameter where the tree has one of its name."""
    if isinstance(mine, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=mine.requires_grad)
    return tensor


def _unused(name: str, weights: Mapping[str, Tensor], tensor: Tensor) -> str:
    """The name, numbered where a folded value of another program has it and is another."""
    candidate, number = name, 1
    while candidate in weights and not same(weights[candidate], tensor):
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def _with_names(graph: Graph, names: Mapping[str, str]) -> Graph:
    """The graph with folded values under other names."""
    if all(old == new for old, new in names.items()):
        return graph
    twin = graph.copy()
    for node in twin.nodes:
        if node.op == "get_attr":
            node.target = names.get(str(node.target), node.target)
    twin.program.results = {names.get(name, name): node for name, node in twin.program.results.items()}
    return twin


def _attributes(source: nn.Module) -> dict[str, Any]:
    """The attributes of the model that are plain values, for who reads them of the result."""
    found = {}
    for key, value in source.__dict__.items():
        if not is_attribute(key):
            continue
        try:
            encode(value)
        except ArtifactError:
            continue
        found[key] = value
    return found
