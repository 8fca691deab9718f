"""Which channel keeps which part of its kernel: within an error of all together, or in fixed numbers."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import torch
from torch import Tensor

STEPS = 16
"""Assignments of different errors that are offered at most."""


def cheapest(wrong: Tensor, costs: Tensor) -> list[Tensor]:
    """Assignments on the lower hull of cost and error: for a price of an error each channel takes what is best for it.

    Args:
        wrong: ``[C, kinds]``, what each kind leaves wrong in each channel.
        costs: ``[kinds]``.

    Returns:
        For each assignment the kind of each channel, ``[C]``; the costliest first.
    """
    prices = _prices(wrong, costs)
    found: dict[tuple[int, ...], Tensor] = {}
    for price in prices:
        kinds = (costs[None] + price * wrong).argmin(1)
        found.setdefault(tuple(kinds.tolist()), kinds)
    several = list(found.values())
    if len(several) <= STEPS:
        return several
    return [several[round(i * (len(several) - 1) / (STEPS - 1))] for i in range(STEPS)]


def _prices(wrong: Tensor, costs: Tensor) -> list[float]:
    """Those at which a channel changes its mind, from high ones on."""
    saved = costs[None, :, None] - costs[None, None, :]
    more = wrong[:, None, :] - wrong[:, :, None]
    turns = (saved / more)[(saved > 0) & (more > 0)]
    if not len(turns):
        return [1.0]
    levels = torch.quantile(turns.log(), torch.linspace(1, 0, 4 * STEPS, dtype=turns.dtype)[: len(turns) * 4])
    return [float(turns.max()) * 2, *levels.exp().tolist(), float(turns.min()) / 2]


def in_numbers(wrong: Tensor, counts: Sequence[int]) -> Tensor:
    """The assignment of least error with so many channels of each kind, ``[C]``: a transport problem.

    Args:
        wrong: ``[C, kinds]``, finite.
        counts: of the channels of each kind; they add up to C.
    """
    channels, kinds = wrong.shape
    if sum(counts) != channels:
        raise ValueError(f"{list(counts)} are not {channels} channels")
    scale = float(wrong.max()) or 1.0
    whole = (wrong / scale * 1e9).round().long()  # the simplex method of networkx needs whole numbers
    graph = nx.DiGraph()
    for channel in range(channels):
        graph.add_node(("channel", channel), demand=-1)
        for kind in range(kinds):
            if counts[kind]:
                graph.add_edge(("channel", channel), ("kind", kind), capacity=1, weight=int(whole[channel, kind]))
    for kind, count in enumerate(counts):
        if count:
            graph.add_node(("kind", kind), demand=count)
    flow = nx.min_cost_flow(graph)
    chosen = [next(kind for (_, kind), units in flow["channel", channel].items() if units)
              for channel in range(channels)]  # fmt: skip
    return torch.tensor(chosen)
