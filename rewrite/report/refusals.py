"""Refusals in groups: the same reason in many places is one reason."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rewrite.report.text import wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rewrite.driver import Refused, Rejection

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


def refusals_text(refusals: Iterable[Refused], places: int = 3) -> str:
    """Refusals as text, a paragraph for each rule and reason, with the first ``places`` places of each."""
    lines: list[str] = []
    for group in groups(refusals):
        first = group[0]
        lines += wrapped("", f"{first.rule}, {len(group)} x: {first.why}", 4)
        for refused in group[:places]:
            lines += wrapped("  ", f"at {refused.place}", 4)
        if len(group) > places:
            lines.append(f"  and {len(group) - places} more")
    return "\n".join(lines)


class Refusals(list["Refused"]):
    """A list that prints as :func:`refusals_text`."""

    def __repr__(self) -> str:
        return refusals_text(self) or "(nothing was refused)"


class Rejections(list["Rejection"]):
    """A list that prints as a paragraph for each."""

    def __repr__(self) -> str:
        lines = [line for rejection in self for line in wrapped("", str(rejection), 4)]
        return "\n".join(lines) or "(nothing was rejected)"
