"""Reports as plain data."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewrite.report.data import Report

FORMAT = 2


def report_data(report: Report) -> dict[str, Any]:
    """All of a report as dictionaries, lists, strings and finite numbers, for ``json.dumps``."""
    return {
        "format": FORMAT,
        "model": report.model_name,
        "pipeline": report.pipeline,
        "steps": [plain(record) for record in report.records],
        "before": plain(report.before),
        "after": plain(report.after),
        "verification": plain(report.model_verdict),
        "time": plain(report.time),
        "notes": list(report.notes),
        "versions": plain(report.versions),
    }


def plain(value: Any) -> Any:
    """A value of dataclasses, lists, mappings, strings and numbers as JSON has it; numbers that it lacks are None."""
    if dataclasses.is_dataclass(value):
        return {spec.name: plain(getattr(value, spec.name)) for spec in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return {key: plain(item) for key, item in value.items()} if hasattr(value, "items") else value
