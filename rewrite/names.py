"""Names: suggestions for those that do not exist, and qualified ones that clash."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


_SHOWN = 48


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error message: ``; did you mean 'x'?``, or the list of what there is, where that is short."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    if len(known) > _SHOWN:
        return f"; there are {len(known)}, from '{known[0]}' to '{known[-1]}'"
    return f"; there are {', '.join(known)}" if known else "; there are none"


def clashes(name: str, names: Iterable[str]) -> bool:
    """Whether a qualified name is one of ``names``, or the path to the module of one, or the other way round."""
    return any(other == name or other.startswith(f"{name}.") or name.startswith(f"{other}.") for other in names)
