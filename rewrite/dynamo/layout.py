"""The strides and the aliasing of results, as Dynamo recorded them and as the code around the graph relies on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from rewrite.aliases import alias_sources
from rewrite.compat import statically_known_true

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import GraphModule

    from rewrite.graph import Graph

aten = torch.ops.aten


def keep_layout(module: GraphModule, graph: Graph, examples: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Give results the strides that Dynamo recorded, where rewriting or the layout of weights has changed them.

    A value of which results are views is copied before they are taken, so that they stay views of one another.

    Args:
        module: what is compiled, see :func:`~rewrite.lowering.writing_module`; changed in place.
        graph: what it was made of.
        examples: the recorded arguments of the module.
        wanted: the recorded results.

    Returns:
        Whether all results have their strides.
    """
    wrong = _wrong(module, graph, examples, wanted)
    if not wrong:
        return True
    output = module.graph.output_node()
    values: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    roots = [_root(value) if isinstance(value, Node) else None for value in values]
    recorded = {node.name: node.meta.get("val") for node in graph.nodes}
    for root in dict.fromkeys(roots[i] for i in wrong):
        format_ = None if root is None or root.op == "placeholder" else _memory_format(recorded.get(root.name))
        if root is None or format_ is None:
            return False
        with module.graph.inserting_after(root):
            copied = module.graph.call_function(aten.clone.default, (root,), {"memory_format": format_})
        for i, value in enumerate(values):
            if roots[i] is root:
                values[i] = _redirected(value, root, copied)
    output.args = (tuple(values),)
    module.graph.lint()
    module.recompile()
    return not _wrong(module, graph, examples, wanted)


def _wrong(module: GraphModule, graph: Graph, examples: Sequence[Any], wanted: Sequence[Any]) -> list[int]:
    """The results that have other strides than wanted."""
    # what the module writes are copies here, for the records of the arguments are shared
    with graph.fake_mode, torch.no_grad():
        found = module(*[value.clone() if isinstance(value, Tensor) else value for value in examples])
    pairs = enumerate(zip(found, wanted, strict=True))
    return [i for i, (now, then) in pairs if isinstance(now, Tensor) and _strides(now) != _strides(then)]


def _strides(value: Tensor) -> tuple[str, ...]:
    """The strides that matter."""
    sizes = zip(value.shape, value.stride(), strict=True)
    return tuple(str(stride) for size, stride in sizes if not statically_known_true(size == 1))


def _root(value: Node) -> Node:
    """The value that a result is a view of, or the result."""
    while len(sources := alias_sources(value)) == 1:
        value = sources[0]
    return value


def _redirected(value: Node, root: Node, copied: Node) -> Node:
    """A result that is a view of ``root`` as the same view of ``copied``."""
    if value is root:
        return copied
    link = value
    while copied not in link.all_input_nodes:
        source = alias_sources(link)[0]
        if source is root:
            link.replace_input_with(root, copied)
            break
        link = source
    return value


def _memory_format(value: Any) -> torch.memory_format | None:
    if not isinstance(value, Tensor):
        return None
    if value.is_contiguous():
        return torch.contiguous_format
    for rank, format_ in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if value.dim() == rank and value.is_contiguous(memory_format=format_):
            return format_
    return None
