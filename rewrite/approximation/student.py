"""The module that comes out of an approximation: a program with weights of its own, to be trained and undone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from rewrite import compat
from rewrite.approximation.calibration import mismatch
from rewrite.approximation.ledger import Ledger
from rewrite.approximation.sites import replacement
from rewrite.errors import InputError, RewriteError, RuleError
from rewrite.names import nearest
from rewrite.rule import Match
from rewrite.splice import Splice

if TYPE_CHECKING:
    from rewrite.approximation.contract import Approximation, Option
    from rewrite.graph import Graph


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

    def __init__(self, program: fx.GraphModule, graph: Graph, results: Mapping[str, str]):
        super().__init__()
        self.program = program
        self._signature, self._inputs = graph.signature, tuple(graph.inputs)
        self._results = dict(results)

    @property
    def boundaries(self) -> tuple[str, ...]:
        """The names of the values that :meth:`observe` gives."""
        return tuple(self._results)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model.

        Raises:
            InputError: sizes that were not free, or arguments that are no tensors, are not those that the program was
                made for.
        """
        self._flat(args, kwargs)
        return self.program(*args, **kwargs)

    def _flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The flat inputs of a call.

        Raises:
            InputError: it is not like that which the program was made for.
        """
        kwargs = {name: kwargs[name] for name in sorted(kwargs, key=self._position)}
        flat, spec = compat.tree_flatten((args, kwargs))
        if spec != self._signature.in_spec:
            raise InputError("the call is not like that which the program was made for; pass the same arguments")
        for node, found in zip(self._inputs, flat, strict=True):
            reason = mismatch(node, found)
            if reason:
                raise InputError(f"the program was made for other calls: this one has {reason}; approximate the model "
                                 "for it")  # fmt: skip
        return flat

    def _position(self, name: str) -> int:
        names = self._signature.argument_names
        return names.index(name) if name in names else len(names)

    def observe(self, names: Sequence[str], *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        """The outputs for a call, and inner values by name; gradients flow through both.

        Raises:
            InputError: an unknown name, or another call than the program takes.
        """
        for name in names:
            if name not in self._results:
                raise InputError(f"there is no boundary {name!r}{nearest(str(name), self._results)}")
        flat = self._flat(args, kwargs)
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
        super().__init__(self.graph.to_module(_weights(self.graph, {})), self.graph, results)
        self._source = source
        self._taken = tuple(taken)
        self.eval()

    @property
    def source(self) -> Observed:
        """The program before, over the original weights, with the same boundaries: a teacher for each block."""
        names = {each.site: each.site for each in self._taken}
        inner = {node.name for node in self._source.nodes}
        names = {site: name for site, name in names.items() if name in inner}
        like = self._like()
        frozen = {name: _as(like, tensor.detach().clone()) for name, tensor in self._source.weights.items()}
        return Observed(self._source.to_module(frozen), self._source, names).eval()

    def _like(self) -> Tensor:
        """A tensor of the dtype and device that weights have by now."""
        weights = (*self.program.parameters(), *self.program.buffers())
        return next((x for x in weights if x.is_floating_point()), torch.empty(0))

    def undo(self, *sites: str) -> None:
        """Put the original operators and weights back at some sites; at all of them where none is named.

        Everything else stays as it is, also what was trained since. Parameters of other sites stay the same objects;
        an optimizer over those of the sites forgets nothing by itself, so make a new one.

        Args:
            sites: of the ledger's entries, or the paths of their modules.

        Raises:
            InputError: a site is not approximated, or a path has several.
            RuleError: another site was found in what is undone; undo that as well.
        """
        names = {each.site for each in self._taken}
        gone = {self._named(site) for site in sites} or names
        kept = tuple(each for each in self._taken if each.site not in gone)
        self.graph, results = built(self._source, kept)
        present = dict(self.program.named_parameters()) | dict(self.program.named_buffers())
        weights = _weights(self.graph, present, self._like())
        if present and not any(x.requires_grad for x in present.values()):
            weights = {name: x.requires_grad_(False) for name, x in weights.items()}
        self.program = self.graph.to_module(weights).train(self.training)
        self._results, self._taken = results, kept
        self.ledger = self.ledger.without(gone, self.graph)

    def _named(self, site: str) -> str:
        """The site of that name, or in the module of that path.

        Raises:
            InputError: there is none, or there are several.
        """
        taken = self.ledger.taken
        found = [entry.site for entry in taken if site in (entry.site, entry.module)]
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"there are several sites in {site!r}: {', '.join(found)}; name one of them")
        known = {name for entry in taken for name in (entry.site, entry.module)}
        raise InputError(f"site {site!r} is not approximated{nearest(str(site), known)}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RewriteError(
            "an approximated module cannot be pickled; save its state_dict(), or optimize it and save that"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> ApproximatedModule:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        shared = ("graph", "ledger", "_source", "_taken", "_signature", "_inputs")
        for key, value in self.__dict__.items():
            twin.__dict__[key] = value if key in shared else copy.deepcopy(value, memo)
        return twin


def _weights(graph: Graph, present: Mapping[str, Tensor], like: Tensor | None = None) -> dict[str, Tensor]:
    """The weights of a student: those that are there, else copies of its program's, parameters among them.

    Args:
        graph: the program.
        present: the weights of the student before, by name.
        like: has the dtype and device that copies get; None for their own.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in graph.weights.items():
        if name in present:
            found[name] = present[name]
            continue
        value = _as(like, tensor.detach().clone())
        trained = isinstance(tensor, nn.Parameter)
        found[name] = nn.Parameter(value, tensor.requires_grad) if trained else value
    return found


def _as(like: Tensor | None, tensor: Tensor) -> Tensor:
    """A tensor on the device of another one, and where it holds real numbers in its dtype."""
    if like is None:
        return tensor
    return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)
