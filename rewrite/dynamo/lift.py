"""From a graph that Dynamo traced to a :class:`~rewrite.graph.Graph` over named weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from rewrite import compat
from rewrite.dynamo import decline
from rewrite.dynamo.arguments import Argument, arguments_of
from rewrite.dynamo.autocast import effective_autocast, explicit_autocast
from rewrite.dynamo.floats import without_floats
from rewrite.dynamo.gradients import detach_regions
from rewrite.dynamo.hidden_writes import decline_hidden_writes
from rewrite.example import remember
from rewrite.provenance import location
from rewrite.trace import build, normalize
from rewrite.trace.errors import place

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from rewrite.graph import Graph

aten = torch.ops.aten

_ASSERTIONS = ("_assert_async", "_assert_scalar", "_functional_assert")
"""A functional graph holds values only, and would lose these."""

_ROOT = re.compile(r"^L\['\w+'\]\.?")


@dataclass(frozen=True)
class Lifted:
    """A graph of Dynamo in canonical form.

    Attributes:
        graph: its weights are the tensors of the call that was traced, its inputs the other arguments, in order.
        arguments: all arguments of the compiled function.
        recorded: their values in the fake mode of the graph.
        differentiate: gradients may be asked for.
        results: the recorded values that Dynamo expects, flat.
        returned: of these, those that are an argument which the call writes, and the positions of the arguments. They
            are no outputs of the graph.
    """

    graph: Graph
    arguments: tuple[Argument, ...]
    recorded: tuple[Any, ...]
    differentiate: bool
    results: tuple[Any, ...]
    returned: Mapping[int, int]


def lift(module: GraphModule, examples: Sequence[Any]) -> Lifted:
    """The canonical form of a graph that a backend of ``torch.compile`` is given.

    The program means the same whatever autocast and grad mode it runs in, which are those of this call. It has to run
    without autocast.

    Args:
        module: the graph; not changed.
        examples: the real arguments, weights among them.

    Raises:
        Declined: the graph holds something that no rewrite understands.
    """
    decline.check(module, examples)
    without_floats(module)
    arguments = arguments_of(module, examples)
    differentiate = torch.is_grad_enabled() and any(
        isinstance(argument.recorded, Tensor) and argument.recorded.requires_grad for argument in arguments
    )
    if differentiate:
        decline_hidden_writes(module)
    with effective_autocast(module) as program:
        traced, signature = compat.functional_graph(program, [argument.recorded for argument in arguments])
    targets = _targets(traced, signature)
    own = len(signature.parameters) + len(signature.buffers)
    recorded = tuple(node.meta["val"] for node in traced.graph.find_nodes(op="placeholder")[own:])
    for value, argument in zip(recorded, arguments, strict=True):
        if isinstance(value, Tensor) and argument.recorded.requires_grad:
            value.requires_grad_()
    _tidy(traced.graph, differentiate)
    detach_regions(traced.graph, differentiate)
    mode = compat.fake_mode_of(traced.graph)
    if mode is not None:
        explicit_autocast(traced.graph, mode)
    nodes, tensors = _name(module, traced, signature, arguments, examples)
    results = tuple(_recorded(value) for value in module.graph.output_node().args[0])  # type: ignore[union-attr]
    written = [signature.user_inputs.index(target) for target in targets]
    returned = _returned(results, {i: arguments[i].recorded for i in written})
    _write_state(traced.graph, [nodes[target] for target in targets], returned)
    inputs = [argument for argument in arguments if not argument.is_weight]
    _sign(traced.graph, [argument.name for argument in inputs])
    with compat.without_autocast():
        graph = normalize(build(GraphModule(tensors, traced.graph), [argument.recorded for argument in inputs]))
        graph.check()
    graph.differentiated = differentiate
    pairs = zip(arguments, examples, strict=True)
    remember(graph, [example for argument, example in pairs if not argument.is_weight])
    return Lifted(graph, arguments, recorded, differentiate, results, returned)


def _targets(traced: GraphModule, signature: Any) -> tuple[str, ...]:
    """The inputs, by the names that the signature has for them, to which the first outputs are written, in order.

    Raises:
        Declined: something else is changed.
    """
    if getattr(signature, "input_tokens", ()):
        raise decline.Declined("an operator in it has an effect that is no value")
    constants = {**signature.buffers_to_mutate, **signature.parameters_to_mutate}
    if constants:
        raise decline.Declined(f"it writes to the constant '{next(iter(constants.values()))}'")
    written = signature.user_inputs_to_mutate
    outputs: Any = traced.graph.output_node().args[0]
    if len(outputs) != len(written) + len(signature.user_outputs):
        raise decline.Declined("one value is written to several arguments")
    return tuple(written[value.name] for value in outputs[: len(written)])


def _tidy(graph: fx.Graph, differentiate: bool) -> None:
    """Name modules from the root of the model, call copies of constants copies, and detach only for gradients."""
    names: dict[str, str] = {}
    for node in list(graph.nodes):
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {
                key: (names.setdefault(path, _ROOT.sub("", path)), kind) for key, (path, kind) in stack.items()
            }
        if isinstance(node.target, torch._ops.OpOverload) and node.target._opname.startswith(_ASSERTIONS):
            raise decline.Declined(f"'{node.target}'{place(location(node))} asserts something of values")
        if node.target is aten.lift_fresh_copy.default:
            node.target = aten.clone.default
        elif node.target is aten.detach.default and not differentiate:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _name(
    module: GraphModule, traced: GraphModule, signature: Any, arguments: Sequence[Argument], examples: Sequence[Any]
) -> tuple[dict[str, Node], dict[str, Tensor]]:
    """Let weights be ``get_attr`` nodes under their names, and inputs placeholders under theirs.

    Returns:
        What stands for each placeholder, by the name that the signature has for it; the weights by name.
    """
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    constants = [*signature.parameters, *signature.buffers]
    targets = [*constants, *signature.user_inputs]
    wanted = [("get_attr", f"constant.{name}", held[name]) for name in constants]
    wanted += [
        ("get_attr" if argument.is_weight else "placeholder", argument.name, value)
        for argument, value in zip(arguments, examples, strict=True)
    ]
    nodes: dict[str, Node] = {}
    tensors = {
        str(node.target): attrgetter(str(node.target))(traced) for node in traced.graph.find_nodes(op="get_attr")
    }
    placeholders = traced.graph.find_nodes(op="placeholder")
    for node, target, (kind, name, value) in zip(placeholders, targets, wanted, strict=True):
        nodes[target] = _replace(traced.graph, node, kind, name)
        if kind == "get_attr":
            tensors[name] = value
    for name, tensor in tensors.items():
        if isinstance(tensor, compat.FakeTensor):
            raise decline.Declined(f"the constant '{name}' has no value")
    return nodes, tensors


def _replace(graph: fx.Graph, node: Node, kind: str, name: str) -> Node:
    with graph.inserting_before(node):
        made = graph.create_node(kind, name)
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)
    return made


def _returned(results: Sequence[Any], written: Mapping[int, Any]) -> dict[int, int]:
    """The results that are a written argument itself, and which.

    Raises:
        Declined: a result is another view of a written argument, which a functional graph cannot give.
    """
    owners = {argument.untyped_storage()._cdata: i for i, argument in written.items()}
    found: dict[int, int] = {}
    for position, value in enumerate(results):
        owner = owners.get(value.untyped_storage()._cdata) if isinstance(value, Tensor) else None
        if owner is None:
            continue
        if value is not written[owner]:
            raise decline.Declined(f"result {position} is a view of an argument that the call writes")
        found[position] = owner
    return found


def _write_state(graph: fx.Graph, targets: Sequence[Node], returned: Collection[int]) -> None:
    """Write the first outputs to their targets before the output, which then gives the other results alone."""
    output = graph.output_node()
    values: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    state, results = values[: len(targets)], values[len(targets) :]
    with graph.inserting_before(output):
        for target, value in zip(targets, state, strict=True):
            graph.call_function(aten.copy_.default, (target, value))
    output.args = (tuple(value for i, value in enumerate(results) if i not in returned),)


def _sign(graph: fx.Graph, names: Sequence[str]) -> None:
    """Give the graph the signature of a call with positional arguments that returns a tuple."""
    count = len(graph.output_node().args[0])  # type: ignore[arg-type]
    in_spec = compat.tree_flatten(((0,) * len(names), {}))[1]
    out_spec = compat.tree_flatten((0,) * count)[1]
    graph.set_codegen(compat.pytree_codegen(names, in_spec, out_spec))


def _recorded(value: Any) -> Any:
    return value.meta["example_value"] if isinstance(value, Node) else value
