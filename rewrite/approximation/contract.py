"""The contract of a rule that approximates.

A rule finds its matches as every rule does; here they are called sites. Of each it says what it wants to see of the
data (:meth:`Approximation.watch`), and then, with that seen, what it offers (:meth:`Approximation.options`): weights
fitted to the data, with the error that is predicted. Which option is taken, if any, is for the search to say, and
:meth:`~rewrite.rule.Rule.rewrite` builds it from ``match.option``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rewrite.rule import Fidelity, Rule

if TYPE_CHECKING:
    from torch.fx import Node

    from rewrite.approximation.statistics import Statistic
    from rewrite.graph import Graph
    from rewrite.rule import Match


@dataclass(frozen=True)
class Watch:
    """What a rule wants to see of the data at a site.

    Attributes:
        nodes: the values that are given to ``statistic`` together, once for each batch.
        statistic: takes them; it may not keep them, so that memory does not grow with the number of batches.
    """

    nodes: tuple[Node, ...]
    statistic: Statistic


@dataclass(frozen=True)
class Option:
    """One approximation of a site.

    Attributes:
        text: what it is, for ledgers: ``"rank 2"``.
        error: the predicted error of the site's output: the root of the energy of what is wrong over that of the
            output, both summed over the data. 0 where the option is exact.
        facts: what ``rewrite`` builds from. Options of one site may share tensors, of which ``rewrite`` takes its part,
            and gives it to :meth:`~rewrite.fragment.Builder.bring`.
    """

    text: str
    error: float
    facts: Any = None


@dataclass(frozen=True)
class Approximation(Rule, abstract=True):
    """A rule whose result is another function, fitted to data.

    It never runs in a pipeline: :func:`rewrite.approximate` runs it, with data and a budget. Subclasses are frozen
    dataclasses; options of the rule are their fields.

    Class attributes:
        region: whether sites are many operators, in which other rules may find sites of their own. Such a rule has a
            turn of its own, before the rules behind it look for sites.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.APPROXIMATE
    region: ClassVar[bool] = False

    def watch(self, graph: Graph, match: Match) -> Mapping[str, Watch]:
        """What to see of the data, by name. The nodes are inputs or nodes of the match."""
        raise NotImplementedError

    def options(self, graph: Graph, match: Match, seen: Mapping[str, Statistic]) -> Sequence[Option]:
        """What the rule offers at a site, in any order; nothing where the data shows that nothing would do.

        Args:
            graph: the program; only read.
            match: the site.
            seen: the statistics of :meth:`watch`, with all batches in them.
        """
        raise NotImplementedError
