"""``python -m rewrite``: the command line, see :mod:`rewrite.cli`."""

from __future__ import annotations

import sys

from rewrite.cli import main

if __name__ == "__main__":
    sys.exit(main())
