"""Where files are kept, and files that are written whole."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

_DIRECTORY = "TORCH_REWRITE_CACHE_DIR"
_SWITCH = "TORCH_REWRITE_CACHE"


def cache_directory() -> Path | None:
    """The directory of the cache that the environment asks for, None where it is switched off."""
    if os.environ.get(_SWITCH) == "0":
        return None
    directory = os.environ.get(_DIRECTORY)
    if directory:
        return Path(directory)
    try:
        import platformdirs
    except ImportError:  # run from a checkout where nothing was installed
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch_rewrite"
    return platformdirs.user_cache_path("torch_rewrite")


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file at once: whoever reads it meanwhile, or after a crash, sees the old one or the new one.

    Args:
        path: the file; the target of a link is written, and the link stays.
        data: what it is to hold.

    Raises:
        OSError: the directory does not exist or cannot be written to.
    """
    real = Path(os.path.realpath(path))
    temporary = real.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, real)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
