"""Lowerings: ways to run a rewritten graph.

- :class:`~codegen.inductor.Inductor`: compiled by TorchInductor, the default where a compiler is found
- :class:`~codegen.eager.Eager`: operator by operator
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codegen.eager import Eager
from codegen.inductor import Inductor, available

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rewrite.lowering import Lowering

__all__ = ["LOWERINGS", "Eager", "Inductor", "default_lowering"]

LOWERINGS: Mapping[str, type[Lowering]] = {"inductor": Inductor, "eager": Eager}
"""The lowerings by the names under which ``optimize(lower=...)`` knows them."""


def default_lowering() -> Lowering:
    """Inductor where it can compile, else eager."""
    return Inductor() if available() else Eager()
