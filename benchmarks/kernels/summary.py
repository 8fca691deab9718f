"""What many rows say together: how much faster, how far predictions are off, and a short table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def geometric(numbers: Iterable[float]) -> float:
    """The geometric mean; not a number where there are none."""
    logs = [math.log(each) for each in numbers if each > 0]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


def ranks(numbers: Sequence[float]) -> list[float]:
    """From one; equal numbers have the mean of their ranks."""
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    found = [0.0] * len(numbers)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and numbers[order[end + 1]] == numbers[order[start]]:
            end += 1
        for place in order[start : end + 1]:
            found[place] = (start + end) / 2 + 1
        start = end + 1
    return found


def rank_correlation(some: Sequence[float], others: Sequence[float]) -> float:
    """Spearman's; not a number where all of some are equal, or there are fewer than two."""
    a, b = ranks(some), ranks(others)
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    return statistics.correlation(a, b)


def predictions(rows: Sequence[Row]) -> dict[str, float | int]:
    """How far predictions are from what was measured with cold caches, of kernels with nothing beside them.

    ``log_error`` is the median of the logarithm's absolute value, ``bias`` the median of the logarithm itself: positive
    where kernels take longer than predicted. ``rank_within`` is the median over the candidates of each layer,
    ``rank_across`` that of the best ones of all layers. ``first_is_best`` is the part of the layers in which the
    candidate that was predicted to be the fastest takes at most 5 % longer than the fastest.
    """
    whole = [row for row in rows if row.get("whole")]
    logs, within, first = [], [], []
    for row in whole:
        timed = [each for each in row["candidates"] if "us" in each]
        measured = [each["us"]["cold"] for each in timed]
        predicted = [each["predicted_us"] for each in timed]
        logs += [math.log(a / b) for a, b in zip(measured, predicted, strict=True) if a > 0 and b > 0]
        if len(timed) > 2 and not math.isnan(found := rank_correlation(predicted, measured)):
            within.append(found)
        if timed and timed[0]["number"] == 0:
            first.append(measured[0] <= 1.05 * min(measured))
    best = [row["ours"] for row in whole if "ours" in row]
    across = rank_correlation([each["predicted_us"] for each in best], [each["us"]["cold"] for each in best])
    found_all = {
        "kernels": len(logs), "log_error": _median([abs(each) for each in logs]), "bias": _median(logs),
        "rank_within": _median(within), "rank_across": across,
        "first_is_best": sum(first) / len(first) if first else math.nan,
    }  # fmt: skip
    return {name: number if not math.isnan(number) else -1.0 for name, number in found_all.items()}


def _median(numbers: Sequence[float]) -> float:
    return statistics.median(numbers) if numbers else math.nan


def groups(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Geometric means of the ratios to the best peer, by group of cases; ``all`` is that of all cases."""
    names = list(dict.fromkeys(row["group"] for row in rows))
    found = {}
    for name in [*names, "all"]:
        some = [row for row in rows if name in ("all", row["group"]) and "best_ratio" in row]
        means = {
            f"{key} {caches}": round(geometric(row[f"{key}_ratio"][caches] for row in some if f"{key}_ratio" in row), 3)
            for key in ("best", "best_same_layout")
            for caches in ("warm", "cold")
        }
        if some:
            found[name] = {"rows": len(some), **{key: mean for key, mean in means.items() if not math.isnan(mean)}}
    return found


def table(rows: Sequence[Row]) -> str:
    """One line a row: what it takes with warm and with cold caches, and relative to the best peer of any layout."""
    lines = [
        f"{'case':38}{'us':>8}{'cold':>8}{'best peer us':>24}{'x':>7}{'x cold':>7}{'x same':>7}{'copy':>6}{'pred':>8}"
    ]
    return "\n".join([*lines, *map(_line, rows)])


def short(rows: Sequence[Row], most: int = 45) -> str:
    """The table of the first cases, each in the layout in which it is fastest, with lines that fit a terminal."""
    best: dict[str, Row] = {}
    for row in rows:
        name = row["case"].removesuffix(" last").removesuffix(" first")
        if name not in best or _taken(row) < _taken(best[name]):
            best[name] = row
    chosen = list(best.values())
    lines = [line[:128].rstrip() for line in table(chosen[:most]).splitlines()]
    return "\n".join([*lines, f"and {len(chosen) - most} more cases"] if len(chosen) > most else lines)


def _taken(row: Row) -> float:
    return float(row["ours"]["us"]["warm"]) if "ours" in row else math.inf


def _line(row: Row) -> str:
    if "ours" not in row:
        reason = next(iter(row["failures"].values()), "")
        return f"{row['case']:38}no kernel runs: {reason}"[:150]
    ours = row["ours"]
    line = f"{row['case']:38}{ours['us']['warm']:8.1f}{ours['us']['cold']:8.1f}"
    if "best" in row:
        line += f"{row['best']:>16}{row['peers'][row['best']]['warm']:8.1f}"
        line += f"{row['best_ratio']['warm']:7.2f}{row['best_ratio']['cold']:7.2f}"
        line += f"{row['best_same_layout_ratio']['warm']:7.2f}" if "best_same_layout_ratio" in row else " " * 7
    else:
        line += " " * 45
    line += f"{row['share_of_copy']['cold']:6.0%}{ours['predicted_us']:8.1f}  #{ours['number']} {ours['schedule']}"
    used = [f"{ours[name]} {name}" for name in ("registers", "spills") if ours.get(name)]
    return ", ".join([line, *used])[:200]


def closing(rows: Sequence[Row]) -> str:
    """Means by group, and how far predictions are off."""
    lines = []
    for name, found in groups(rows).items():
        any_layout, same = ([found.get(f"{key} {caches}", math.nan) for caches in ("warm", "cold")]
                            for key in ("best", "best_same_layout"))  # fmt: skip
        lines.append(
            f"{name:14}{found['rows']:4.0f} rows  {any_layout[0]:6.2f} x the best peer, {any_layout[1]:.2f} cold; in "
            f"the same layout {same[0]:.2f} and {same[1]:.2f}"
        )
    said = ", ".join(f"{name} {number:.3g}" for name, number in predictions(rows).items())
    return "\n".join([*lines, f"predictions: {said}"])
