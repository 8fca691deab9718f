"""The rewritten program as a whole, against the user's module itself.

Both run on the example in their own dtypes; the captured graph in float64 says what is true. The program may be about
as far from the truth as the model is, for rounding has to fall somehow. How far that can be by chance the model shows
too: in its other channels and, where that does not suffice, when its inputs change in the last digit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import compat
from rewrite.aliases import alias_classes
from rewrite.graph import is_random
from rewrite.trace.twin import clones
from rewrite.verdict import Verdict
from rewrite.verify.compare import same_kind
from rewrite.verify.outputs import Judgement, Sample, judge
from rewrite.verify.reference import evaluate_double
from rewrite.verify.sharing import shared
from rewrite.verify.sizes import Batch, batch_symbols, sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from torch.fx import Node

    from rewrite.graph import Graph

ROWS = 2
"""How many rows of a batch are compared, where the batch size is free."""

_NUDGES = 4
_WEIGHT = "a weight"


@dataclass(frozen=True)
class _Call:
    """Flat inputs of a call, copied for it, what it returned, and what it wrote, as the signature lists it."""

    inputs: list[Any]
    outputs: list[Any]
    spec: compat.TreeSpec
    state: list[Any]

    @property
    def values(self) -> list[Any]:
        """All that the call computed: what it returned, and what it wrote."""
        return [*self.outputs, *self.state]


def verify_model(
    source: Callable[..., Any],
    program: Callable[..., Any],
    graph: Graph,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    weights: Iterable[Tensor] = (),
    reference: bool = True,
) -> Verdict:
    """Compare a rewritten program with the user's module.

    ``source`` is called once, and a few times more where the first comparison fails; ``program`` is called once. Both
    run without gradients and on copies of the inputs. Where calls write state (batch statistics), pass callables over
    copies of that state.

    Args:
        source: the user's module.
        program: the rewritten program, with the same signature.
        graph: the graph as it was captured, before rewriting: the reference.
        args: positional arguments of the example call; of a free batch the first :data:`ROWS` rows are compared.
        kwargs: its keyword arguments.
        weights: tensors of the program besides those of ``graph``: an output may not be one of them either.
        reference: compute the truth in float64; without it, which takes a few times as long, the model is the truth.

    Returns:
        A verdict on what is returned and on what is written. Random programs are compared in structure, shapes and
        dtypes only, and its note says so.
    """
    started = time.perf_counter()
    flat, spec = compat.tree_flatten((tuple(args), dict(kwargs or {})))
    flat = narrowed(graph, flat)
    with torch.no_grad():
        expected, found = _call(source, graph, flat, spec), _call(program, graph, flat, spec)
        failure = _structure(expected, found) or _sharing(graph, expected, found, list(weights))
        judgement = Judgement(failure, 0.0, 1, "")
        if not failure:
            random = any(is_random(node) for node in graph.nodes)
            if random:
                judgement = Judgement("", 0.0, 1, "the model draws random numbers: only shapes and dtypes are compared")
            else:
                judgement = _values(
                    lambda inputs: _call(source, graph, inputs, spec).values,
                    expected.values, found.values, graph, flat, reference,
                )  # fmt: skip
    return _verdict(judgement, time.perf_counter() - started)


def verify_recorded(
    run: Callable[[Sequence[Any]], Sequence[Any]], graph: Graph, flat: Sequence[Any], recorded: Sequence[Any]
) -> Verdict:
    """Compare what a program computes with what it computed once, perhaps on another machine.

    What was recorded may be about as far from the truth as what is computed now.

    Args:
        run: the program, from flat inputs to all flat outputs, values of mutations last; called once, and a few times
            more where the first comparison fails.
        graph: the program with its weights: the reference.
        flat: the flat inputs.
        recorded: all flat outputs that it gave.
    """
    started = time.perf_counter()
    with torch.no_grad():
        found = list(run(flat))
        kinds = map(same_kind, map(str, range(len(recorded))), recorded, found)
        failure = next(filter(None, kinds), "") if len(found) == len(recorded) else "it has another number of outputs"
        random = any(is_random(node) for node in graph.nodes)
        if not failure and not random:
            failure = next(filter(None, map(_lost, range(len(recorded)), recorded, found)), "")
        judgement = Judgement(failure, 0.0, 1, "")
        if not failure and not random:
            judgement = _values(run, found, recorded, graph, flat)
            if judgement.distances is not None:  # what was recorded stands for what is new there
                judgement = replace(judgement, distances=judgement.distances[::-1])
    return _verdict(judgement, time.perf_counter() - started)


def _verdict(judgement: Judgement, seconds: float) -> Verdict:
    failure, calls, error, note = judgement.failure, judgement.calls, judgement.error, judgement.note
    return Verdict(not failure, failure, calls, seconds, error, note, judgement.distances)


def _lost(i: int, recorded: Any, found: Any) -> str:
    """Whether an output is infinite or NaN where it was not, in words."""
    if not isinstance(recorded, Tensor) or not (recorded.is_floating_point() or recorded.is_complex()):
        return ""
    count = int((torch.isfinite(recorded) & ~torch.isfinite(found)).sum())
    return f"output {i} is infinite or NaN in {count} places where it was finite" if count else ""


def _call(function: Callable[..., Any], graph: Graph, flat: Sequence[Any], spec: compat.TreeSpec) -> _Call:
    inputs = clones(list(flat))
    args, kwargs = compat.tree_unflatten(inputs, spec)
    outputs, out_spec = compat.tree_flatten(function(*args, **kwargs))
    places = {str(node.target): i for i, node in enumerate(graph.inputs)}
    state = [
        inputs[places[mutation.target]] if mutation.kind == "input" else attrgetter(mutation.target)(function)
        for mutation in graph.signature.mutations
    ]
    return _Call(inputs, outputs, out_spec, clones(state))


def narrowed(graph: Graph, flat: Sequence[Any]) -> list[Any]:
    """The inputs with a free batch cut to its first rows."""
    batch = Batch(batch_symbols(graph), ROWS)
    pairs = zip(graph.inputs, flat, strict=True)
    given = [leaf.shape[0] for node, leaf in pairs if any(map(batch.known, sizes(node)[:1]))]
    if not given or max(given) <= ROWS:
        return list(flat)
    return [_cut(node, leaf, batch) for node, leaf in zip(graph.inputs, flat, strict=True)]


def sample_of(graph: Graph, flat: Sequence[Any]) -> tuple[Any, ...]:
    """Copies of the flat inputs of a call, of a free batch the first :data:`ROWS` rows, to check a program later."""
    copies: dict[int, Any] = {}
    return tuple(
        copies.setdefault(id(leaf), leaf.detach().clone()) if isinstance(leaf, Tensor) else leaf
        for leaf in narrowed(graph, flat)
    )


def _cut(node: Node, leaf: Any, batch: Batch) -> Any:
    if batch.known(node.meta.get("val")):
        return batch.concrete(node.meta["val"])
    for dim, size in enumerate(sizes(node)):
        if batch.known(size):
            leaf = leaf.narrow(dim, 0, batch.concrete(size))
    return leaf


def _structure(expected: _Call, found: _Call) -> str:
    if expected.spec != found.spec:
        return f"the program returns another structure: {found.spec} instead of {expected.spec}"
    names = [f"{i}" for i in range(len(expected.values))]
    return next(filter(None, map(same_kind, names, expected.values, found.values)), "")


def _sharing(graph: Graph, expected: _Call, found: _Call, weights: Sequence[Tensor]) -> str:
    """How the program shares memory where the model does not, or returns a copy of what the model returns itself."""

    def pairs(call: _Call) -> set[tuple[int, Hashable]]:
        others: dict[Any, Any] = {f"input {i}": value for i, value in enumerate(call.inputs)}
        return set(shared(call.outputs, {**others, _WEIGHT: [*graph.weights.values(), *weights]}))

    before, after = pairs(expected), pairs(found)
    for i, other in sorted(after - before, key=str):
        # the model may run on copies of its weights; then only the graph tells
        if other != _WEIGHT or not _returns_weight(graph, i):
            return f"output {i} shares memory with {_owner(other)}, and does not in the model"
    for i, other in sorted(before - after, key=str):
        # between outputs, a reshape may copy where the model's is a view: another layout
        if not isinstance(other, int):
            return f"output {i} does not share memory with {_owner(other)}, and does in the model"
    return ""


def _returns_weight(graph: Graph, i: int) -> bool:
    groups = [group for group in alias_classes(graph) if f"output {i}" in group]
    return any(member.startswith("weight ") for group in groups for member in group)


def _owner(other: Hashable) -> str:
    return f"output {other}" if isinstance(other, int) else str(other)


def _values(
    source: Callable[[Sequence[Any]], Sequence[Any]],
    expected: Sequence[Any],
    found: Sequence[Any],
    graph: Graph,
    flat: Sequence[Any],
    reference: bool = True,
) -> Judgement:
    """Compare values; where that fails, once more with the noise of ``source`` as what is allowed."""
    notes = []
    try:
        truths: list[Any] | None = evaluate_double(graph, flat) if reference else None
    except Exception as error:
        truths = None
        notes.append(f"there is no float64 reference ({type(error).__name__}), so the model itself is the reference")
    model = Sample(expected, truths)
    judgement = judge(model, found, [], notes)
    if not judgement.failure or graph.signature.mutations:
        return judgement
    nudged = []
    unit = _coarsest(graph)
    for inputs in (_nudged(flat, seed, unit) for seed in range(_NUDGES)):
        nudged.append(Sample(source(inputs), None if truths is None else evaluate_double(graph, inputs)))
    return judge(model, found, nudged, notes)


def _coarsest(graph: Graph) -> float:
    """The largest relative distance of neighbouring numbers in a dtype that the graph computes in."""
    leaves = compat.tree_flatten([node.meta.get("val") for node in graph.calls() if not graph.is_constant(node)])[0]
    dtypes = {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()}
    return max((float(torch.finfo(dtype).eps) for dtype in dtypes), default=0.0)


def _nudged(flat: Sequence[Any], seed: int, unit: float) -> list[Any]:
    """The inputs with each value moved up or down by its last digit, or that of the root mean square.

    Where the model rounds to a coarser dtype inside, by a digit of that dtype, ``unit``.
    """
    generator = torch.Generator().manual_seed(seed)
    known: dict[int, Any] = {}
    for leaf in flat:
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and id(leaf) not in known:
            sign = (torch.rand(leaf.shape, generator=generator) < 0.5).to(leaf) * 2 - 1
            typical = leaf.double().square().mean().sqrt().to(leaf.dtype)
            digit = max(float(torch.finfo(leaf.dtype).eps), unit)
            known[id(leaf)] = leaf + sign * digit * torch.maximum(leaf.abs(), typical)
    return [known.get(id(leaf), leaf) for leaf in flat]
