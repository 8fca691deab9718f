"""The networks that are measured: those of timm in ``tests/corpus.py`` and those of ``examples/models``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from examples import models
from tests.corpus import CORPUS, input_for, load, randomize

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

NAMES = (*CORPUS, *models.MODELS)
"""All of them."""


def networks(names: Iterable[str] = ()) -> Iterator[tuple[str, nn.Module, tuple[Any, ...]]]:
    """Each network of these names, or of all, in its published size, with random weights that hide nothing; and inputs
    for one sample."""
    for name in list(names) or NAMES:
        if name in models.MODELS:
            yield (name, *models.load(name, "published"))
        else:
            yield name, (model := randomize(load(name))), (input_for(model, 1),)
