"""A device whose times are written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rewrite.gain import Rates
from rewrite.target import Measured, Speeds, Target


@dataclass
class Scripted(Target):
    """Gives each alternative the time that ``price`` says, for the text of what is measured and its name.

    Attributes:
        price: milliseconds; None for a machine that is too busy.
        noise: of every measurement.
        asked: what has been measured, in order.
    """

    price: Callable[[str, str], float | None] = lambda what, name: 1.0
    noise: float = 0.0
    asked: list[str] = field(default_factory=list)
    speeds = Speeds(Rates(), 1e9, 1e9)  # type: ignore[assignment]

    def measure(self, what: str, contenders: Mapping[str, Callable[[], Any]]) -> Measured | None:
        """The prices."""
        self.asked.append(what)
        prices = {name: self.price(what, name) for name in contenders}
        if None in prices.values():
            return None
        return Measured({name: price for name, price in prices.items() if price is not None}, self.noise)
