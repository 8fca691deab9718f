"""Modules that are run in evaluation mode and given back as they were."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from rewrite.errors import InputError, RewriteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def borrowed(*modules: nn.Module) -> Iterator[None]:
    """Within, modules are in evaluation mode; afterwards modes and buffers are what they were.

    Raises:
        RewriteError: a module refuses evaluation mode, and says why.
    """
    buffers = [(buffer, buffer._version, buffer.clone()) for module in modules for buffer in module.buffers()]
    with _modes(*modules):
        try:
            for module in modules:
                module.eval()
            yield
        finally:
            with torch.no_grad():
                for buffer, version, value in buffers:
                    if buffer._version != version:
                        buffer.copy_(value)


@contextlib.contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Within, a module is in evaluation mode, unless it knows only the mode that it was captured in."""
    with _modes(module) as restore:
        try:
            module.eval()
        except RewriteError:
            restore()  # its parts may have changed before it was asked
        yield


@contextlib.contextmanager
def _modes(*modules: nn.Module) -> Iterator[Callable[[], None]]:
    modes = [(part, part.training) for module in modules for part in module.modules()]

    def restore() -> None:
        for part, mode in modes:
            if part.training != mode:
                part.training = mode

    try:
        yield restore
    finally:
        restore()


def require_apart(student: nn.Module, *teachers: nn.Module) -> None:
    """Check that training a student cannot change its teachers.

    Raises:
        InputError: a trainable parameter of the student lies in the memory of a teacher's tensor.
    """
    theirs = {
        tensor.untyped_storage().data_ptr(): name
        for teacher in teachers
        for name, tensor in (*teacher.named_parameters(), *teacher.named_buffers())
    }
    theirs.pop(0, None)  # tensors of no elements
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and parameter.untyped_storage().data_ptr() in theirs:
            other = theirs[parameter.untyped_storage().data_ptr()]
            raise InputError(
                f"the student's parameter '{name}' is the teacher's '{other}', which training would change; pass "
                "copy.deepcopy(model) as the teacher, or set requires_grad=False on what stays"
            )
