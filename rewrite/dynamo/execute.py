"""From a rewritten graph back to the function that Dynamo calls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rewrite import compat
from rewrite.dynamo.decline import Declined
from rewrite.dynamo.folds import Folds
from rewrite.dynamo.layout import keep_layout
from rewrite.lowering import differentiable, weight_order, writing_module, written_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rewrite.dynamo.lift import Lifted
    from rewrite.graph import Graph
    from rewrite.lowering import Lowering

_STRIDES = "results would have other strides than those that Dynamo recorded"


def executable(
    lifted: Lifted, graph: Graph, examples: Sequence[Any], lowering: Lowering, options: Mapping[str, Any]
) -> Callable[..., Sequence[Any]]:
    """The function of all arguments of the call, weights among them, that computes a graph.

    Without gradients, what is folded is computed from the weights of each call and kept as long as they stay as they
    are. With gradients nothing is folded, and the weights themselves are arguments of the compiled graph.

    Args:
        lifted: the graph as it was.
        graph: as it was rewritten; with gradients, nothing in it may be folded.
        examples: the real arguments.
        lowering: compiles.
        options: of the compiler.

    Raises:
        Declined: results would have other strides than Dynamo recorded.
        Exception: whatever the compiler raises.
    """
    with compat.without_autocast():
        make = _live if lifted.differentiate else _folded
        run = make(lifted, graph, examples, lowering, options)
    return _with_arguments(lifted, run)


def _positions(lifted: Lifted) -> tuple[list[int], dict[str, int]]:
    """The positions of the inputs, and those of the weights by name."""
    inputs = [i for i, argument in enumerate(lifted.arguments) if not argument.is_weight]
    return inputs, {argument.name: i for i, argument in enumerate(lifted.arguments) if argument.is_weight}


def _live(
    lifted: Lifted, graph: Graph, examples: Sequence[Any], lowering: Lowering, options: Mapping[str, Any]
) -> Callable[..., Sequence[Any]]:
    graph = differentiable(graph)
    inputs, weights = _positions(lifted)
    names = weight_order(graph)
    order = [weights.get(name) for name in names]
    constants = {name: graph.weights[name] for name in names if name not in weights}
    recorded = [_fake(graph, constants[n]) if i is None else lifted.recorded[i]
                for n, i in zip(names, order, strict=True)]  # fmt: skip
    compiled = _compile(lifted, graph, names, recorded, lowering, options)
    if compiled is None:
        raise Declined(_STRIDES)
    if not constants:
        positions = [*inputs, *(i for i in order if i is not None)]
        return lambda *args: compiled(*[args[i] for i in positions])
    held = [constants.get(name) for name in names]

    def run(*args: Any) -> Sequence[Any]:
        taken = [value if i is None else args[i] for i, value in zip(order, held, strict=True)]
        return compiled(*[args[i] for i in inputs], *taken)

    return run


def _folded(
    lifted: Lifted, graph: Graph, examples: Sequence[Any], lowering: Lowering, options: Mapping[str, Any]
) -> Callable[..., Sequence[Any]]:
    inputs, weights = _positions(lifted)
    names = weight_order(graph)
    bare = graph.copy()
    bare.weights = {}
    order = list(weights.values())
    # weights in a layout of their own give results in another, which cannot always be taken back
    for arrange in (partial(lowering.arrange, bare), _as_they_are):
        folds = Folds(graph, names, list(weights), written_weights(graph), arrange)
        recorded = [_fake(graph, tensor) for tensor in folds.weights([examples[i] for i in order])]
        compiled = _compile(lifted, graph, names, recorded, lowering, options)
        if compiled is not None:
            return _Folded(compiled, folds, inputs, order)
    raise Declined(_STRIDES)


def _as_they_are(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return weights


@dataclass(frozen=True)
class _Folded:
    """A compiled graph and the weights that are folded for it; called with all arguments."""

    compiled: Callable[..., Sequence[Any]]
    folds: Folds
    inputs: Sequence[int]
    weights: Sequence[int]

    def __call__(self, *args: Any) -> Sequence[Any]:
        return self.compiled(*[args[i] for i in self.inputs], *self.folds.weights([args[i] for i in self.weights]))


def _fake(graph: Graph, tensor: Tensor) -> Any:
    return graph.fake_mode.from_tensor(tensor, static_shapes=True)


def _compile(
    lifted: Lifted,
    graph: Graph,
    names: Sequence[str],
    weights: Sequence[Any],
    lowering: Lowering,
    options: Mapping[str, Any],
) -> Callable[..., Sequence[Any]] | None:
    """Compile a graph for the recorded inputs and given records of weights; None if results have other strides."""
    module = writing_module(graph, names)
    inputs, _ = _positions(lifted)
    examples = [*(lifted.recorded[i] for i in inputs), *weights]
    wanted = [value for i, value in enumerate(lifted.results) if i not in lifted.returned]
    if not keep_layout(module, graph, examples, wanted):
        return None
    return lowering.compile_traced(module, examples, options)


def _with_arguments(lifted: Lifted, run: Callable[..., Sequence[Any]]) -> Callable[..., Sequence[Any]]:
    """``run`` in the modes of the call, with the results that are arguments put in their places."""
    returned = sorted(lifted.returned.items())
    autocast = compat.is_any_autocast()
    if not returned and not autocast:
        return run

    def call(*args: Any) -> Sequence[Any]:
        if autocast:
            with compat.without_autocast():
                results = list(run(*args))
        else:
            results = list(run(*args))
        for position, i in returned:
            results.insert(position, args[i])
        return results

    return call
