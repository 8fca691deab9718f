"""From an unlifted program to a :class:`~rewrite.graph.Graph`: writes become outputs of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx import Node

from rewrite import compat
from rewrite.aliases import alias_sources
from rewrite.errors import CaptureError
from rewrite.graph import Graph, Mutation, Signature
from rewrite.provenance import location
from rewrite.trace.errors import place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

aten = torch.ops.aten

_ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "_functional_assert",
               "sym_constrain_range")  # fmt: skip


def build(
    module: fx.GraphModule, flat_inputs: Sequence[Any] = (), registered: Mapping[str, Tensor] | None = None
) -> Graph:
    """The graph of an unlifted program, over the very tensors that the program holds.

    Args:
        module: as ``ExportedProgram.module(check_guards=False)`` gives it.
        flat_inputs: the example, for the recorded values of inputs that are no tensors.
        registered: the parameters and buffers of the model. One that forward takes from a list is a constant for
            ``export``, and is called by its name again.

    Raises:
        CaptureError: a size depends on the values of tensors, or a write is not at the end.
    """
    mode = compat.fake_mode_of(module.graph) or compat.FakeTensorMode()
    nodes = fx.Graph()
    copied: dict[Node, Node] = {}
    weights: dict[str, Tensor] = {}
    first_of: dict[int, Node] = {}
    written: dict[Node, tuple[Mutation, Node]] = {}
    constants = iter(flat_inputs)
    registered = registered or {}
    named = {_memory(tensor): (name, tensor) for name, tensor in registered.items() if tensor.numel()}

    for node in module.graph.nodes:
        if node.op == "output":
            break
        if node.op == "placeholder":
            copied[node] = nodes.node_copy(node)
            copied[node].meta.setdefault("val", next(constants, None))
            continue
        if node.op == "get_attr":
            if not node.users:
                continue
            name = str(node.target)
            tensor = _attribute(module, name)
            if not isinstance(tensor, Tensor):
                raise CaptureError(f"the constant '{node.target}' is a {type(tensor).__name__}, not a tensor")
            if name not in registered:
                name, tensor = named.get(_memory(tensor), (name, tensor))
            # tied weights are one value
            if id(tensor) in first_of:
                copied[node] = first_of[id(tensor)]
                continue
            copied[node] = first_of[id(tensor)] = nodes.node_copy(node)
            copied[node].target = name
            weights[name] = tensor
            if "val" not in node.meta:
                copied[node].meta["val"] = mode.from_tensor(tensor, static_shapes=True)
            continue
        if _is_assertion(node):
            continue
        if node.target is aten.copy_.default:
            target, value = copied[node.args[0]], copied[node.args[1]]
            kind = "input" if target.op == "placeholder" else "weight"
            if target.op not in ("placeholder", "get_attr"):
                raise CaptureError(f"a write that is not to an input or a weight{place(location(node))}")
            copied[node] = value
            written[target] = (Mutation(kind, str(target.target)), value)  # type: ignore[arg-type]
            continue
        if compat.has_unbacked_size(node.meta.get("val")):
            raise CaptureError(
                f"the size of '{node.name}'{place(location(node))} depends on the values of tensors; use torch.where, "
                "or move it out of forward"
            )
        copied[node] = nodes.node_copy(node, copied.__getitem__)

    outputs = [copied[value] if isinstance(value, Node) else value for value in _flat_outputs(module)]
    mutations = tuple(mutation for mutation, _ in written.values())
    output = nodes.output((*outputs, *(value for _, value in written.values())))
    output.meta = dict(module.graph.output_node().meta)
    in_spec, out_spec = compat.signature_trees(module)
    signature = Signature(in_spec, out_spec, compat.argument_names(module), len(outputs), mutations)
    graph = Graph(nodes, weights, signature, mode)
    _unwrap_dropout(graph)
    graph.eliminate_dead()
    # state may be written and never read
    kept = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    kept |= {mutation.target for mutation in mutations if mutation.kind == "weight"}
    graph.weights = {name: tensor for name, tensor in weights.items() if name in kept}
    return graph


def _flat_outputs(module: fx.GraphModule) -> list[Any]:
    values = module.graph.output_node().args[0]
    return list(values) if isinstance(values, (tuple, list)) else [values]


def _attribute(module: fx.GraphModule, name: str) -> Any:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _memory(tensor: Tensor) -> Any:
    """What two tensors have in common that are one."""
    if tensor.layout is not torch.strided:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _is_assertion(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._opname.startswith(_ASSERTIONS)


def _unwrap_dropout(graph: Graph) -> None:
    """Drop the copies that stand for dropout in evaluation where an output shows that it makes none.

    Dropout returns its argument then, so an output behind it may be the input itself. Elsewhere the copy is left for a
    pass to remove, which reports it.
    """
    stack = [value for value in graph.outputs if isinstance(value, Node)]
    seen: set[Node] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.target is aten.clone.default and "dropout" in str(node.meta.get("torch_fn", ("", ""))[1]):
            source = node.args[0]
            assert isinstance(source, Node)
            node.replace_all_uses_with(source)
            stack.append(source)
        stack.extend(alias_sources(node))
