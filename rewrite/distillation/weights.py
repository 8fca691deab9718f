"""What training changes in a module, to copy and to put back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rewrite.errors import ArtifactError, InputError
from rewrite.finite import all_finite

if TYPE_CHECKING:
    from collections.abc import Mapping


class Weights:
    """The trainable parameters of a module, and its buffers.

    Args:
        module: whose.

    Raises:
        InputError: nothing is trainable.
    """

    def __init__(self, module: nn.Module):
        self._trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        if not self._trained:
            raise InputError(
                f"the student, a {type(module).__name__}, has no trainable parameters; call requires_grad_() on those "
                "to train, or pass what rewrite.transform returns"
            )
        self._all: dict[str, Tensor] = {**self._trained, **dict(module.named_buffers())}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return list(self._trained.values())

    @property
    def finite(self) -> bool:
        """Whether the trained parameters hold neither infinities nor NaN."""
        return all(all_finite(value.detach()) for value in self._trained.values())

    @property
    def values(self) -> dict[str, Tensor]:
        """The tensors themselves, without gradients."""
        return {name: value.detach() for name, value in self._all.items()}

    def beside(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values on the devices of the module's own."""
        return {name: values[name].to(value.device) for name, value in self._all.items()}

    def copy(self, memory: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The values of now, in the memory of an earlier copy where one is given."""
        if memory is None:
            return {name: value.clone() for name, value in self.values.items()}
        with torch.no_grad():
            for name, value in self._all.items():
                memory[name].copy_(value)
        return memory

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Put values back.

        Raises:
            ArtifactError: they are another module's; nothing was changed.
        """
        expected = {name: tuple(value.shape) for name, value in self._all.items()}
        given = {name: tuple(value.shape) for name, value in values.items()}
        if expected != given:
            name = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))[0]
            raise ArtifactError(
                f"the checkpoint is of another student, in which '{name}' has the shape {given.get(name)} and not "
                f"{expected.get(name)}; name another file, or pass resume=False"
            )
        with torch.no_grad():
            for name, value in self._all.items():
                value.copy_(values[name])
