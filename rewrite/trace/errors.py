"""What goes wrong in capture, in the user's terms: the line of ``forward`` and what to change there."""

from __future__ import annotations

import linecache
import os
import re
import sysconfig
import traceback
from typing import TYPE_CHECKING

import torch

from rewrite import compat
from rewrite.errors import CaptureError, InputError
from rewrite.provenance import Location

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_NOT_THE_USERS = tuple(
    os.path.join(path, "")
    for path in (
        os.path.dirname(os.path.abspath(torch.__file__)),
        os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    )
)
_STANDARD = os.path.join(sysconfig.get_paths()["stdlib"], "")

# A phrase of torch's message -> what it means -> what to do about it.
_KNOWN = (
    (r"Unsupported input type <class '(?P<what>[^']+)'>",
     "an argument is a '{what}', which is neither a tensor nor a number nor a container of such",
     "pass tensors, or call torch.export.register_dataclass for the type once"),
    (r"\.numpy\(\) is not supported|can't convert .* to numpy|__array__",
     "forward turns a tensor into a numpy array",
     "use torch operators there, or move the computation out of forward"),
    (r"fake tensor in the exported program constant's list",
     "forward writes to a tensor through '.data', which tracing does not see",
     "write with an in-place operator under torch.no_grad()"),
    (r"does not require grad|element 0 of tensors",
     "forward differentiates on its own",
     "leave this model as it is, or optimize the part that forward differentiates"),
)  # fmt: skip


def user_line(error: BaseException) -> Location | None:
    """The innermost line of the user's code that an exception passed through, its causes included."""
    for link in _chain(error):
        found = innermost(link.__traceback__)
        if found is not None:
            return found
    return None


def innermost(trace: TracebackType | None) -> Location | None:
    """The innermost frame outside torch, the standard library and this project."""
    found = None
    for frame, line in traceback.walk_tb(trace):
        code = frame.f_code
        if is_users(code.co_filename):
            text = linecache.getline(code.co_filename, line, frame.f_globals).strip()
            found = Location(code.co_filename, line, code.co_name, text)
    return found


def is_users(file: str) -> bool:
    """Whether a source file belongs to the user, third-party packages included."""
    if file.startswith(("<", *_NOT_THE_USERS)):
        return False
    return not file.startswith(_STANDARD) or "site-packages" in file


def place(location: Location | None) -> str:
    """`` at model.py:41 ('return x + 1')``, or '' for an unknown place."""
    if location is None:
        return ""
    return f" at {location} ('{location.text}')" if location.text else f" at {location}"


def capture_error(error: BaseException, model: torch.nn.Module) -> CaptureError:
    """What ``export`` raised, as one sentence with the user's line and a remedy."""
    reason, remedy = _explain(error)
    where = place(user_line(error))
    return CaptureError(f"{type(model).__name__} cannot be captured: {reason}{where}; {remedy}")


def input_error(error: BaseException, model: torch.nn.Module) -> InputError:
    """What calling the model raised, as one sentence with the user's line and torch's own words."""
    if isinstance(error, NotImplementedError) and type(model).forward is torch.nn.Module.forward:
        return InputError(f"{type(model).__name__} has no forward; pass a module that can be called")
    return InputError(
        f"calling {type(model).__name__} on the example inputs raises {type(error).__name__}{place(user_line(error))}: "
        f"{first_line(error)}; pass inputs that the model accepts"
    )


def first_line(error: BaseException) -> str:
    """The first line of a message, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def depends_on_values(error: BaseException) -> bool:
    """Whether Python needed the value of a tensor while tracing."""
    return any(isinstance(link, compat.data_dependent_errors()) for link in _chain(error))


def is_hopeless(error: BaseException) -> bool:
    """Whether the failure has nothing to do with a symbolic batch size, so that a static capture fails too."""
    return depends_on_values(error) or _known(error) is not None


def is_known(error: BaseException) -> bool:
    """Whether the message is one that :func:`capture_error` explains better than torch."""
    return _known(error) is not None


def _explain(error: BaseException) -> tuple[str, str]:
    if depends_on_values(error):
        return (
            "Python decides on the value of a tensor, which a graph does not have",
            "use torch.where, or move the decision out of forward; a flag of the model itself may be a buffer",
        )
    known = _known(error)
    if known is not None:
        return known
    return f"export raises {type(error).__name__}: {first_line(error)}", "change forward there, or exclude this part"


def _known(error: BaseException) -> tuple[str, str] | None:
    for link in _chain(error):
        for phrase, reason, remedy in _KNOWN:
            found = re.search(phrase, str(link))
            if found is not None:
                return reason.format(**found.groupdict()), remedy
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
