"""Kernel families: what a planner asks of those who write kernels, and the families that there are.

A family knows one kind of main operator. It finds them in a graph, says which regions around one a kernel can hold, and
gives the kernels that a region may have, with what each of them does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rewrite.errors import InputError

if TYPE_CHECKING:
    from torch.fx import Graph, Node

    from codegen.triton.device import Device, Work
    from codegen.triton.kernel import Kernel
    from codegen.triton.region import Main, Region


@dataclass(frozen=True)
class Candidate:
    """A kernel that a region may have.

    Attributes:
        work: what it does.
        schedules: how it is cut into programs, in words.
        emit: writes it.
    """

    work: Work
    schedules: tuple[str, ...]
    emit: Callable[[], Kernel]


class Family(Protocol):
    """Kernels around one kind of main operator.

    Attributes:
        name: in plans.
    """

    name: str

    def mains(self, graph: Graph) -> Iterator[Main]:
        """The main operators of a graph with recorded values, none of which shares an operator with another one."""
        ...

    def why_not(self, node: Node) -> str:
        """Why a node is no main operator though it looks like one; '' for all others."""
        ...

    def regions(self, main: Main) -> Iterator[Region]:
        """The regions around it that a kernel can hold."""
        ...

    def candidates(self, region: Region, device: Device, elementwise: bool = False) -> Sequence[Candidate]:
        """The kernels that a region may have on a device, those that should be fastest first; only those that fit.

        Args:
            region: one of :meth:`regions`.
            device: what it runs on.
            elementwise: only kernels in which NaN and infinities reach the results that they reach in the operators.
        """
        ...

    def library(self, main: Main) -> Sequence[Work]:
        """What the libraries' kernels do in its place, one after the other."""
        ...


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Let planners use a family; it takes the place of one of the same name.

    Raises:
        InputError: it has no name.
    """
    if not getattr(family, "name", ""):
        raise InputError(f"{family!r} has no name; give it an attribute 'name' for plans and reports")
    _FAMILIES[family.name] = family


def unregister(name: str) -> None:
    """Forget a family.

    Raises:
        InputError: there is none of that name.
    """
    if name not in _FAMILIES:
        raise InputError(f"there is no kernel family '{name}'; there are {sorted(_FAMILIES)}")
    del _FAMILIES[name]


def families() -> tuple[Family, ...]:
    """Those that are registered."""
    return tuple(_FAMILIES.values())
