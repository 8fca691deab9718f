"""What calls run on: the names of lowerings, the one of each kind of call, and the times by which it was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from rewrite.lowering import Executable

Lower = Literal["inductor", "eager", "onnxruntime", "openvino", "fastest"]
"""What users may name."""


@dataclass(frozen=True)
class Choice:
    """A lowering that was chosen among several by time.

    Attributes:
        name: the lowering, as ``optimize(lower=...)`` names it.
        milliseconds: the median time of one call of each lowering that was timed, by name.
        noise: the relative difference of two medians of one lowering: smaller differences mean nothing.
    """

    name: str
    milliseconds: Mapping[str, float]
    noise: float

    def __str__(self) -> str:
        others = sorted((time, name) for name, time in self.milliseconds.items() if name != self.name)
        behind = "".join(f"{', ' if i else '; '}{name} {_digits(time)}" for i, (time, name) in enumerate(others))
        return f"{self.name} ({_digits(self.milliseconds[self.name])} ms{behind})"


def _digits(number: float) -> str:
    """Three significant digits."""
    return f"{number:#.3g}".rstrip(".") if number < 1000 else f"{number:.0f}"


@dataclass(frozen=True, eq=False)
class Chosen:
    """An executable with the choice that it comes from."""

    run: Executable
    choice: Choice

    def __call__(self, inputs: Sequence[Any], weights: Sequence[Tensor]) -> Sequence[Any]:
        """Run it."""
        return self.run(inputs, weights)


@dataclass(frozen=True)
class Generated:
    """A kernel that a lowering wrote.

    Attributes:
        name: of its operator, with the hash of its source.
        source: the text of the kernel.
        description: what it computes, and how.
        standalone: the text of a file with the kernel, a reference, a check and a benchmark.
    """

    name: str
    source: str
    description: str
    standalone: str

    def __str__(self) -> str:
        return f"{self.name}: {self.description}"


@dataclass(frozen=True, eq=False)
class Fused:
    """An executable with the kernels that it calls."""

    run: Executable
    kernels: tuple[Generated, ...]

    def __call__(self, inputs: Sequence[Any], weights: Sequence[Tensor]) -> Sequence[Any]:
        """Run it."""
        return self.run(inputs, weights)


def kernels_of(run: Executable) -> tuple[Generated, ...]:
    """The kernels that an executable calls, as far as its lowering tells."""
    if isinstance(run, Chosen):
        return kernels_of(run.run)
    return run.kernels if isinstance(run, Fused) else ()


@dataclass(frozen=True)
class Lowered:
    """What one kind of call runs on.

    Attributes:
        lowering: the name of the lowering in messages.
        sizes: of the tensors among the flat inputs that it was lowered for.
        seconds: what lowering took.
        frozen: whether values of weights are baked in.
        choice: how it was chosen, None where nothing was timed.
        distance: under autocast: how far the results of the call that it was lowered for are from those without, as
            the norm of the difference relative to the norm; None where that is not known.
        kernels: those that were written for it.
    """

    lowering: str
    sizes: tuple[tuple[int, ...], ...]
    seconds: float
    frozen: bool
    choice: Choice | None = None
    distance: float | None = None
    kernels: tuple[Generated, ...] = ()

    def __str__(self) -> str:
        text = self.lowering if self.choice is None else f"{self.lowering}: {self.choice}"
        return text if self.distance is None else f"{text}, under autocast {100 * self.distance:.2g} % off in norm"
