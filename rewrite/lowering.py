"""Lowering: from a graph to something that runs. The interface, and what every lowering needs.

A lowering gets a graph, its weights and one example of the flat inputs, and returns a function of both. It never
writes: new values of state come back as outputs, and the caller stores them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from rewrite import compat
from rewrite.graph import Graph, Mutation, Signature
from rewrite.ops import Convolution
from rewrite.ops.view import arguments

if TYPE_CHECKING:
    from collections.abc import Mapping

aten = torch.ops.aten

PLANAR_WIDTH = 10
"""The columns from which depthwise kernels may have faster code for channels first than for channels last, on a CPU."""

_FUNCTIONAL_NORM = aten._native_batch_norm_legit_functional.default


def is_wide_depthwise(conv: Convolution, width: int = PLANAR_WIDTH) -> bool:
    """Whether each channel of images has a kernel of its own, of so many columns or more."""
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    return conv.dims == 2 and not conv.transposed and depthwise and conv.kernel[-1] >= width


Executable = Callable[[Sequence[Any], Sequence[Tensor]], Sequence[Any]]
"""``run(inputs, weights)`` gives the flat outputs, the values of mutations last."""


class Lowering(Protocol):
    """A way to run graphs.

    Attributes:
        name: in messages and reports.
        freezes: whether :meth:`compile` can bake weights in.
        static: whether an executable holds for the sizes of its example only.
        arranges: whether it lays out what convolutions read itself, whatever the layout in the graph.
    """

    name: str
    freezes: bool
    static: bool
    arranges: bool

    def arrange(self, graph: Graph, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights as executables that are not frozen want them; the same values, shapes and dtypes."""
        ...

    def compile(self, graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Any], frozen: bool) -> Executable:
        """An ``Executable`` of ``graph`` for inputs with the dtypes, devices and, if static, sizes of the example.

        Args:
            graph: not changed.
            weights: by name, all that the graph reads and writes, in the order in which the executable takes them;
                arranged, unless ``frozen``.
            inputs: the flat inputs; their values may be read to try the executable, and are not changed.
            frozen: the values of weights that a call does not write may be baked in. Such an executable ignores what it
                is given for them.
        """
        ...

    def rehearse(self, module: GraphModule) -> Callable[..., Sequence[Any]]:
        """A small module with the kernels that an executable would call, made without compiling, to be timed.

        Args:
            module: its nodes have recorded values of the sizes and strides of a call, its attributes are weights. May
                be changed.
        """
        ...

    def compile_traced(
        self, module: GraphModule, examples: Sequence[Any], options: Mapping[str, Any]
    ) -> Callable[..., Sequence[Any]]:
        """Compile a flat module inside a backend of ``torch.compile``: for symbolic sizes, with gradients and writes.

        Args:
            module: as :func:`writing_module` gives it; may be changed.
            examples: the recorded values of its arguments.
            options: of the compiler.
        """
        ...


def written_weights(graph: Graph) -> tuple[str, ...]:
    """The names of the weights that a call writes."""
    return tuple(mutation.target for mutation in graph.signature.mutations if mutation.kind == "weight")


def weight_order(graph: Graph) -> tuple[str, ...]:
    """The names of the weights that a graph reads or writes, in the order of first use; written ones come first."""
    used = (str(node.target) for node in graph.nodes if node.op == "get_attr")
    return tuple(dict.fromkeys((*written_weights(graph), *used)))


def flat_module(
    graph: Graph,
    arguments: Sequence[str],
    baked: Mapping[str, Tensor] | None = None,
    literals: Mapping[int, Any] | None = None,
) -> GraphModule:
    """The graph as a module that is called with flat inputs, then weights, and returns a tuple of all flat outputs.

    Args:
        graph: not changed.
        arguments: the weights that are arguments, in order.
        baked: the other weights, which become attributes.
        literals: inputs by position that are constants; the module does not take them.
    """
    baked, literals = baked or {}, literals or {}
    nodes = fx.Graph()
    mapping: dict[Node, Any] = {}
    for i, node in enumerate(graph.inputs):
        mapping[node] = literals[i] if i in literals else _placeholder(nodes, node)
    weights = {name: nodes.placeholder(f"weight_{name.replace('.', '_')}") for name in arguments}
    for node in graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            mapping[node] = weights[name] if name in weights else nodes.node_copy(node)
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), mapping.__getitem__)
            mapping[node] = nodes.create_node("call_function", node.target, args, kwargs, node.name)
            mapping[node].meta = {key: node.meta[key] for key in ("stack_trace", "nn_module_stack") if key in node.meta}
    nodes.output(tuple(mapping[value] if isinstance(value, Node) else value for value in graph.outputs))
    used = {str(node.target) for node in nodes.nodes if node.op == "get_attr"}
    return GraphModule({name: baked[name] for name in used}, nodes)


def writing_module(graph: Graph, arguments: Sequence[str]) -> GraphModule:
    """As :func:`flat_module` for weights that are all arguments, but it writes state itself and returns results alone.

    Args:
        graph: not changed.
        arguments: the weights, in order.
    """
    module = flat_module(graph, arguments)
    output = module.graph.output_node()
    values: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    count = graph.signature.outputs
    inputs = [str(node.target) for node in graph.inputs]
    names = [*(("input", name) for name in inputs), *(("weight", name) for name in arguments)]
    places = dict(zip(names, module.graph.find_nodes(op="placeholder"), strict=True))
    with module.graph.inserting_before(output):
        for mutation, value in zip(graph.signature.mutations, values[count:], strict=True):
            module.graph.call_function(aten.copy_.default, (places[mutation.kind, mutation.target], value))
    output.args = (tuple(values[:count]),)
    module.recompile()
    return module


def record(module: GraphModule, examples: Sequence[Any], before: Callable[[Node], None] = lambda node: None) -> None:
    """Record at each node of a flat module, as views read it, a fake tensor of the sizes and strides that it has.

    Args:
        module: its attributes are tensors.
        examples: one for each of its arguments; only their metadata is read. Fake tensors are taken as they are.
        before: told each operator and the output, once what they read is recorded; may put operators in front of them,
            and records these.

    Raises:
        Exception: whatever an operator raises.
    """
    given = iter(examples)
    modes = (example.fake_mode for example in examples if isinstance(example, compat.FakeTensor))
    mode = next(modes, None) or compat.FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        for node in list(module.graph.nodes):
            if node.op in ("placeholder", "get_attr"):
                value = next(given) if node.op == "placeholder" else operator.attrgetter(str(node.target))(module)
                real = isinstance(value, Tensor) and not isinstance(value, compat.FakeTensor)
                node.meta["val"] = mode.from_tensor(value, static_shapes=True) if real else value
            else:
                before(node)
            if node.op == "call_function":
                node.meta["val"] = called(node)


def called(node: Node) -> Any:
    """What an operator gives for the recorded values that it reads."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda operand: operand.meta["val"])
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _placeholder(nodes: fx.Graph, node: Node) -> Node:
    placeholder = nodes.placeholder(str(node.target))
    placeholder.meta = {key: node.meta[key] for key in ("stack_trace",) if key in node.meta}
    return placeholder


def run_eagerly(graph: Graph, order: Sequence[str]) -> Executable:
    """An ``Executable`` that runs the operators one by one, for inputs of any size that the graph takes.

    Args:
        graph: not changed.
        order: the names of the weights that it takes.
    """
    module = flat_module(graph, order)

    def run(inputs: Sequence[Any], weights: Sequence[Tensor]) -> Sequence[Any]:
        return module(*inputs, *weights)  # type: ignore[no-any-return]

    return run


def differentiable(graph: Graph) -> Graph:
    """A copy whose batch norms update their running statistics themselves, in place.

    The functional batch norm saves the statistics for its backward, and writing the new ones back afterwards
    invalidates them. ``aten.batch_norm`` is made for that. Writes that it takes over leave the signature; other readers
    of a statistic get a copy of the value that they would have read.
    """
    twin = graph.copy()
    count = twin.signature.outputs
    results = twin.outputs[:count]
    state = dict(zip(twin.signature.mutations, twin.outputs[count:], strict=True))
    holders = _holders(state)
    norms = {value.args[0] for value in holders}
    if not all(isinstance(norm, Node) and _is_updatable(norm, holders) for norm in norms):
        return twin
    kept = {mutation: value for mutation, value in state.items() if value not in holders}
    twin.output.args = ((*results, *kept.values()),)
    signature = twin.signature
    twin.signature = Signature(
        signature.in_spec, signature.out_spec, signature.argument_names, signature.outputs, tuple(kept)
    )
    for weight in dict.fromkeys(holders.values()):
        _copy_for_readers(twin, weight, weight, weight, norms)
    for norm in twin.calls():
        if norm in norms:
            _update_in_place(twin, norm, holders, norms)
    twin.eliminate_dead()
    return twin


def _holders(state: Mapping[Mutation, Any]) -> dict[Node, Node]:
    """For each new running statistic that is stored: the weight that holds it.

    A batch norm that is called twice makes a chain: the second call reads what the first one wrote.
    """
    holders: dict[Node, Node] = {}
    for mutation, value in state.items():
        chain: list[Node] = []
        link = value
        while isinstance(link, Node) and _statistic(link) is not None:
            chain.append(link)
            link = _statistic(link)
        if isinstance(link, Node) and link.op == "get_attr" and str(link.target) == mutation.target:
            holders.update((value, link) for value in chain)
    return holders


def _statistic(value: Node) -> Node | None:
    """The running statistic that a functional batch norm updates to ``value``; None where it is no such value."""
    if value.target is not operator.getitem or value.args[1] not in (3, 4):
        return None
    norm = value.args[0]
    if not isinstance(norm, Node) or norm.target is not _FUNCTIONAL_NORM:
        return None
    old = arguments(norm)["running_mean" if value.args[1] == 3 else "running_var"]
    return old if isinstance(old, Node) else None


def _is_updatable(norm: Node, holders: Mapping[Node, Node]) -> bool:
    """Whether a functional batch norm gives its result and its new statistics, both of which are stored."""
    items = {user.args[1]: user for user in norm.users if user.target is operator.getitem}
    return set(items) == {0, 3, 4} and len(items) == len(norm.users) and items[3] in holders and items[4] in holders


def _update_in_place(graph: Graph, norm: Node, holders: Mapping[Node, Node], norms: Collection[Any]) -> None:
    items = {user.args[1]: user for user in norm.users}
    bound = arguments(norm)
    with graph.fx.inserting_before(norm):
        updating = graph.fx.call_function(
            aten.batch_norm.default,
            (bound["input"], bound["weight"], bound["bias"], holders[items[3]], holders[items[4]], bound["training"],
             bound["momentum"], bound["eps"], torch.backends.cudnn.enabled),
        )  # fmt: skip
    updating.meta = {**norm.meta, "val": norm.meta["val"][0]}
    items[0].replace_all_uses_with(updating)
    for item in (items[3], items[4]):
        _copy_for_readers(graph, item, holders[item], updating, norms)


def _copy_for_readers(graph: Graph, value: Node, holder: Node, after: Node, norms: Collection[Any]) -> None:
    """Let readers of ``value`` that are not among ``norms`` read a copy of ``holder``, made right after a node."""
    if all(user in norms for user in value.users):
        return
    with graph.fx.inserting_after(after):
        copied = graph.fx.call_function(aten.clone.default, (holder,))
    copied.meta = dict(value.meta)
    value.replace_all_uses_with(copied, delete_user_cb=lambda user: user not in norms and user is not copied)
