"""Time that is there, and what becomes of work that takes longer."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType


class TimeUp(BaseException):
    """A piece of work has taken too long. No ``Exception``: whoever catches these goes on with the next contender."""


@dataclass
class Budget:
    """Seconds from now on.

    Attributes:
        seconds: how many.
    """

    seconds: float
    _started: float = field(default_factory=lambda: time.perf_counter())

    @property
    def spent(self) -> float:
        """Seconds that have gone by."""
        return time.perf_counter() - self._started

    @property
    def left(self) -> float:
        """Seconds that are left; negative where it is over."""
        return self.seconds - self.spent

    def until(self, seconds: float) -> Budget:
        """What is left of the first so many seconds of this budget."""
        return Budget(min(seconds, self.seconds) - self.spent)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Work that may take so long; limits are not nested, and hold in the main thread of a system with alarms alone.

    Raises:
        TimeUp: in the work, when it next comes back to Python.
    """
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeUp(f"it takes longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
