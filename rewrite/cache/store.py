"""The directory of cached programs: whole files written at once, checked when read, the oldest dropped.

``TORCH_REWRITE_CACHE_DIR`` names another directory than the user's cache directory, ``TORCH_REWRITE_CACHE=0`` switches
the cache off. Several processes may use it; whatever goes wrong is a miss.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewrite.artifact import Artifact, StoredProgram, packed, stored_graphs, unpacked
from rewrite.artifact.container import FORMAT
from rewrite.cache.keys import Key, key_of, reason_of
from rewrite.cache.sources import sources_of, unchanged
from rewrite.events import emit
from rewrite.files import cache_directory, write
from rewrite.result.reading import constants_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from rewrite.recipe import Recipe
    from rewrite.result import Program

LIMIT = 1 << 28
"""How many bytes a directory may hold; an entry has about 0.2 to 1.5 MB."""

_SOURCES = "sources.json"


def default_cache() -> ProgramCache | None:
    """The cache that the environment asks for, None where it is switched off."""
    directory = cache_directory()
    return None if directory is None else ProgramCache(directory)


@dataclass(frozen=True)
class ProgramCache:
    """Programs in files.

    Attributes:
        directory: where; made when the first entry is stored.
        limit: how many bytes it may hold.
    """

    directory: Path
    limit: int = LIMIT

    def entry(self, model: nn.Module, recipe: Recipe, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Entry | None:
        """The place of a program in the cache, None for one that is not cached."""
        name = type(model).__name__
        try:
            key = key_of(model, recipe, args, kwargs)
        except Exception as doubt:  # a model may hold anything, and what cannot be looked at is not cached
            reason = reason_of(doubt)
            emit("cache-off", f"{name}: not cached: {reason}", model=name, reason=reason)
            return None
        return Entry(self, name, key, self.directory / f"programs-{FORMAT}" / f"{key.digest}.rewrite")


@dataclass(frozen=True)
class Entry:
    """One place in the cache."""

    cache: ProgramCache
    name: str
    key: Key
    path: Path

    def read(self) -> StoredProgram | None:
        """The program, or None where there is none, where sources have changed since, or where the file is damaged."""
        try:
            members = unpacked(self.path.read_bytes(), f"'{self.path}'")
            if not unchanged(json.loads(members.pop(_SOURCES))):
                self.miss("source files have changed")
                return None
            (stored,) = Artifact.of(members).programs
        except FileNotFoundError:
            self.miss("there is no entry")
            return None
        except Exception as error:  # a damaged entry may be damaged in any way
            self.miss(str(error))
            return None
        with contextlib.suppress(OSError):
            os.utime(self.path)
        return stored

    def miss(self, reason: str) -> None:
        """Log that the program has to be made."""
        emit("cache-miss", f"{self.name}: {reason}", model=self.name, reason=reason, key=self.key.digest)

    def store(self, model: nn.Module, program: Program) -> None:
        """Keep a program that was made for the key; one that cannot be kept is logged."""
        if program.value_rules:
            self._off(f"the rule '{program.value_rules[0]}' holds for the present weights only")
            return
        if program.decided:
            self._off(f"forward decides on the value of '{next(iter(program.decided))}', which no key has")
            return
        if program.tentative:
            self._off(program.tentative)
            return
        if program.identity is None:
            self._off("it draws random numbers, which no comparison checks")
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write(self.path, self._packed(model, program))
            self._drop_oldest()
        except Exception as error:  # the program is made, and a full disk must not take it away
            self._off(str(error))
        else:
            emit("cache-store", f"{self.name}: program stored", model=self.name, key=self.key.digest)

    def _off(self, reason: str) -> None:
        emit("cache-off", f"{self.name}: not cached: {reason}", model=self.name, reason=reason)

    def _packed(self, model: nn.Module, program: Program) -> bytes:
        captured, settings = program.captured, program.settings
        assert captured is not None
        assert settings is not None
        constants = {**captured.weights, **constants_of(model, program.graph)}
        for name in program.graph.program.results:
            constants.pop(name, None)
        stored = StoredProgram(
            stored_graphs(captured, program.graph), program.report, program.one_row, plan=program.plan,
            constants=constants, identity=program.identity,
        )  # fmt: skip
        members = Artifact(self.name, settings, (stored,)).members()
        members[_SOURCES] = json.dumps(sources_of(self.key.modules, captured)).encode()
        return packed(members, {"model": self.name, "pipeline": settings.pipeline})

    def _drop_oldest(self) -> None:
        """Delete what has not been used for longest, until the directory is within its limit."""
        files = sorted(_files(self.cache.directory), key=lambda file: file[1])
        excess = sum(size for _, _, size in files) - self.cache.limit
        for path, _, size in files:
            if excess <= 0:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
                excess -= size


def _files(directory: Path) -> Iterator[tuple[Path, int, int]]:
    """Path, time of last use and size of every entry, of any format; one that vanishes meanwhile is left out."""
    for file in directory.glob("programs-*/*.rewrite"):
        with contextlib.suppress(OSError):
            found = file.stat()
            yield file, found.st_mtime_ns, found.st_size
