"""What was recorded as a chart in SVG: two bars a row, on a logarithmic scale around 1, in light and dark."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from benchmarks.inference.ratios import BEST, INDUCTOR_BEST, ratios

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH, LEFT, RIGHT, TOP = 860, 230, 60, 56
ROW, BAR = 30, 10

_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)

_STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #1f2328; }
    .small { font-size: 10px; }
    .number { text-anchor: middle; }
    .name { text-anchor: end; }
    .grid { stroke: #d1d9e0; }
    .one { stroke: #59636e; stroke-width: 1.5; }
    .best { fill: #0969da; }
    .inductor { fill: #bc6c00; }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc; }
      .grid { stroke: #3d444d; }
      .one { stroke: #9198a1; }
      .best { fill: #58a6ff; }
      .inductor { fill: #d29922; }
    }
"""

_BARS = (
    (BEST, "best", "the best of the optimized model against the best peer"),
    (INDUCTOR_BEST, "inductor", "the optimized model on Inductor against the best peer"),
)


def chart(record: Mapping[str, Any]) -> str:
    """The chart of all rows that have a ratio."""
    entries = [(row, found) for row in record["rows"] if BEST in (found := ratios(row))]
    values = [found[title].value for _, found in entries for title, _, _ in _BARS if title in found]
    low, high = min([0.5, *values]), max([2.0, *values])
    height = TOP + ROW * len(entries) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img">',
        "  <title>How many times faster the optimized model is</title>",
        f"  <style>{_STYLE}  </style>",
        *_legend(),
        *_grid(low, high, height),
    ]
    for i, (row, found) in enumerate(entries):
        parts += _row(TOP + ROW * i, row, found, low, high)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _place(value: float, low: float, high: float) -> float:
    """Where a ratio lies from left to right."""
    span = math.log(high) - math.log(low)
    return round(LEFT + (WIDTH - LEFT - RIGHT) * (math.log(value) - math.log(low)) / span, 1)


def _legend() -> Sequence[str]:
    found = []
    for i, (_, kind, text) in enumerate(_BARS):
        x = 12 + 400 * i
        found.append(f'  <rect class="{kind}" x="{x}" y="10" width="{BAR}" height="{BAR}"/>')
        found.append(f'  <text x="{x + 16}" y="19">{escape(text)}</text>')
    return found


def _grid(low: float, high: float, height: int) -> Sequence[str]:
    found = []
    for tick in _TICKS:
        if low <= tick <= high:
            x, kind = _place(tick, low, high), "one" if tick == 1 else "grid"
            found.append(f'  <line class="{kind}" x1="{x}" x2="{x}" y1="{TOP - 8}" y2="{height - 6}"/>')
            found.append(f'  <text class="small number" x="{x}" y="{TOP - 14}">{tick:g}×</text>')
    return found


def _row(
    y: int, row: Mapping[str, Any], found: Mapping[str, Any], low: float, high: float
) -> Sequence[str]:  # fmt: skip
    parts = [f'  <text class="name" x="{LEFT - 40}" y="{y + 15}">{escape(row["model"])}, {row["batch"]}</text>']
    one = _place(1, low, high)
    for i, (title, kind, _) in enumerate(_BARS):
        if title not in found:
            continue
        value, top = found[title].value, y + 1 + i * (BAR + 2)
        x = _place(value, low, high)
        start, width = min(one, x), max(abs(x - one), 1)
        parts.append(f'  <rect class="{kind}" x="{start}" y="{top}" width="{width:.1f}" height="{BAR}"/>')
        # behind the bar; where it points to the left, beside the line of 1
        parts.append(f'  <text class="small" x="{max(one, x) + 4:.1f}" y="{top + 9}">{value:.2f}</text>')
    return parts
