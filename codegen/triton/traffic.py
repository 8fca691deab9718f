"""What operators move and compute, whoever fuses them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from codegen.triton.device import Work, total
from codegen.triton.pointwise import cost, printable
from codegen.triton.region import is_view
from rewrite.ops import Copy, LayerNorm, is_tensor, value, view

if TYPE_CHECKING:
    from torch.fx import Node


def size(nodes: Iterable[Node]) -> int:
    """Bytes of the values of nodes, as far as these are tensors."""
    return sum(value(node).numel() * value(node).element_size() for node in nodes if is_tensor(node))


def times(work: Work, count: float) -> Work:
    """The instructions of ``work``, which is of one element, for so many."""
    return Work(plain=work.plain * count, special=work.special * count)


def instructions(node: Node) -> Work:
    """What an operator does for each element."""
    if isinstance(view(node), LayerNorm):
        return Work(plain=10.0)
    if is_view(node) or isinstance(view(node), Copy):
        return Work()
    if not printable(node):
        return Work(plain=1.0)
    spent = cost(node)
    return Work(plain=spent.arithmetic, special=spent.special)


def separate(nodes: Sequence[Node]) -> Work:
    """What pointwise operators and norms do as a kernel of their own, as a general compiler makes it."""
    inside = set(nodes)
    given = [node for node in nodes if any(user not in inside for user in node.users)]
    read = dict.fromkeys(each for node in nodes for each in node.all_input_nodes if each not in inside)
    elements = max((value(node).numel() for node in nodes), default=0)
    return Work(bytes=size(read) + size(given)) + times(total(instructions(node) for node in nodes), elements)
