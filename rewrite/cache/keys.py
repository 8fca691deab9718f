"""The key of a program: everything that decides what ``optimize`` makes of a model and an example call.

The values of weights are no part of it: programs do not depend on them, and folded ones are computed anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rewrite import compat
from rewrite.cache.code import Code, is_versioned
from rewrite.cache.fingerprint import DoubtError, Fingerprint
from rewrite.cache.sources import file_of, package_sum
from rewrite.trace import class_of, method_of
from rewrite.versions import versions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from rewrite.recipe import Recipe

FORMAT = 1
"""Grows with what this module puts into a key."""


@dataclass(frozen=True)
class Key:
    """The key of a program.

    Attributes:
        digest: of everything that decides.
        modules: the modules whose code is behind the model and the rules.
    """

    digest: str
    modules: tuple[str, ...]


def key_of(model: nn.Module, recipe: Recipe, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Key:
    """The key for a model, what is done to it, and an example call.

    Raises:
        DoubtError: something that no key can hold has a part in it; the message names it.
    """
    if recipe.listeners:
        raise DoubtError("listeners hear what is done, and an entry does nothing")
    if recipe.plan is not None:
        raise DoubtError("a plan decides what is done, and saves the search")
    if compat.are_modes_active():
        raise DoubtError("a mode of torch that changes calls is active")
    if compat.has_global_hooks():
        raise DoubtError("hooks for all modules are registered")
    digest = Fingerprint()
    digest.text(FORMAT, versions(), torch.get_default_dtype(), method_of(model))
    digest.value(model, class_of(model).__name__)
    flat, spec = compat.tree_flatten((args, dict(kwargs)))
    digest.text(spec)
    for i, leaf in enumerate(flat):
        digest.value(leaf, f"input {i}")
    digest.text(recipe.settings())
    for step in recipe.pipeline:
        digest.value(type(step), f"the step '{step.name}'")
    code = Code(digest)
    code.add(list(digest.classes), list(digest.functions))
    for module in code.modules:
        file = file_of(module)
        if file is None:
            raise DoubtError(f"the module '{module}' has no source file")
        digest.text(module, file)
    for package in sorted({"rewrite", *(type(step).__module__.partition(".")[0] for step in recipe.pipeline)}):
        digest.text(package, package_sum(package))
    return Key(digest.hexdigest(), tuple(name for name in code.modules if not is_versioned(name)))
