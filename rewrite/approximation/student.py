"""The module that comes out of an approximation: a program with weights of its own, to be trained and undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from rewrite import compat
from rewrite.approximation.ledger import Ledger
from rewrite.approximation.sites import replacement
from rewrite.errors import InputError, RuleError
from rewrite.names import nearest
from rewrite.rule import Match
from rewrite.splice import Splice

if TYPE_CHECKING:
    from rewrite.approximation.contract import Approximation, Option
    from rewrite.graph import Graph, Signature


@dataclass(frozen=True)
class Taken:
    """An option that is taken at a site.

    Attributes:
        rule: whose it is.
        site: the name of the site's result in the program before.
        option: what it is.
    """

    rule: Approximation
    site: str
    option: Option


def built(source: Graph, taken: Sequence[Taken]) -> tuple[Graph, dict[str, str]]:
    """A program with some of its sites replaced, and for each site the name of its result there.

    Args:
        source: not changed.
        taken: in the order in which they were chosen: later ones may be of what earlier ones made.

    Raises:
        RuleError: a rule does not find its site again.
    """
    graph = source.copy()
    results: dict[str, str] = {}
    for number, each in enumerate(taken, start=1):
        match = _found(graph, each)
        splice = Splice(graph, match, replacement(graph, match, each.option, number))
        results[each.site] = splice.results[-1].name
        splice.commit()
    graph.prune()
    return graph, results


def _found(graph: Graph, taken: Taken) -> Match:
    for node in graph.calls():
        if node.name == taken.site:
            for found in taken.rule.find(graph, (node,)):
                if isinstance(found, Match) and found.anchor is node:
                    return found
    raise RuleError(f"'{taken.rule.name}' does not find its site '{taken.site}' again")


class Observed(nn.Module):
    """A program whose inner values can be seen.

    Attributes:
        program: runs it.
        boundaries: the names under which values can be observed, in order.
    """

    program: fx.GraphModule

    def __init__(self, program: fx.GraphModule, signature: Signature, results: Mapping[str, str]):
        super().__init__()
        self.program = program
        self._signature = signature
        self._results = dict(results)

    @property
    def boundaries(self) -> tuple[str, ...]:
        """The names of the values that :meth:`observe` gives."""
        return tuple(self._results)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model."""
        return self.program(*args, **kwargs)

    def observe(self, names: Sequence[str], *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """The outputs for a call, and inner values by name; gradients flow through both.

        Raises:
            InputError: an unknown name, or another call than the program takes.
        """
        for name in names:
            if name not in self._results:
                raise InputError(f"there is no boundary {name!r}{nearest(str(name), self._results)}")
        flat, spec = compat.tree_flatten((args, kwargs))
        if spec != self._signature.in_spec:
            raise InputError("the call is not like that which the program was made for; pass the same arguments")
        watched = _Watched(self.program, {self._results[name]: name for name in names})
        found = watched.run(*flat, enable_io_processing=False)
        return compat.tree_unflatten(list(found), self._signature.out_spec), watched.seen


class _Watched(fx.Interpreter):
    """Runs a program and keeps some of its values."""

    def __init__(self, module: fx.GraphModule, names: Mapping[str, str]):
        super().__init__(module)
        self._names = names
        self.seen: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if n.name in self._names:
            self.seen[self._names[n.name]] = found
        return found


class ApproximatedModule(Observed):
    """A model with some of its parts approximated, as a module with weights of its own.

    It computes in evaluation mode what the rewritten program of the model computes: batch norms are folded. All
    weights with a floating-point dtype that were parameters, or came from parameters, are parameters: train it (with
    :func:`rewrite.distill`), then :func:`rewrite.optimize` it. The model that it was made of is not changed.

    Attributes:
        ledger: what was done at each site, and how far off it is.
        graph: the program with the weights that were fitted.
    """

    ledger: Ledger
    graph: Graph

    def __init__(self, source: Graph, taken: Sequence[Taken]):
        self.__dict__["graph"], results = built(source, taken)
        super().__init__(self.graph.to_module(_weights(self.graph, {})), self.graph.signature, results)
        self._source = source
        self._taken = tuple(taken)
        self.eval()

    @property
    def source(self) -> Observed:
        """The program before, over the original weights, with the same boundaries: a teacher for each block."""
        names = {each.site: each.site for each in self._taken}
        inner = {node.name for node in self._source.nodes}
        names = {site: name for site, name in names.items() if name in inner}
        frozen = {name: tensor.detach() for name, tensor in self._source.weights.items()}
        return Observed(self._source.to_module(frozen), self._source.signature, names).eval()

    def undo(self, *sites: str) -> None:
        """Put the original operators and weights back at some sites; at all of them where none is named.

        Everything else stays as it is, also what was trained since. Parameters of other sites stay the same objects;
        an optimizer over those of the sites forgets nothing by itself, so make a new one.

        Args:
            sites: of the ledger's entries.

        Raises:
            InputError: a site is not approximated.
        """
        names = {each.site for each in self._taken}
        for site in sites:
            if site not in names:
                raise InputError(f"site {site!r} is not approximated{nearest(str(site), names)}")
        gone = set(sites) or names
        kept = tuple(each for each in self._taken if each.site not in gone)
        self.graph, results = built(self._source, kept)
        present = dict(self.program.named_parameters()) | dict(self.program.named_buffers())
        self.program = self.graph.to_module(_weights(self.graph, present))
        self._results, self._taken = results, kept
        entries = [replace(entry, state="undone") if entry.state == "taken" and entry.site in gone else entry
                   for entry in self.ledger]  # fmt: skip
        self.ledger = replace(self.ledger, entries=tuple(entries))

    def __deepcopy__(self, memo: dict[int, Any]) -> ApproximatedModule:
        twin = ApproximatedModule(self._source, self._taken)
        memo[id(self)], twin.ledger = twin, self.ledger
        twin.load_state_dict(self.state_dict())
        for mine, theirs in zip(self.parameters(), twin.parameters(), strict=True):
            theirs.requires_grad_(mine.requires_grad)
        return twin.to(next(iter(self.parameters()), torch.empty(0)).device).train(self.training)


def _weights(graph: Graph, present: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a student: those that are there, else copies of its program's, floating-point ones to be trained.

    Args:
        graph: the program.
        present: the weights of the student before, by name.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in graph.weights.items():
        if name in present:
            found[name] = present[name]
        elif tensor.is_floating_point() and isinstance(tensor, nn.Parameter):
            found[name] = nn.Parameter(tensor.detach().clone())
        else:
            found[name] = tensor.detach().clone()
    return found
