"""Putting a finished fragment into the graph in place of a match, and taking it out again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewrite.aliases import alias_classes

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.fragment import Fragment
    from rewrite.graph import Graph
    from rewrite.rule import Match


class Splice:
    """One replacement. Old nodes stay, unread, until :meth:`commit`, so :meth:`rollback` restores the graph exactly.

    Attributes:
        added: the nodes that were added, in order.
        new: the operators among them.
        results: the nodes that stand for the match's outputs now.
        lost_readers: after :meth:`commit`, living nodes that an erased node read.
    """

    def __init__(self, graph: Graph, match: Match, fragment: Fragment):
        self._graph, self._match, self._fragment = graph, match, fragment
        self._readers = [
            (user, user.args, user.kwargs)
            for user in dict.fromkeys(user for node in match.outputs for user in node.users)
        ]
        mapping: dict[Node, Node] = {stand_in: node for node, stand_in in fragment.inputs.items()}
        self.added: list[Node] = []
        self.lost_readers: list[Node] = []
        with graph.fx.inserting_before(match.outputs[0]):
            for node in fragment.fx.nodes:
                if node.op != "placeholder":
                    mapping[node] = graph.fx.node_copy(node, mapping.__getitem__)
                    self.added.append(mapping[node])
        self.new = [node for node in self.added if node.op == "call_function"]
        self.results = tuple(mapping[node] for node in fragment.outputs)
        inside = set(match.nodes)
        for old, new in zip(match.outputs, self.results, strict=True):
            for user in list(old.users):
                if user not in inside:
                    user.replace_input_with(old, new)
        graph.weights.update(fragment.constants)
        reads = [(arg, node) for node in self.added for arg in node.all_input_nodes]
        reads += [(result, user) for result in self.results for user in result.users]
        if any(arg > node for arg, node in reads):
            graph.sort()
        graph.touch()

    def commit(self) -> list[Node]:
        """Erase what was replaced and all that is dead with it; returns the erased nodes."""
        for name, node in self._fragment.folds.items():
            self._graph.program.absorb(node, name)
        operands = {node: node.all_input_nodes for node in self._graph.nodes}
        erased = self._graph.eliminate_dead()
        gone = set(erased)
        read = dict.fromkeys(operand for node in erased for operand in operands[node])
        self.lost_readers = [node for node in read if node not in gone]
        self._drop_folded(erased)
        return erased

    def _drop_folded(self, erased: list[Node]) -> None:
        """Forget folded values that are folded into others now; the weights of the model stay."""
        graph = self._graph
        names = {str(node.target) for node in erased if node.op == "get_attr"} & graph.program.results.keys()
        if names:
            names -= {str(node.target) for node in graph.nodes if node.op == "get_attr"}
            graph.program.keep(graph.program.results.keys() - names)
            for name in names:
                del graph.weights[name]

    def rollback(self) -> None:
        """Restore the graph as it was."""
        for user, args, kwargs in self._readers:
            user.args, user.kwargs = args, kwargs
        for node in reversed(self.added):
            self._graph.fx.erase_node(node)
        for name in self._fragment.constants:
            del self._graph.weights[name]
        self._graph.touch()


def changed_aliases(graph: Graph, before: tuple[frozenset[str], ...]) -> str:
    """In words, how the alias classes of the outputs differ from ``before``; '' where they do not."""
    after = alias_classes(graph)
    if after == before:
        return ""
    gained = [sorted(group) for group in after if group not in before]
    lost = [sorted(group) for group in before if group not in after]
    return f"outputs would share memory in another way: {lost or 'nothing'} before, {gained or 'nothing'} after"
