"""How the call of a result gets to what runs it, whoever calls: the user, Dynamo, an exporter."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import nn

from rewrite import compat
from rewrite.errors import RewriteError
from rewrite.result import recording


class Runnable(nn.Module):
    """A module that runs a rewritten program."""

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call; subclasses say how."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the model computes."""
        if recording.is_traced_by_dynamo():
            return recording.trace(self, args, kwargs)
        # elsewhere the detour costs time, and is not safe while another thread exports
        if torch.compiler.is_dynamo_compiling() or compat.is_dynamo_watching():
            return self._call(args, kwargs)
        return self._run(args, kwargs)

    @torch.compiler.disable(reason=recording.COMPILED)  # type: ignore[untyped-decorator]
    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._run(args, kwargs)

    def __prepare_scriptable__(self) -> NoReturn:
        """What ``torch.jit.script`` asks for first.

        Raises:
            RewriteError: always.
        """
        raise RewriteError(recording.UNSCRIPTABLE)
