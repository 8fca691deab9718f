"""Rewrites as a unified diff of the program, with module paths and the user's lines.

The text holds no times, addresses or absolute paths: the same model and pipeline give the same text, so that it can be
compared with a file.
"""

from __future__ import annotations

import html
import itertools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from rewrite.printer import WEIGHTS_ONLY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rewrite.driver import Commit

_COMMENT = "  # "
_TYPE = re.compile(r"\b(?:[fcib]\d+|uint8|int\d+|float\w+)\[[^\]]*\]")
_SYMBOL = re.compile(r"\b[su]\d+\b")
_WORD = re.compile(r"'[^']*'|\b[A-Za-z_0-9][\w.]*(?P<call>\(|\[|=(?!=))?")
_COLOURS = {"@": "#6639ba", "-": "#b31d28", "+": "#22863a"}


@dataclass(frozen=True)
class Hunk:
    """One rewrite.

    Attributes:
        rule: the rule that made it.
        number: counts from 1 over the whole run; ``fuel=number`` stops right after it.
        module: path of the module that the rewritten operator belongs to, '' for the root.
        source: the user's line as ``file:line``, or ''.
        text: that line, or ''.
        removed, added: lines of the program before and after.
        alike: in a collapsed diff, the modules of the rewrites that this one stands for besides itself.
    """

    rule: str
    number: int
    module: str
    source: str
    text: str
    removed: tuple[str, ...]
    added: tuple[str, ...]
    alike: tuple[str, ...] = ()

    @property
    def header(self) -> str:
        """The first line: ``@@ fold-batch-norm #3  stages.0.blocks.1 (byobnet.py:88) @@ x = self.bn(x)``."""
        place = f"{self.module} ({self.source})" if self.module and self.source else self.module or self.source
        return " ".join(filter(None, (f"@@ {self.rule} #{self.number}", place and f" {place}", "@@", self.text)))

    def __str__(self) -> str:
        lines = [self.header, *(f"- {line}" for line in self.removed), *(f"+ {line}" for line in self.added)]
        if self.alike:
            some = [module for module in self.alike if module][:3]
            places = f": {', '.join(some)}{', ...' if len(some) < len(self.alike) else ''}" if some else ""
            lines.append(f"  and {len(self.alike)} more like it{places}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Diff:
    """Rewrites in the order in which they were made; ``str(diff)`` is the text, ``none`` where there are none."""

    hunks: tuple[Hunk, ...]
    none: str = "(no rewrites)"

    def __len__(self) -> int:
        return len(self.hunks)

    def __iter__(self) -> Iterator[Hunk]:
        return iter(self.hunks)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.hunks)) if self.hunks else self.none

    def _repr_html_(self) -> str:
        lines = []
        for line in str(self).splitlines():
            colour = _COLOURS.get(line[:1])
            text = html.escape(line)
            lines.append(f'<span style="color:{colour}">{text}</span>' if colour else text)
        return f"<pre>{chr(10).join(lines)}</pre>"


def diff_of(commits: Iterable[Commit], collapse: bool = False, algebra: bool = True) -> Diff:
    """The diff of rewrites.

    Args:
        commits: the rewrites.
        collapse: show those that differ in names alone once.
        algebra: show what computes new weights from old ones. Else lines of it are counted, and rewrites of nothing
            else are left out.
    """
    hunks = tuple(_hunk(commit, algebra) for commit in commits if algebra or not _is_algebra(commit))
    if not collapse:
        return Diff(hunks)
    families: dict[tuple[str, ...], list[Hunk]] = {}
    for hunk in hunks:
        families.setdefault(_shape(hunk), []).append(hunk)
    return Diff(tuple(
        replace(first, alike=tuple(hunk.module for hunk in others)) for first, *others in families.values()
    ))  # fmt: skip


def _hunk(commit: Commit, algebra: bool) -> Hunk:
    said = {commit.module, commit.source, f"by {commit.rule} #{commit.number}"}
    removed, added = sides(commit.removed, commit.added, said, algebra)
    return Hunk(commit.rule, commit.number, commit.module, commit.source, commit.text, tuple(removed), tuple(added))


def sides(removed: Iterable[str], added: Iterable[str], said: set[str], algebra: bool) -> tuple[list[str], list[str]]:
    """Lines of the program before and after, as a hunk shows them.

    Args:
        removed: before.
        added: after.
        said: what of their comments the header says already.
        algebra: show what computes new weights from old ones, instead of counting it.
    """
    symbols: dict[str, str] = {}
    before, after = ([_line(line, said, symbols) for line in side] for side in (removed, added))
    return (before, after) if algebra else (_without_algebra(before), _without_algebra(after))


def _line(line: str, said: set[str], symbols: dict[str, str]) -> str:
    """A line without what the header says, and with the symbols of its sizes numbered from ``s0``."""
    code, _, comment = line.partition(_COMMENT)
    code = _TYPE.sub(
        lambda found: _SYMBOL.sub(lambda name: symbols.setdefault(name[0], f"s{len(symbols)}"), found[0]), code
    )
    more = [part for part in comment.split(", ") if part and part not in said]
    return f"{code}{_COMMENT}{', '.join(more)}" if more else code


def _on_weights(line: str) -> bool:
    return WEIGHTS_ONLY in line.partition(_COMMENT)[2].split(", ")


def _is_algebra(commit: Commit) -> bool:
    return all(map(_on_weights, (*commit.removed, *commit.added)))


def _without_algebra(lines: list[str]) -> list[str]:
    """Lines where each run of weight algebra is one line that counts it."""
    kept: list[str] = []
    for hidden, run in itertools.groupby(lines, _on_weights):
        group = list(run)
        kept += [f"... {len(group)} operator{'s' * (len(group) > 1)} on weights only"] if hidden else group
    return kept


def _shape(hunk: Hunk) -> tuple[str, ...]:
    """Equal for rewrites that differ in the names of nodes and weights and in their places alone."""
    names: dict[str, str] = {}

    def word(found: re.Match[str]) -> str:
        text = found[0]
        if text[0] == "'" or found["call"] or _is_literal(text):
            return text
        return names.setdefault(text, f"%{len(names)}")

    def lines(side: tuple[str, ...]) -> list[str]:
        return [_WORD.sub(word, line.partition(_COMMENT)[0]) for line in side]

    return (hunk.rule, *lines(hunk.removed), "=>", *lines(hunk.added))


def _is_literal(word: str) -> bool:
    return (
        re.fullmatch(r"[\d.]+(e-?\d+)?|None|True|False|inf|nan|[su]\d+", word) is not None
        or isinstance(getattr(torch, word, None), torch.dtype)
    )  # fmt: skip
