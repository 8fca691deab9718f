"""The state of a training in a file, written whole, of plain types alone."""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rewrite import files
from rewrite.errors import ArtifactError, InputError

if TYPE_CHECKING:
    import os

    from rewrite.distillation.distributed import World

FORMAT = 1


@dataclass
class Checkpoint:
    """Where the state is kept, by the first process.

    Attributes:
        path: the file; None for no file.
        every: so many steps it is written, None for after each epoch.
        world: the processes.
        settings: of the training, which has to go on as it began.
    """

    path: str | os.PathLike[str] | None
    every: int | None
    world: World
    settings: dict[str, Any]
    _tried: bool = False

    def due(self, step: int) -> bool:
        """Whether it is to be written after a step."""
        return self.path is not None and self.every is not None and step % self.every == 0

    @property
    def after_epochs(self) -> bool:
        """Whether it is to be written after each epoch."""
        return self.path is not None and self.every is None

    def save(self, state: dict[str, Any]) -> None:
        """Write a state over the last one.

        Raises:
            InputError: the optimizer or scheduler keeps objects that a file of plain types cannot hold.
            OSError: the file cannot be written.
        """
        if self.path is None or not self.world.first:
            return
        file = io.BytesIO()
        torch.save({"format": FORMAT, "settings": self.settings, **state}, file)
        if not self._tried:
            try:
                torch.load(io.BytesIO(file.getvalue()), weights_only=True)
            except pickle.UnpicklingError as error:
                raise InputError(
                    "the state of the optimizer or scheduler holds objects that torch.load(weights_only=True) refuses; "
                    "choose others, or pass no checkpoint="
                ) from error
            self._tried = True
        files.write(self.path, file.getvalue())

    def load(self) -> dict[str, Any] | None:
        """The state that the first process finds, None where there is no file.

        Raises:
            ArtifactError: the file is damaged, or of a training with other settings.
        """
        found = self.world.share(self._read() if self.world.first else None)
        if isinstance(found, ArtifactError):
            raise found
        return found  # type: ignore[no-any-return]

    def _read(self) -> dict[str, Any] | ArtifactError | None:
        if self.path is None or not Path(self.path).exists():
            return None
        remedy = "name another file, or pass resume=False"
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            return ArtifactError(f"the checkpoint '{self.path}' cannot be read ({type(error).__name__}); {remedy}")
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            return ArtifactError(f"'{self.path}' is no checkpoint of this version of rewrite.distill; {remedy}")
        for name, value in self.settings.items():
            if state["settings"].get(name) != value:
                return ArtifactError(
                    f"the checkpoint '{self.path}' is of a training with {name}={state['settings'].get(name)!r}, and "
                    f"not {value!r}; {remedy}"
                )
        return state
