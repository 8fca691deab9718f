"""What the compiler hands to the result for one static signature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rewrite import compat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from rewrite.graph import Graph
    from rewrite.lowering import Executable
    from rewrite.recipe import Settings


@dataclass(frozen=True)
class Ready:
    """A program that has been lowered already, with frozen weights, for one call.

    Attributes:
        run: takes the call.
        lowering: the name of what lowered it.
        seconds: what that took.
        inputs: the flat inputs of the call; tensors as their sizes, strides, dtype and device.
        threads: how many torch had.
    """

    run: Executable
    lowering: str
    seconds: float
    inputs: tuple[Any, ...]
    threads: int

    @classmethod
    def of(cls, run: Executable, lowering: str, seconds: float, flat: Sequence[Any]) -> Ready:
        """For these flat inputs, without autocast."""
        return cls(run, lowering, seconds, tuple(map(_kind, flat)), torch.get_num_threads())

    def takes(self, lowering: str, flat: Sequence[Any]) -> bool:
        """Whether it is what ``lowering`` would make now for these flat inputs."""
        now = lowering, torch.get_num_threads(), tuple(map(_kind, flat))
        return now == (self.lowering, self.threads, self.inputs) and not compat.is_any_autocast()


def _kind(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return type(value), value
    return tuple(value.shape), value.stride(), value.dtype, value.device


@dataclass(frozen=True)
class Program:
    """A model, captured, rewritten and verified for one example call.

    Attributes:
        graph: the rewritten graph. Its weights are the model's own tensors, constants, and folded values; its weight
            program computes the folded ones. Placeholders are recorded with the sizes of the example, the batch as a
            symbol where any batch runs.
        report: what was done, for ``result.report``.
        value_rules: names of the rules that were applied and hold for the present values of weights only. After a
            change of weights such a program is captured anew instead of refolded.
        one_row: whether the program is right for a batch of one as well.
        time: seconds by phase, shared with the report; each lowering adds its own as it happens.
        plan: the rewrites that were made, for ``result.plan``.
        captured: the graph before it was rewritten, with constants for its only tensors; None if it was not kept, and
            then the program cannot be saved.
        sample: the flat inputs of the example, of a free batch two rows.
        settings: how the program was made.
        identity: what the model was when it was captured, as :func:`~rewrite.cache.keys.identity_of` has it; None where
            that was in doubt, or where random numbers are drawn.
        standalone: whether the folded values are all there is: what they were computed from is gone.
        decided: the buffers on whose values Python decided in forward, and these values. While one has another value,
            the program is not that of the model.
        tentative: why another process should choose anew what was chosen here, '' where it need not.
        ready: the program lowered, frozen, for the example and the present weights, where that has been done.
    """

    graph: Graph
    report: Any = None
    value_rules: tuple[str, ...] = ()
    one_row: bool = True
    time: dict[str, float] = field(default_factory=dict)
    plan: Any = None
    captured: Graph | None = None
    sample: tuple[Any, ...] = ()
    settings: Settings | None = None
    identity: str | None = None
    standalone: bool = False
    decided: Mapping[str, Tensor] = field(default_factory=dict)
    tentative: str = ""
    ready: Ready | None = None

    def other_decision(self, find: Callable[[str], Tensor | None]) -> str:
        """The first buffer of :attr:`decided` that has another value by now, '' where none has.

        Args:
            find: gives the present buffers; stand-ins of exporters, which have no values, are passed over.
        """
        for name, value in self.decided.items():
            present = find(name)
            if compat.is_stand_in(present):
                continue
            if present is None or not torch.equal(present.to(value), value):
                return name
        return ""
