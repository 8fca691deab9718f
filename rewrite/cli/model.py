"""The model of a command and its example call."""

from __future__ import annotations

import inspect
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rewrite import compat, zoo
from rewrite.cli.inputs import drawn, dtype_of
from rewrite.cli.objects import named, raised
from rewrite.errors import InputError
from rewrite.names import nearest
from rewrite.pipeline import parse_value
from rewrite.printer import type_text
from rewrite.report.text import scaled

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from rewrite.cli.options import Subject
    from rewrite.cli.terminal import Terminal

_TIMM = "timm:"
_FORMS = "write timm:NAME, package.module:FACTORY or path/to/file.py:FACTORY"
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Example:
    """A model, in evaluation or training mode, and a call of it."""

    model: nn.Module
    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]


def example_of(subject: Subject, terminal: Terminal, training: bool = False) -> Example:
    """Make the model and its inputs, and say what they are.

    Raises:
        InputError: there is no such model, making it fails, or an input, dtype or device does not fit.
    """
    terminal.doing(f"loading {subject.model}")
    torch.manual_seed(subject.seed)  # a module may be made when its file is imported
    model = _made(subject.model, _options(subject.options)).train(training)
    model = _moved(model, subject)
    args, kwargs = drawn(subject.inputs or _own_inputs(model), subject.seed, *_kind(model))
    name, mode = type(model).__name__, "training" if training else "evaluation"
    made = (parameter for parameter in model.parameters() if not isinstance(parameter, nn.UninitializedParameter))
    count = sum(parameter.numel() for parameter in made)
    call = [type_text(value) for value in args] + [f"{key}={type_text(value)}" for key, value in kwargs.items()]
    terminal.say(f"{subject.model}: {name} with {scaled(count, '')} parameters, in {mode} mode, on {', '.join(call)}")
    terminal.doing(f"capturing {name}")
    return Example(model, args, kwargs)


# -- making -----------------------------------------------------------------------------------------------------------


def _made(text: str, options: Mapping[str, Any]) -> nn.Module:
    if text.startswith(_TIMM):
        return _from_timm(text.removeprefix(_TIMM), options)
    if zipfile.is_zipfile(text):
        raise InputError(f"'{text}' is a saved result, not a model; see it with torch-rewrite show, or give the model "
                         "that it was made of")  # fmt: skip
    if ":" not in text:
        raise InputError(f"'{text}' is no model; {_FORMS}")
    found = named(text)
    if isinstance(found, nn.Module):
        if options:
            raise InputError(f"'{text}' is a module already and takes no --model-option; name a class or a function")
        return found
    if not callable(found):
        raise InputError(f"'{text}' is of type {type(found).__name__}, neither a module nor a factory of one; {_FORMS}")
    made = _called(text, found, options)
    if not isinstance(made, nn.Module):
        raise InputError(f"'{text}' returns no module, but a value of type {type(made).__name__}; name a factory")
    return made


def _called(text: str, factory: Any, options: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise InputError(f"'{text}' cannot be called with these options: {error}; give its arguments by --model-option "
                         "NAME=VALUE") from None  # fmt: skip
    except ValueError:  # nothing is known of the signature of some built-in functions
        pass
    try:
        return factory(**options)
    except (Exception, SystemExit) as error:
        raise raised(f"making '{text}'", error) from error


def _from_timm(name: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        timm = zoo.timm()
    except ImportError as error:
        raise InputError(f"'{_TIMM}{name}' needs the package timm: {error}; pip install timm") from error
    try:
        return timm.create_model(name, **options)  # type: ignore[no-any-return]
    except Exception as error:
        if ":" not in name and not timm.is_model(name):
            raise InputError(f"timm has no model '{name}'{nearest(name, timm.list_models())}") from error
        raise raised(f"timm.create_model('{name}')", error) from error


def _options(texts: Iterable[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--model-option '{text}' is not NAME=VALUE; write for instance num_classes=10")
        options[name] = _WORDS[value.lower()] if value.lower() in _WORDS else parse_value(value)
    return options


# -- what it is given -------------------------------------------------------------------------------------------------


def _moved(model: nn.Module, subject: Subject) -> nn.Module:
    if subject.dtype is not None:
        dtype = dtype_of(subject.dtype)
        if not dtype.is_floating_point:
            raise InputError(f"--dtype {subject.dtype} is no floating-point dtype; models are converted to these only")
        model = model.to(dtype)
    if subject.device is not None:
        try:
            known = compat.has_device(subject.device)
        except RuntimeError:
            known = False
        if not known:
            here = ", ".join(compat.device_kinds())
            raise InputError(f"--device {subject.device} is no device of this machine; there are {here}")
        model = model.to(subject.device)
    return model


def _kind(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    """The dtype and the device of a model's numbers."""
    tensors = [*model.parameters(), *model.buffers()]
    real = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if real is None:
        return torch.float32, tensors[0].device if tensors else torch.device("cpu")
    return real.dtype, real.device


def _own_inputs(model: nn.Module) -> list[str]:
    """The one image that a model of timm names."""
    about = getattr(model, "pretrained_cfg", None)
    sizes = about.get("input_size") if isinstance(about, dict) else None
    if sizes is None:
        raise InputError("the model does not say what it takes; give each of its inputs, such as --input 1,3,224,224")
    return [",".join(map(str, (1, *sizes)))]
