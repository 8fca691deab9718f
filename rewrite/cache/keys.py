"""The key of a program: everything that decides what ``optimize`` makes of a model and an example call.

The values of parameters and buffers are no part of it: programs do not depend on them, and folded ones are computed
anew. There is a key only where everything that the code of the model can depend on was seen; anything else is a doubt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import compat
from rewrite.cache.code import Code
from rewrite.cache.fingerprint import DoubtError, Fingerprint
from rewrite.cache.sources import file_of, package_sum
from rewrite.cache.versioned import PACKAGES
from rewrite.trace import class_of, method_of
from rewrite.versions import versions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from rewrite.recipe import Recipe

FORMAT = 2
"""Grows with what this module puts into a key."""


@dataclass(frozen=True)
class Key:
    """The key of a program.

    Attributes:
        digest: of everything that decides.
        identity: of the model alone, as :func:`identity_of` gives it.
        modules: the modules whose code is behind the model and the rules.
    """

    digest: str
    identity: str
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
    digest, code, identity = _of_model(model)
    flat, spec = compat.tree_flatten((args, dict(kwargs)))
    digest.live(leaf for leaf in flat if isinstance(leaf, Tensor))
    digest.text(spec)
    for i, leaf in enumerate(flat):
        digest.value(leaf, f"input {i}")
    code.walk()
    done = Fingerprint()
    done.text(digest.hexdigest(), recipe.settings())
    for step in recipe.pipeline:
        done.value(step, f"the step '{step.name}'")
    rules = Code(done, _members(recipe))
    rules.walk()
    modules = dict.fromkeys((*code.modules, *rules.modules))
    for module in modules:
        file = file_of(module)
        if file is None:
            raise DoubtError(f"the module '{module}' has no source file")
        done.text(module, file)
    for package in PACKAGES[1:]:
        done.text(package, package_sum(package))
    return Key(done.hexdigest(), identity, tuple(modules))


def _members(recipe: Recipe) -> Iterable[str]:
    """The names of what rules and passes have: all of it may be called."""
    names = (name for step in recipe.pipeline for name in dir(type(step)))
    return [name for name in names if not name.startswith("__")]


def identity_of(model: nn.Module) -> str:
    """A digest of what a model is: structure, attributes, code, and all values but those of its weights.

    Equal digests mean that the models compute the same on the same weights, in any process and on any machine.

    Raises:
        DoubtError: something that no digest can hold has a part in it; the message names it.
    """
    return _of_model(model)[2]


def identity_or_none(model: nn.Module) -> tuple[str | None, str]:
    """The identity of a model, or None and the reason of the doubt."""
    try:
        return identity_of(model), ""
    except Exception as doubt:  # a model may hold anything
        return None, reason_of(doubt)


def reason_of(doubt: Exception) -> str:
    """Why a key could not be made, for a log."""
    return str(doubt) if isinstance(doubt, DoubtError) else repr(doubt)


def _of_model(model: nn.Module) -> tuple[Fingerprint, Code, str]:
    if compat.are_modes_active():
        raise DoubtError("a mode of torch that changes calls is active")
    if compat.has_global_hooks():
        raise DoubtError("hooks for all modules are registered")
    digest = Fingerprint()
    digest.live((*model.parameters(), *model.buffers()))
    method = method_of(model)
    digest.text(FORMAT, versions(), torch.get_default_dtype(), method)
    digest.value(model, class_of(model).__name__)
    code = Code(digest, ("forward", *([] if method is None else [method])))
    code.walk()
    return digest, code, digest.hexdigest()
