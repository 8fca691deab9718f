"""How many times faster the optimized model is, on the same runtime and best against best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.inference.contender import TITLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Row = Mapping[str, Any]

BEST, INDUCTOR_BEST = "best / best", "Inductor / best peer"


@dataclass(frozen=True)
class Ratio:
    """How many times faster one contender is than another.

    Attributes:
        value: the other's median over its median.
        noise: the sum of the two spreads.
        ours, peer: the contenders.
    """

    value: float
    noise: float
    ours: str
    peer: str

    @property
    def loses(self) -> bool:
        """Whether the optimized model is slower by more than the noise."""
        return self.value < 1 - self.noise


def titles() -> list[str]:
    """The ratios in the order of the tables."""
    runtimes = [title for key, title in TITLES.items() if key != "eager"]
    return [*(name for title in runtimes for name in (title, f"{title} as is")), BEST, INDUCTOR_BEST]


def ratios(row: Row) -> dict[str, Ratio]:
    """The ratios of a row by title; those whose contenders are missing are left out.

    On the same runtime against the better one of the model as it is and with merged branches, and against the model as
    it is; then the best of ours against the best peer, and ours on Inductor against that.
    """
    found = {}
    for runtime, title in TITLES.items():
        if runtime == "eager":
            continue
        found[title] = _ratio(row, _all(runtime, True), _all(runtime, False))
        found[f"{title} as is"] = _ratio(row, _all(runtime, True), _all(runtime, False, variants=("",)))
    found[BEST] = _ratio(row, lambda entry: entry["ours"], lambda entry: not entry["ours"])
    found[INDUCTOR_BEST] = _ratio(row, _all("inductor", True), lambda entry: not entry["ours"])
    return {title: ratio for title, ratio in found.items() if ratio is not None}


def _all(runtime: str, ours: bool, variants: Sequence[str] = ("", "merged")) -> Callable[[Row], bool]:
    return lambda entry: entry["runtime"] == runtime and entry["ours"] == ours and entry["variant"] in variants


def _ratio(row: Row, ours: Callable[[Row], bool], peers: Callable[[Row], bool]) -> Ratio | None:
    """The best of some over the best of others, None where there is none of either."""
    mine, other = best(row, ours), best(row, peers)
    if mine is None or other is None:
        return None
    first, second = row["contenders"][mine], row["contenders"][other]
    noise = (first["spread"] or 0.0) + (second["spread"] or 0.0)
    return Ratio(second["median"] / first["median"], noise, mine, other)


def best(row: Row, among: Callable[[Row], bool]) -> str | None:
    """The fastest contender of some."""
    some = [name for name, entry in row["contenders"].items() if among(entry)]
    return min(some, key=lambda name: row["contenders"][name]["median"], default=None)


def means(rows: Iterable[Row]) -> dict[str, tuple[float, int]]:
    """The geometric mean of each ratio, and over how many rows."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for title, ratio in ratios(row).items():
            values.setdefault(title, []).append(ratio.value)
    return {title: (geometric(some), len(some)) for title, some in values.items()}


def geometric(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))
