"""What a run did and did not do, as a table, as a diff with the user's source lines, as findings, and as plain data."""

from rewrite.report.data import Report
from rewrite.report.diff import Diff, Hunk
from rewrite.report.explanation import Coverage, Explanation, explanation_of, record_of
from rewrite.report.filters import FilterReport
from rewrite.report.findings import Finding, Place
from rewrite.report.offered import Alternative, Offered, offered_of
from rewrite.report.refusals import refusals_text

__all__ = [
    "Alternative", "Coverage", "Diff", "Explanation", "FilterReport", "Finding", "Hunk", "Offered", "Place", "Report",
    "explanation_of", "offered_of", "record_of", "refusals_text",
]  # fmt: skip
