"""How far rounding may go: ``numerics="elementwise"`` keeps rules out whose errors spread over a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from rewrite.errors import InputError
from rewrite.pipeline import rules_of
from rewrite.rule import Fidelity

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rewrite.pipeline import Step

Numerics = Literal["default", "elementwise"]
"""``"default"`` runs what a pipeline names; ``"elementwise"`` of that only rules of :data:`BOUNDED` fidelity."""

BOUNDED = (Fidelity.BITWISE, Fidelity.ELEMENTWISE)
"""What bounds the error of each element by that element's own terms."""


def forbidden(numerics: Numerics, steps: Iterable[Step]) -> tuple[str, ...]:
    """The names of the rules of some steps that do not run, each once.

    Raises:
        InputError: an unknown value of ``numerics``.
    """
    if numerics not in get_args(Numerics):
        raise InputError(f"numerics={numerics!r} is not one of {', '.join(map(repr, get_args(Numerics)))}")
    if numerics == "default":
        return ()
    rules = (rule for step in steps for rule in rules_of(step))
    return tuple(dict.fromkeys(rule.name for rule in rules if rule.fidelity not in BOUNDED))


def note(names: Sequence[str]) -> tuple[str, ...]:
    """What a report says of rules that were forbidden, a sentence where there are any."""
    text = (
        f'{", ".join(names)} did not run: numerics="elementwise" forbids rules that do not bound the error of each '
        "element by that element's own terms"
    )
    return (text,) if names else ()
