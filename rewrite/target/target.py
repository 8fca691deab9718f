"""A device with its measurements."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rewrite.events import emit
from rewrite.gain import Rates
from rewrite.target.machine import facts
from rewrite.target.measurements import Measurements
from rewrite.timing import HOPELESS, TOLERANCE, settled

_NOISE = "noise"

SMALL = 1 << 21
"""Bytes of a value that is copied within the caches of a processor."""


@dataclass(frozen=True)
class Speeds:
    """What a device does at its best.

    Attributes:
        rates: of a large product of float32 matrices, and of a plain copy.
        converted: bytes that a copy between channels first and channels last reads and writes in a second.
        small: the same of :data:`SMALL` bytes or less, which stay in a cache.
    """

    rates: Rates
    converted: float
    small: float

    def conversion(self, size: int) -> float:
        """Seconds in which a value of so many bytes is copied from one layout to the other."""
        return 2 * size / (self.small if size <= SMALL else self.converted)


@dataclass(frozen=True)
class Measured:
    """Milliseconds of contenders that were timed together.

    Attributes:
        ms: by name, lower quartiles: what else runs on the machine only adds.
        noise: by how much the fastest contender differed from itself, relatively.
    """

    ms: Mapping[str, float]
    noise: float


@dataclass
class Target:
    """A device, and measurements made on it that outlast the process.

    Attributes:
        device: where tensors are.
        measurements: what has been measured, on this device and on others.
        seconds: how long one measurement may take.
        rounds: how often each contender is timed at most.
        allowance: how many seconds kernels of one program may be timed as it is lowered.
        kernels: what else the times of a program depend on, as text: the kernels that lowerings have of their own.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    measurements: Measurements = field(default_factory=Measurements)
    seconds: float = 1.0
    rounds: int = 7
    allowance: float = 10.0
    kernels: str = ""

    @cached_property
    def name(self) -> str:
        """Everything about the device and the process that a measurement depends on, as text."""
        return json.dumps({**facts(self.device), "kernels": self.kernels}, sort_keys=True)

    def known(self, what: str, names: set[str]) -> Measured | None:
        """An earlier measurement of just these contenders, if there is one."""
        found = self.measurements.read(self._key(what))
        if found is None or found.keys() != names | {_NOISE}:
            return None
        return Measured({name: number for name, number in found.items() if name != _NOISE}, found[_NOISE])

    def measure(
        self, what: str, contenders: Mapping[str, Callable[[], Any]], tolerance: float = TOLERANCE
    ) -> Measured | None:
        """Time contenders against one another, or recall how long they took.

        Args:
            what: what is measured, as text that is the same in every process and tells it from everything else.
            contenders: calls by name; the fastest one is timed twice in every round.
            tolerance: how far the fastest one may differ from itself in a round that counts, relatively.

        Returns:
            None on a machine that is too busy to tell.
        """
        known = self.known(what, set(contenders))
        if known is not None:
            return known
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = settled(contenders, self.rounds, self.seconds, tolerance, hopeless=HOPELESS)
        if found is None:
            emit("measurement-discarded", f"the machine is too busy to measure {what}", what=what)
            return None
        measured = Measured({name: timing.low for name, timing in found.timings.items()}, found.noise)
        self.measurements.keep(self._key(what), {**measured.ms, _NOISE: measured.noise})
        return measured

    @cached_property
    def speeds(self) -> Speeds | None:
        """The speeds of the device, measured once; None on a machine that is too busy to tell."""
        # sides are no powers of two, for which rows of a transpose take one another's places in a cache
        n, channels, side, small = 1024, 64, 240, 56
        a = torch.full((n, n), 0.5, device=self.device)
        x, few = (torch.full((2, channels, size, size), 0.5, device=self.device) for size in (side, small))
        y = torch.empty_like(x)
        contenders = {
            "product": lambda: a @ a, "copy": lambda: y.copy_(x), "transpose": _transposing(x),
            "small transpose": _transposing(few),
        }  # fmt: skip
        ms: dict[str, float] = {}
        for name, call in contenders.items():  # by themselves: each leaves others' data in the caches
            found = self.measure(f"speed of a {name}", {name: call}, tolerance=0.5)  # roughly will do
            if found is None:
                return None
            ms[name] = max(found.ms[name], 1e-6)
        moved, little = (2e3 * tensor.numel() * tensor.element_size() for tensor in (x, few))
        rates = Rates(2e3 * n**3 / ms["product"], moved / ms["copy"])
        return Speeds(rates, 2 * moved / ms["transpose"], 2 * little / ms["small transpose"])

    def _key(self, what: str) -> str:
        return f"{self.name}\n{self.rounds} rounds: {what}"


def _transposing(x: Tensor) -> Callable[[], Any]:
    """Copy channels first to channels last, and back."""
    last, back = torch.empty_like(x, memory_format=torch.channels_last), torch.empty_like(x)
    return lambda: back.copy_(last.copy_(x))
