"""From a rewritten graph back to the function that Dynamo calls."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import compat
from rewrite.dynamo.folds import Folds
from rewrite.lowering import differentiable, weight_order, writing_module, written_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch.fx import GraphModule

    from rewrite.dynamo.lift import Lifted
    from rewrite.graph import Graph
    from rewrite.lowering import Lowering

aten = torch.ops.aten


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
    folds = Folds(graph, names, list(weights), written_weights(graph), partial(lowering.arrange, bare))
    order = list(weights.values())
    recorded = [_fake(graph, tensor) for tensor in folds.weights([examples[i] for i in order])]
    compiled = _compile(lifted, graph, names, recorded, lowering, options)

    def run(*args: Any) -> Sequence[Any]:
        return compiled(*[args[i] for i in inputs], *folds.weights([args[i] for i in order]))

    return run


def _fake(graph: Graph, tensor: Tensor) -> Any:
    return graph.fake_mode.from_tensor(tensor, static_shapes=True)


def _compile(
    lifted: Lifted,
    graph: Graph,
    names: Sequence[str],
    weights: Sequence[Any],
    lowering: Lowering,
    options: Mapping[str, Any],
) -> Callable[..., Sequence[Any]]:
    """Compile a graph for the recorded inputs and given records of weights."""
    module = writing_module(graph, names)
    inputs, _ = _positions(lifted)
    examples = [*(lifted.recorded[i] for i in inputs), *weights]
    wanted = [value for i, value in enumerate(lifted.results) if i not in lifted.returned]
    _keep_layout(module, graph, examples, wanted)
    return lowering.compile_traced(module, examples, options)


def _keep_layout(module: GraphModule, graph: Graph, examples: Sequence[Any], wanted: Sequence[Any]) -> None:
    """Give results the strides that Dynamo recorded, where rewriting or the layout of weights has changed them."""
    # what the module writes are copies here, for the records of the arguments are shared
    with graph.fake_mode, torch.no_grad():
        copies = [value.clone() if isinstance(value, Tensor) else value for value in examples]
        found = module(*copies)
    output = module.graph.output_node()
    values: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    with module.graph.inserting_before(output):
        for i, (now, then) in enumerate(zip(found, wanted, strict=True)):
            if isinstance(now, Tensor) and str(now.stride()) != str(then.stride()):
                format_ = _memory_format(then)
                if format_ is not None:
                    values[i] = module.graph.call_function(aten.clone.default, (values[i],), {"memory_format": format_})
    output.args = (tuple(values),)
    module.recompile()


def _memory_format(value: Tensor) -> torch.memory_format | None:
    if value.is_contiguous():
        return torch.contiguous_format
    for rank, format_ in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if value.dim() == rank and value.is_contiguous(memory_format=format_):
            return format_
    return None


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
