"""The structure of calls and results as text."""

from __future__ import annotations

from rewrite import compat
from rewrite.artifact.names import DAMAGED
from rewrite.errors import ArtifactError

_ENUM = "__enum__"


def tree_text(spec: compat.TreeSpec) -> str:
    """A structure as text.

    Raises:
        ArtifactError: it has containers or keys of a kind that has no name outside this process.
    """
    try:
        text = compat.treespec_dumps(spec)
        same = _ENUM not in text and compat.treespec_loads(text) == spec
        reason = "its keys are neither text nor numbers"
    except (NotImplementedError, TypeError) as error:
        same, reason = False, str(error).splitlines()[0]
    if not same:
        raise ArtifactError(
            f"the call has arguments or results in {spec}, which cannot be saved ({reason}); register the class with a "
            "serialized_type_name (torch.export.register_dataclass, torch.utils._pytree), or use dicts and tuples"
        )
    return text


def tree_of(text: str) -> compat.TreeSpec:
    """The structure again.

    Raises:
        ArtifactError: it has a container that is not registered here.
    """
    # torch would import whatever module an enumerated key names
    if _ENUM in text:
        raise ArtifactError(f"the structure of the call has enumerated keys, which cannot be loaded; {DAMAGED}")
    try:
        return compat.treespec_loads(text)
    except NotImplementedError as error:
        raise ArtifactError(
            f"the call has arguments or results of a class that is not known here ({error}); import the module that "
            "registers it first"
        ) from error
