"""What a run did, as a table, as a diff with the user's source lines, and as plain data."""

from rewrite.report.data import Report
from rewrite.report.diff import Diff, Hunk
from rewrite.report.refusals import refusals_text

__all__ = ["Diff", "Hunk", "Report", "refusals_text"]
