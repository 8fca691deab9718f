"""Every error that this project raises on purpose, in one hierarchy.

A message is one sentence that names the value, the constraint and the remedy.
"""

from __future__ import annotations


class RewriteError(Exception):
    """Base of all errors raised on purpose by torch-rewrite."""


class CaptureError(RewriteError):
    """The model cannot be captured as a functional graph; the model is unchanged."""


class InputError(RewriteError, ValueError):
    """An argument of a public function does not fit; nothing was changed."""


class BisectionError(InputError):
    """No rewrite is to blame: the check passes after all of them, or fails before the first, or there is none."""


class PipelineError(RewriteError, ValueError):
    """A pipeline text or a pass option is not valid."""


class RuleError(RewriteError):
    """A rule breaks its contract: no fidelity, a malformed match, or an exception of its own."""


class CycleError(RuleError):
    """Rules undo each other: the same program appeared twice."""


class VerificationError(RewriteError):
    """The rewritten model is not equal to the source within the bound; the source is unchanged."""


class ArtifactError(RewriteError):
    """A result cannot be saved, or a file cannot be loaded; nothing was changed."""


class LoweringError(RewriteError):
    """A lowering cannot run a program; the program runs operator by operator instead."""


class PlanError(RewriteError):
    """A plan cannot be read, or is not for this program."""


class GraphError(RewriteError):
    """An invariant of the graph is broken. Always a defect of a rule or of this project."""


def reason_of(error: Exception) -> str:
    """A message without its remedy, for a message that has another one."""
    text = str(error)
    return text.rpartition("; ")[0] or text
