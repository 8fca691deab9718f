"""Example inputs as users write them: ``[NAME=]SIZES[:DTYPE[:HIGH]]``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from rewrite.errors import InputError
from rewrite.names import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

HIGH = 10
"""Integers are drawn from zero to one less than this, unless the user says another bound."""

_INPUT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>\d+(?:,\d+)*)?(?::(?P<dtype>\w+)(?::(?P<high>\d+))?)?")
_DTYPES = {name: value for name in dir(torch) if isinstance(value := getattr(torch, name), torch.dtype)}


def dtype_of(text: str) -> torch.dtype:
    """A dtype by its name in torch.

    Raises:
        InputError: there is none.
    """
    if text not in _DTYPES:
        raise InputError(f"'{text}' is no dtype{nearest(text, _DTYPES)}")
    return _DTYPES[text]


def drawn(
    texts: Iterable[str], seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The positional and keyword arguments of a call.

    Real and complex numbers are normal, integers uniform from zero to :data:`HIGH` or the bound in the text, truth
    values even. The same seed gives the same numbers on every device.

    Args:
        texts: one for each argument, such as ``1,3,224,224``, ``1,128:int64`` or ``mask=1,128:bool``.
        seed: of the numbers.
        dtype: of arguments whose text names none.
        device: where they are.

    Raises:
        InputError: a text that is no input.
    """
    generator = torch.Generator().manual_seed(seed)
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for text in texts:
        found = _INPUT.fullmatch(text.replace(" ", ""))
        if found is None or not (found["sizes"] or found["dtype"]):
            raise InputError(f"input '{text}' is not [NAME=]SIZES[:DTYPE[:HIGH]]; write for instance 1,3,224,224 or "
                             "1,128:int64")  # fmt: skip
        sizes = [int(size) for size in (found["sizes"] or "").split(",") if size]
        kind = dtype_of(found["dtype"]) if found["dtype"] else dtype
        value = _numbers(sizes, kind, int(found["high"] or HIGH), generator).to(device)
        if found["name"] in kwargs:
            raise InputError(f"input '{found['name']}' is given twice; keep one of the two")
        if found["name"]:
            kwargs[found["name"]] = value
        else:
            args.append(value)
    return tuple(args), kwargs


def _numbers(sizes: list[int], dtype: torch.dtype, high: int, generator: torch.Generator) -> Tensor:
    try:
        torch.zeros(1).to(dtype)
    except RuntimeError:  # quantized, or of less than a byte
        raise InputError(f"numbers of {dtype} cannot be drawn; make such an input inside the model") from None
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex128 if dtype.is_complex else torch.float64
        return torch.randn(sizes, generator=generator, dtype=wide).to(dtype)
    if dtype is torch.bool:
        return torch.randint(2, sizes, generator=generator).to(dtype)
    if high < 1:
        raise InputError(f"HIGH is {high}, and integers are drawn below it; give a positive number")
    return torch.randint(min(high, torch.iinfo(dtype).max + 1), sizes, generator=generator).to(dtype)
