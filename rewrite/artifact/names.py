"""Names that a file may have for arguments and weights: they become names in generated code."""

from __future__ import annotations

import keyword

from rewrite.errors import ArtifactError

DAMAGED = "the file is damaged, save it again"
"""The remedy where a file is not as it was written."""


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
        ArtifactError: it cannot be quoted.
    """
    if not name or any(character in name for character in '"\\\n\r\0'):
        raise ArtifactError(f"the weight {name!r} has a quote, a backslash or a line break in its name; rename it")
    return name
