"""Binary search for the place where a property is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def first_bad(good: int, bad: int, is_good: Callable[[int], bool]) -> int:
    """A number k with k - 1 good and k bad, between a good number and a larger bad one.

    Where the property comes and goes there may be several such numbers; one of them is found all the same. No number is
    asked twice, neither of the two ends is asked, and at most ``ceil(log2(bad - good))`` numbers are.
    """
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_good(middle):
            good = middle
        else:
            bad = middle
    return bad
