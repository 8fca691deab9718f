"""Linear forms: a sum of scaled branches over source nodes, and constants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.fx import Node

    from passes.reparameterize.kernels import Taps
    from rewrite.ops import AveragePool, BatchNorm, Convolution, Linear, Term
    from rewrite.rule import Refusal


@dataclass(frozen=True)
class Factor:
    """A multiplication or division by a number or a per-channel constant, or by the scale of an evaluated norm."""

    by: float | Node | BatchNorm
    divides: bool = False


@dataclass(frozen=True)
class Branch:
    """``factors * leaf(source)``.

    Attributes:
        source: what it reads, ``[N, C, *size]``; for linear layers ``[*, C]``.
        leaf: the operator; None for the identity.
        taps, stride: one for each spatial dimension; none for linear layers.
        groups: of the kernel that the branch amounts to; C for a pool and for the identity.
        width: the channels of the source in each group.
        mode: how the source is extended at its border, ``"zeros"``, ``"reflect"``, ...; '' where nothing outside is
            read.
        factors: what multiplies it, innermost first.
    """

    source: Node
    leaf: Convolution | Linear | AveragePool | None
    taps: tuple[Taps, ...]
    stride: tuple[int, ...]
    groups: int
    width: int = 1
    mode: str = ""
    factors: tuple[Factor, ...] = ()


@dataclass(frozen=True)
class Shift:
    """A constant for each channel: a number, a constant node, or the shift of an evaluated norm, times factors."""

    by: float | Node | BatchNorm
    factors: tuple[Factor, ...] = ()


@dataclass(frozen=True)
class Form:
    """What a node computes: the sum of branches and shifts. ``nodes`` are the operator nodes that it replaces."""

    branches: tuple[Branch, ...] = ()
    shifts: tuple[Shift, ...] = ()
    nodes: tuple[Node, ...] = ()

    def scaled(self, factor: Factor, nodes: Sequence[Node] = ()) -> Form:
        """The form times a factor that ``nodes`` apply."""
        branches = tuple(replace(branch, factors=(*branch.factors, factor)) for branch in self.branches)
        shifts = tuple(replace(shift, factors=(*shift.factors, factor)) for shift in self.shifts)
        return Form(branches, shifts, (*self.nodes, *nodes))

    @property
    def sources(self) -> set[Node]:
        """The nodes that the branches read."""
        return {branch.source for branch in self.branches}


@dataclass(frozen=True)
class Obstacle:
    """Why an operator that looks like a branch is none; of interest beside another branch that reads its source.

    Attributes:
        refusal: the reason.
        source: what the branch would read.
        nodes: the operators that look like one.
    """

    refusal: Refusal
    source: Node
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Hindrance:
    """Why an add-tree is not merged, and the nodes that would have been."""

    refusal: Refusal
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Tree:
    """An add-tree.

    Attributes:
        root: its result.
        axis: the dimension of its channels: 1, or the last one for linear layers.
        terms: each with its form over at most one source; None for a term that has none, as where it is broadcast.
        sums: the nodes that add the terms up.
        obstacles: what would have been a branch.
    """

    root: Node
    axis: int
    terms: tuple[tuple[Term, Form | None], ...]
    sums: tuple[Node, ...]
    obstacles: tuple[Obstacle, ...]

    def form(self, index: int) -> Form:
        """The form of a term; one without branches where it has none."""
        return self.terms[index][1] or Form()
