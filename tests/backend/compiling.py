"""Compiling with the backend, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rewrite.backend import CompiledGraph, reports, torch_rewrite

if TYPE_CHECKING:
    from collections.abc import Callable


def compiled(model: Callable[..., Any], lower: str = "eager", settings: Any = None, **options: Any) -> Any:
    """A model under ``torch.compile``; ``settings`` are arguments of ``torch.compile`` itself."""
    return torch.compile(model, backend=torch_rewrite, options={"lower": lower, **options}, **(settings or {}))


class Log:
    """The graphs that were compiled since this was made."""

    def __init__(self) -> None:
        self._last = reports()[-1] if reports() else None

    @property
    def graphs(self) -> list[CompiledGraph]:
        """All of them, in order."""
        known = reports()
        start = next((i + 1 for i in reversed(range(len(known))) if known[i] is self._last), 0)
        return known[start:]

    def rewritten(self) -> list[CompiledGraph]:
        """All of them, none of which was left as it was."""
        assert not [graph.reason for graph in self.graphs if graph.reason]
        return self.graphs

    def rewrites(self) -> list[str]:
        """The names of the rules that rewrote something, once for each time."""
        steps = [record for graph in self.rewritten() for record in graph.report.records]
        return [commit.rule for record in steps for commit in record.commits]
