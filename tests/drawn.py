"""How many examples are drawn by tests where each takes long."""

from __future__ import annotations

from hypothesis import settings

COSTLY = settings(max_examples=4 if settings.default.max_examples <= 10 else settings.default.max_examples)
"""For tests that capture models, or compute in the interpreter: in ``make test`` a few, in ``make test-full`` all."""
