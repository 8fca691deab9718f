"""Compiled looks, as soon as they can be taken."""

from __future__ import annotations

import functools
import time

from rewrite.cplusplus import supported
from rewrite.result import glance


@functools.cache
def available() -> bool:
    """Whether there are any here; waits for the compiler."""
    glance.begin()
    ends = time.monotonic() + 120
    while supported() and not glance.ready() and time.monotonic() < ends:
        time.sleep(0.1)
    return glance.ready()
