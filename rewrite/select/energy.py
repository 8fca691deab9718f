"""Costs of binary labels, singly and in pairs, and the labels that cost least, by a minimum cut.

Minimizing a function of binary variables that is a sum over pairs, each submodular, is a minimum cut (Kolmogorov and
Zabih, What energy functions can be minimized via graph cuts?, 2004).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import networkx as nx

NEVER = 10**14
"""More than anything costs: about a day, in nanoseconds."""

_SOURCE, _SINK = "source", "sink"


class Energy:
    """A sum of costs over variables that are 0 or 1. Costs are whole numbers, nanoseconds where it matters."""

    def __init__(self) -> None:
        self.constant = 0
        self._single: dict[Hashable, int] = {}
        self._pairs: dict[tuple[Hashable, Hashable], int] = {}
        self._helpers = 0

    def add(self, variable: Hashable, zero: int, one: int) -> None:
        """A cost of one variable."""
        self.constant += zero
        self._single[variable] = self._single.get(variable, 0) + one - zero

    def add_pair(self, a: Hashable, b: Hashable, costs: tuple[tuple[int, int], tuple[int, int]]) -> None:
        """A cost of two variables: ``costs[i][j]`` for ``a = i`` and ``b = j``.

        Where equal labels cost more than different ones together, which no cut expresses, ``costs[0][1]`` is raised:
        the result is then not the least, but still costs what it says or less.
        """
        (same, mixed), (other, both) = costs
        self.constant += same
        self.add(a, 0, other - same)
        self.add(b, 0, both - other)
        weight = mixed + other - same - both
        if weight > 0:
            self._pairs[a, b] = self._pairs.get((a, b), 0) + weight

    def add_conversion(self, value: Hashable, readers: Iterable[Hashable], cost: int) -> None:
        """A cost that is paid once for every label, other than that of ``value``, that any of the readers has."""
        up, down = self._helper(), self._helper()
        for reader in readers:
            self.add_pair(up, reader, ((0, NEVER), (0, 0)))  # up, where a reader is
            self.add_pair(reader, down, ((0, NEVER), (0, 0)))  # down is up only where all readers are
        self.add_pair(value, up, ((0, cost), (0, 0)))
        self.add_pair(down, value, ((0, cost), (0, 0)))

    def _helper(self) -> Hashable:
        self._helpers += 1
        self.add(("helper", self._helpers), 0, 0)
        return ("helper", self._helpers)

    def minimize(self) -> tuple[int, dict[Hashable, int]]:
        """The least cost, and the labels that have it."""
        network = nx.DiGraph()
        network.add_nodes_from((_SOURCE, _SINK))
        constant = self.constant
        for variable, cost in self._single.items():
            if cost >= 0:
                network.add_edge((variable,), _SINK, capacity=0)
                network.add_edge(_SOURCE, (variable,), capacity=cost)  # cut where the variable is 1
            else:
                constant += cost
                network.add_edge((variable,), _SINK, capacity=-cost)  # cut where it is 0
        for (a, b), weight in self._pairs.items():
            network.add_edge((a,), (b,), capacity=weight)
        cost, (zeros, _) = nx.minimum_cut(network, _SOURCE, _SINK)
        return constant + int(cost), {variable: int((variable,) not in zeros) for variable in self._single}
