"""Names that a file may have for arguments, weights and attributes: they become names in generated code and modules."""

from __future__ import annotations

import keyword

from torch import nn

from rewrite.errors import ArtifactError

DAMAGED = "the file is damaged, save it again"
"""The remedy where a file is not as it was written."""

_BARE = nn.Module()


def identifier(name: str) -> str:
    """The name of an argument.

    Raises:
        ArtifactError: it is none.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ArtifactError(f"{name!r} is no name of an argument, which has to be an identifier; rename it, save again")
    return name


def weight_name(name: str) -> str:
    """The qualified name of a weight.

    Raises:
        ArtifactError: it cannot be quoted, or leads to something that every module has (``"__class__.forward"``).
    """
    if not name or any(character in name for character in '"\\\n\r\0'):
        raise ArtifactError(f"the weight {name!r} has a quote, a backslash or a line break in its name; rename it")
    taken = next((part for part in name.split(".") if hasattr(_BARE, part)), None)
    if taken is not None:
        raise ArtifactError(f"the weight {name!r} has '{taken}' in its name, which every module has; rename it")
    return name


def is_attribute(name: str) -> bool:
    """Whether a value may be kept as a model's attribute of this name: a public one that no bare module has."""
    return not name.startswith("_") and not hasattr(_BARE, name)
