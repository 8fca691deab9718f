"""What a rewrite changes in memory: strides that somebody sees, and outputs that share storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rewrite.aliases import alias_sources, roots
from rewrite.graph import fake_call
from rewrite.ops import Reshape, value, view_as
from rewrite.provenance import called
from rewrite.rule import Refusal
from rewrite.strides import equal_strides, reads_strides

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.fragment import Builder
    from rewrite.graph import Graph

aten = torch.ops.aten


def same_strides(a: Node, b: Node) -> bool:
    """Whether two tensors of the same shape are recorded with the same strides."""
    return equal_strides(value(a), value(b))


def readers(node: Node) -> set[Node]:
    """Every node that reads the value or a view of it, the graph's output among them."""
    found: set[Node] = set()
    stack = [node]
    while stack:
        top = stack.pop()
        for user in top.users:
            if user not in found:
                found.add(user)
                if top in alias_sources(user):
                    stack.append(user)
    return found


def is_returned(node: Node) -> bool:
    """Whether the model returns the value or a view of it, or writes it to its state."""
    return any(reader.op == "output" for reader in readers(node))


def sharing_refusal(source: Node, node: Node) -> Refusal | None:
    """Why ``node``, a copy or a view of ``source``, may not become ``source`` itself: a caller would notice."""
    if source.op != "call_function" and any(user.op == "output" for user in node.users):
        return Refusal("the model returns a tensor of its own, which would become its input or weight itself", source,
                       f"return {called(source)} itself where callers may have it")  # fmt: skip
    if source in alias_sources(node) or not is_returned(node):
        return None
    for root in roots(source):
        if root.op == "placeholder":
            return Refusal("the model returns a copy, which would become a view of its input", root,
                           f"leave {called(node)} out where callers may have a view of it")  # fmt: skip
        if root.op == "get_attr":
            return Refusal("the model returns a copy, which would become a view of a weight", root,
                           f"leave {called(node)} out where callers may have a view of it")  # fmt: skip
        if is_returned(root):
            return Refusal("the model returns both the copy and the original, which would share memory", root,
                           "return one of the two, once")  # fmt: skip
    return None


def layout_refusal(
    graph: Graph, source: Node, node: Node, requested: torch.memory_format | None = None
) -> Refusal | None:
    """Why ``source`` may not take the place of ``node``: strides that somebody sees would change.

    A kernel may round otherwise on other strides, so readers must find those that are recorded. ``requested`` is a
    layout that the model asks for by name: it holds for any input, also where the recorded strides agree by chance.
    """
    if requested is not None:
        for reader in readers(node):
            if reader.op == "output":
                return Refusal("the model returns a value in a layout that it asks for", node,
                               f"leave the memory format out of {called(node)}")  # fmt: skip
            if reads_strides(reader):
                return Refusal("asks for a layout on which another operator depends", reader,
                               f"call {called(reader)} on what does not depend on strides")  # fmt: skip
    if same_strides(source, node):
        return None
    for user in node.users:
        reshape = view_as(user, Reshape)
        if reshape is None:
            return Refusal("the copy changes the strides that another operator reads", user, _drop(node))
        if not _reshapes_alike(graph, source, user):
            return Refusal("without the copy a reshape would have other strides", user, _drop(node))
    return None


def reader_of_strides(node: Node) -> Node | None:
    """What sees the strides of a value or of a view of it: the graph's output, or an operator that depends on them."""
    return next((reader for reader in sorted(readers(node)) if reader.op == "output" or reads_strides(reader)), None)


def restored_strides(g: Builder, old: Node, new: Node) -> Node:
    """``new``, copied to the strides that ``old`` is recorded with where something sees them and a format has them."""
    if same_strides(old, new) or reader_of_strides(old) is None:
        return new
    for rank, layout in ((0, torch.contiguous_format), (4, torch.channels_last), (5, torch.channels_last_3d)):
        if rank in (0, value(new).dim()):
            copied = fake_call(g.graph.fake_mode, aten.clone.default, (new,), {"memory_format": layout})
            if equal_strides(copied, value(old)):
                return g(aten.clone.default, new, memory_format=layout)
    return new


def _drop(node: Node) -> str:
    return f"leave {called(node)} out of the model, where rounding may be that of other strides"


def _reshapes_alike(graph: Graph, source: Node, reshape: Node) -> bool:
    recorded = value(reshape)
    direct = fake_call(graph.fake_mode, aten.reshape.default, (source, list(recorded.shape)), {})
    return equal_strides(direct, recorded)


def strides_refusal(source: Node, node: Node) -> Refusal | None:
    """Why ``source`` may not take the place of ``node``, a fresh tensor: somebody sees strides that would change."""
    reader = None if same_strides(source, node) else reader_of_strides(node)
    if reader is None:
        return None
    if reader.op == "output":
        return Refusal("the model returns the result, whose strides would change", node,
                       f"return what is computed from {called(node)}")  # fmt: skip
    return Refusal("depends on strides, which would change", reader,
                   f"call {called(reader)} on what does not depend on strides")  # fmt: skip
