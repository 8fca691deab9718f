"""Measurements between processes: one small file each, written whole, checked when read; whatever goes wrong is a miss.

Several processes may share a directory. A file that is damaged, of another format, or of something else than what was
asked for is not used, and said so once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewrite.files import write

FORMAT = 1
LIMIT = 20_000
"""How many files a directory may hold; a network has some dozens."""

_ABANDONED = 3600.0
"""Seconds after which nobody writes a file any more."""


@dataclass
class Measurements:
    """Numbers by key, in memory and, where there is a directory, in files.

    Attributes:
        directory: made when the first number is kept; None for memory alone.
        known: what has been read or kept in this process.
    """

    directory: Path | None = None
    known: dict[str, Mapping[str, float]] = field(default_factory=dict)
    _told: bool = False
    _swept: bool = False

    def read(self, key: str) -> Mapping[str, float] | None:
        """The numbers kept for a key, None where there are none that can be used."""
        if key in self.known:
            return self.known[key]
        if self.directory is None:
            return None
        path = self._path(key)
        try:
            found = _numbers(json.loads(path.read_text(encoding="utf-8")), key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            self._tell(f"the measurement in '{path}' cannot be used and is made again: {error}")
            return None
        self.known[key] = found
        return found

    def keep(self, key: str, numbers: Mapping[str, float]) -> None:
        """Keep numbers for a key; a directory that cannot be written is told of once, and memory has them."""
        self.known[key] = dict(numbers)
        if self.directory is None:
            return
        text = json.dumps({"format": FORMAT, "key": key, "numbers": dict(numbers)})
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write(self._path(key), text.encode())
            if not self._swept:
                self._swept = True
                self._sweep()
        except OSError as error:
            self._tell(f"measurements cannot be kept in '{self.directory}': {error}")

    def _path(self, key: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def _tell(self, text: str) -> None:
        if not self._told:
            self._told = True
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    def _sweep(self) -> None:
        """Delete the oldest where there are too many, and what a process left that was killed while it wrote."""
        assert self.directory is not None
        ages: list[tuple[float, Path]] = []
        for path in self.directory.iterdir():
            with contextlib.suppress(OSError):
                ages.append((path.stat().st_mtime, path))
        kept = [(age, path) for age, path in sorted(ages) if path.suffix == ".json"]
        old = [path for age, path in ages if path.name.startswith(".") and age < time.time() - _ABANDONED]
        if len(kept) > LIMIT:
            old += [path for _, path in kept[: len(kept) - LIMIT + LIMIT // 10]]
        for path in old:
            with contextlib.suppress(OSError):
                path.unlink()


def _numbers(data: Any, key: str) -> dict[str, float]:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    if data.get("key") != key:
        raise ValueError("it is of something else")
    numbers = data.get("numbers")
    if not isinstance(numbers, dict) or not numbers:
        raise ValueError("it holds no numbers")
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number) or number < 0:
            raise ValueError(f"'{name}' is {number!r}")
    return {name: float(number) for name, number in numbers.items()}
