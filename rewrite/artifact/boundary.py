"""Where reading a file begins: whatever goes wrong behind this line is said in one sentence."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rewrite.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def refusing(what: str, *passed: type[Exception]) -> Iterator[None]:
    """Make an :class:`ArtifactError` of any exception: a damaged file may be damaged in any way.

    Args:
        what: what messages say of the file: ``"'net' cannot be read"``.
        passed: the errors that are about something else, and stay what they are.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (ArtifactError, *passed)):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ArtifactError(f"{what} ({reason}); save it again") from error
