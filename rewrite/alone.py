"""One thread at a time: what traces, rewrites and compiles uses state of torch that is the whole process's."""

from __future__ import annotations

import threading

alone = threading.RLock()
"""Held while something is captured, rewritten, verified, folded or lowered.

Not taken under a lock that another thread may want within, as that of Dynamo.
"""
