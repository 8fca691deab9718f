"""Refusals in groups: the same reason in many places is one reason."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rewrite.report.text import wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rewrite.driver import Refused

_PLACE = re.compile(r"'[^']*'(?: \([^()]*\))?")


def groups(refusals: Iterable[Refused]) -> list[list[Refused]]:
    """Refusals of one rule for one reason together, whatever nodes the reason names; the largest group first."""
    found: dict[tuple[str, str, str], list[Refused]] = {}
    for refused in refusals:
        key = refused.rule, without_places(refused.reason), without_places(refused.remedy)
        found.setdefault(key, []).append(refused)
    return sorted(found.values(), key=len, reverse=True)


def without_places(text: str) -> str:
    """A sentence without the nodes and modules that it names: equal for the same reason in another place."""
    return _PLACE.sub("''", text)


def reason_text(refused: Refused) -> str:
    """A reason with the node that is in the way, and the remedy."""
    text = refused.reason
    if refused.culprit:
        text += f": {refused.culprit}"
    return f"{text} ({refused.remedy})" if refused.remedy else text


def place_text(refused: Refused) -> str:
    """Where a rule looked: ``'add_3' (model.py:41, stages.0)``."""
    where = ", ".join(part for part in (refused.source, refused.module) if part)
    return f"'{refused.node}' ({where})" if where else f"'{refused.node}'"


def refusals_text(refusals: Iterable[Refused], places: int = 3) -> str:
    """Refusals as text, a paragraph for each rule and reason, with the first ``places`` places of each."""
    lines: list[str] = []
    for group in groups(refusals):
        first = group[0]
        lines += wrapped("", f"{first.rule}, {len(group)} x: {reason_text(first)}", 4)
        for refused in group[:places]:
            lines += wrapped("  ", f"at {place_text(refused)}", 4)
        if len(group) > places:
            lines.append(f"  and {len(group) - places} more")
    return "\n".join(lines)
