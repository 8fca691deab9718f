"""The command line ``torch-rewrite``.

- :mod:`rewrite.cli.app`: the commands and their options, without torch, so that ``--help`` answers at once
- :mod:`rewrite.cli.options`: the options that commands share
- :mod:`rewrite.cli.session`: progress, warnings, errors and exit codes of one command
- :mod:`rewrite.cli.terminal`: what goes to stdout and what to stderr
- :mod:`rewrite.cli.model`, :mod:`~rewrite.cli.objects` and :mod:`~rewrite.cli.inputs`: what a command works on
- :mod:`rewrite.cli.optimizing`, :mod:`~rewrite.cli.explaining`, :mod:`~rewrite.cli.bisecting`,
  :mod:`~rewrite.cli.saved` and :mod:`~rewrite.cli.steps`: the commands
- :mod:`rewrite.cli.reporting` and :mod:`~rewrite.cli.files`: reports on stdout and in files
"""

from __future__ import annotations

from rewrite.cli.app import main

__all__ = ["main"]
