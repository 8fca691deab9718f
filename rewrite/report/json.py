"""A report as plain data."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewrite.report.data import Report

FORMAT = 1


def report_data(report: Report) -> dict[str, Any]:
    """All of a report as dictionaries, lists, strings and finite numbers, for ``json.dumps``."""
    return {
        "format": FORMAT,
        "model": report.model_name,
        "pipeline": report.pipeline,
        "steps": [_plain(record) for record in report.records],
        "before": _plain(report.before),
        "after": _plain(report.after),
        "verification": _plain(report.model_verdict),
        "time": _plain(report.time),
        "notes": list(report.notes),
        "versions": _plain(report.versions),
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {spec.name: _plain(getattr(value, spec.name)) for spec in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return {key: _plain(item) for key, item in value.items()} if hasattr(value, "items") else value
