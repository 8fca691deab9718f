"""What was decided at an operator that had alternatives, for reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Selected:
    """What was decided at one operator that had alternatives.

    Attributes:
        node, module, source: the operator.
        chosen: the name of the rule, '' where it stays as it is.
        ms: what each alternative takes in the layout that was chosen for its input; '' is the operator as it is.
        noise: of the measurement, relative.
    """

    node: str
    module: str
    source: str
    chosen: str
    ms: Mapping[str, float]
    noise: float
