"""The version of this project, and of what a run depends on."""

from __future__ import annotations

import platform

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """What reports and saved files name, by name."""
    import torch

    return {"torch-rewrite": __version__, "torch": torch.__version__, "python": platform.python_version()}
