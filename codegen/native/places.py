"""Places in one block of memory for values of which not all live at the same time."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

ALIGNMENT = 16
"""Floats: a vector, and a line of the cache."""

Key = TypeVar("Key", bound=Hashable)


def planned(sizes: Mapping[Key, int], lives: Mapping[Key, tuple[int, int]]) -> tuple[dict[Key, int], int]:
    """Where each value begins, and the size of the block, in floats.

    The largest come first, each as low as it fits beside those that live at the same time ("Efficient Memory
    Management for Deep Neural Net Inference", Pisarchyk and Lee 2020).

    Args:
        sizes: in floats.
        lives: the first and the last time at which a value is needed.
    """
    filled = {key: -(-size // ALIGNMENT) * ALIGNMENT for key, size in sizes.items()}
    places: dict[Key, int] = {}
    for key in sorted(filled, key=lambda key: (-filled[key], lives[key])):
        (first, last), place = lives[key], 0
        beside = [other for other in places if first <= lives[other][1] and lives[other][0] <= last]
        for other in sorted(beside, key=places.__getitem__):
            if place + filled[key] <= places[other]:
                break
            place = max(place, places[other] + filled[other])
        places[key] = place
    return places, max((place + filled[key] for key, place in places.items()), default=0)
