"""An explanation as text: what matched, then each finding, then what had nothing to begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewrite.report.text import roofline, scaled, table, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rewrite.report.explanation import Coverage, Explanation
    from rewrite.report.findings import Finding, Place

_LINES = 12
_PLACES = 4


_FEW = 8
"""What so many rules start at is told in a line each."""


def explanation_text(explanation: Explanation) -> str:
    """The whole explanation. Misses whose gain is estimated as nothing are one line each, behind the others."""
    worth = [finding for finding in explanation if finding.gain.seconds or finding.rejected]
    paragraphs = [
        _head(explanation),
        _coverage([rule for rule in explanation.coverage if rule.places]),
        *(_finding(number, finding) for number, finding in enumerate(worth, start=1)),
        _worthless([finding for finding in explanation if finding not in worth]),
        _nothing(explanation.coverage),
        [line for note in explanation.notes for line in wrapped("note  ", note)],
        wrapped("", f"{roofline('Savings', explanation.per_sample)} Nothing was measured.") if worth else [],
    ]
    return "\n\n".join("\n".join(lines) for lines in paragraphs if lines)


def _head(explanation: Explanation) -> list[str]:
    matched = sum(rule.matched for rule in explanation.coverage)
    places = sum(rule.places for rule in explanation.coverage)
    found = f"{matched} of {places} places match" if places else "no rule finds a place to begin"
    share = sum(finding.share for finding in explanation)
    lost = f"; what is blocked would save about {_percent(share)} of its nominal time" if share else ""
    title = wrapped("", f"{explanation.model_name}: {found}{lost}", 2)
    return [*title, *wrapped("pipeline  ", explanation.pipeline)]


def _coverage(rules: Sequence[Coverage]) -> list[str]:
    rows = [(rule.rule, str(rule.places), str(rule.matched), str(rule.blocked)) for rule in rules]
    return table([("rule", "places", "matched", "blocked"), *rows]) if rows else []


def _finding(number: int, finding: Finding) -> list[str]:
    first, *others = finding.places
    title = f"{number}. {finding.rule}" + (f", {len(finding.places)} places" if others else "")
    lines = [title, *_part("at", f"{first}: {first.text}" if first.text else str(first))]
    if others:
        lines += _part("and at", _some(others))
    matched = [*finding.matched[:_LINES]]
    matched += [f"... and {len(finding.matched) - _LINES} more"] if len(finding.matched) > _LINES else []
    lines += [f"{label:>10}  {line}" for label, line in zip(["matched", *[""] * len(matched)], matched, strict=False)]
    if finding.culprit:
        seen = finding.culprit in matched
        lines.append(f"{'culprit':>10}  {finding.culprit.partition(' = ')[0] if seen else finding.culprit}")
        if finding.culprit_text not in ("", first.text):
            lines.append(f"{'':>10}  {finding.culprit_text}")
    lines += _part("rejected" if finding.rejected else "because", finding.reason)
    if finding.remedy:
        lines += _part("remedy", finding.remedy)
    if finding.also:
        lines += _part("also stops", ", ".join(finding.also))
    saved = f"{scaled(finding.gain.flops, 'FLOP')}, {scaled(finding.gain.bytes, 'B')} of memory traffic"
    return [*lines, *_part("would save", f"{saved}, {_percent(finding.share)} of the nominal time")]


def _part(label: str, text: str) -> list[str]:
    return wrapped(f"{label:>10}  ", text)


def _some(places: Sequence[Place]) -> str:
    more = f" and {len(places) - _PLACES} more" if len(places) > _PLACES else ""
    return ", ".join(map(str, places[:_PLACES])) + more


def _worthless(findings: Iterable[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        count = f", {len(finding.places)} places" if len(finding.places) > 1 else ""
        remedy = f" ({finding.remedy})" if finding.remedy else ""
        lines += wrapped("  ", f"{finding.rule}{count}, at {finding.places[0]}: {finding.reason}{remedy}")
    return ["Of no gain by themselves:", *lines] if lines else []


def _nothing(coverage: Sequence[Coverage]) -> list[str]:
    """The rules that found no place to start at, of few also what that is; there may have been some before rewrites."""
    idle = [rule for rule in coverage if not rule.places]
    if not idle:
        return []
    none = "is left" if any(rule.matched for rule in coverage) else "is in the model"
    head = f"Nothing to begin with, for none of what these start at {none}:"
    if len(idle) > _FEW:
        return [head, *wrapped("  ", ", ".join(rule.rule for rule in idle)),
                *wrapped("  ", "`explain(model, inputs, rule)` says what one of them starts at.")]  # fmt: skip
    width = max(len(rule.rule) for rule in idle)
    return [head, *(
        line for rule in idle for line in wrapped(f"  {rule.rule:<{width}}  ", rule.starts or "(it does not say)")
    )]  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
