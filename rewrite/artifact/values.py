"""Recorded values as JSON: what is needed to record them again, and what they have to come out as.

Sizes are numbers, or names of symbols: a batch that is free stays free, and sizes that inputs share stay shared.
Strides may be products of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import Tensor

from rewrite import compat
from rewrite.artifact.literals import torch_name
from rewrite.artifact.names import DAMAGED
from rewrite.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PROBES = (7919, 7927, 7933, 7937, 7949, 7951)
"""Numbers for symbols, to tell expressions apart whatever their symbols are called."""


class Scope:
    """What the recorded values of one program share: a fake mode, symbolic sizes, and a device.

    Args:
        mode: the mode.
        symbols: the symbolic sizes, by the names that the file has for them.
        device: where everything is recorded; None for the devices that the file says.
    """

    def __init__(
        self, mode: compat.FakeTensorMode, symbols: Mapping[str, torch.SymInt], device: torch.device | None = None
    ):
        if len(symbols) > len(_PROBES):
            raise ArtifactError(
                f"the program has {len(symbols)} free sizes, and at most {len(_PROBES)} can be saved; capture it with "
                "fixed sizes"
            )
        self.mode, self.symbols = mode, symbols
        self._device = device
        self._names = {size.node.expr: name for name, size in symbols.items()}
        self._numbers = dict(zip(self._names, _PROBES, strict=False))
        self._known: dict[Any, Any] = {}
        self._interned: dict[Any, Any] = {}

    @classmethod
    def of(cls, mode: compat.FakeTensorMode, values: Iterable[Any]) -> Scope:
        """The scope of recorded inputs that exist; it numbers their symbols."""
        sizes = [size for value in values if isinstance(value, Tensor) for size in (*value.shape, *value.stride())]
        free = {size.node.expr: size for size in sizes if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol}
        return cls(mode, {f"s{i}": size for i, size in enumerate(free.values())})

    @classmethod
    def made(cls, hints: Mapping[str, int], device: torch.device | None = None) -> Scope:
        """A new scope, with symbols of these names whose numbers in the example are given.

        Raises:
            ArtifactError: other names than this class gives, or numbers that no sizes have.
        """
        if list(hints) != [f"s{i}" for i in range(len(hints))] or not all(
            type(number) is int and 0 < number < 1 << 31 for number in hints.values()
        ):
            raise ArtifactError(f"the free sizes of the program are {dict(hints)}; {DAMAGED}")
        return cls(*compat.symbolic_mode(hints), device)

    def hints(self) -> dict[str, int]:
        """The numbers that the symbols have in the example."""
        return {name: compat.hint(size) for name, size in self.symbols.items()}

    def device(self, name: str) -> torch.device:
        """The device to use for a recorded one."""
        recorded = torch.device(name)
        return recorded if self._device is None else self._device

    # -- tensors ------------------------------------------------------------------------------------------------------

    def data(self, value: Tensor) -> dict[str, Any]:
        """A recorded tensor, described.

        Raises:
            ArtifactError: a layout or a size that cannot be made again.
        """
        if value.layout is not torch.strided or value.is_quantized:
            kind = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
            raise ArtifactError(f"a tensor of the program is {kind}, which cannot be saved; make it dense")
        return {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": [self._size_data(size) for size in value.shape],
            "stride": [self._size_data(size) for size in value.stride()],
            "device": str(value.device),
            "requires_grad": value.requires_grad,
        }

    def tensor(self, data: Mapping[str, Any]) -> Tensor:
        """The fake tensor that :meth:`data` described.

        Raises:
            ArtifactError: something else.
        """
        try:
            shape, stride = ([self._size(size) for size in data[key]] for key in ("shape", "stride"))
            dtype = torch_name(data["dtype"], torch.dtype)
            with self.mode:
                made = torch.empty_strided(shape, stride, dtype=dtype, device=self.device(data["device"]))
                return made.requires_grad_(data["requires_grad"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{data!r} describes no tensor ({error}); {DAMAGED}") from None

    def _size_data(self, size: Any) -> Any:
        """A size as a number, the name of a symbol, or a list of factors.

        Raises:
            ArtifactError: it is no product of numbers and symbols.
        """
        if not isinstance(size, torch.SymInt):
            return size
        expression = size.node.expr
        if expression in self._names:
            return self._names[expression]
        factors: list[Any] = []
        for factor in sympy.Mul.make_args(expression):
            base, power = factor.as_base_exp()
            if not (power.is_Integer and power > 0 and (base.is_Integer or base in self._names)):
                raise ArtifactError(
                    f"an input has the size {expression}, which cannot be saved; capture it with fixed sizes"
                )
            factors += [int(base) if base.is_Integer else self._names[base]] * int(power)
        return factors

    def _size(self, data: Any) -> Any:
        product: Any = 1
        for factor in data if isinstance(data, list) else [data]:
            product = product * (factor if isinstance(factor, int) else self.symbols[factor])
        return product

    def interned(self, value: Any) -> Any:
        """The first recorded value that is like this one in all that operators make of it."""
        return self._interned.setdefault(_looks(value), value)

    # -- types --------------------------------------------------------------------------------------------------------

    def type_of(self, value: Any) -> str:
        """The shapes and dtypes of a recorded value as text; equal for equal ones in every process."""
        if isinstance(value, Tensor):
            sizes = ",".join(str(self._number(size)) for size in value.shape)
            return f"{str(value.dtype).removeprefix('torch.')}[{sizes}]"
        if isinstance(value, (tuple, list)):
            return f"({' '.join(self.type_of(item) for item in value)})"
        return str(self._number(value))

    def _number(self, size: Any) -> Any:
        if not isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return size
        expression = size.node.expr
        if expression not in self._known:
            self._known[expression] = expression.subs(self._numbers)
        return self._known[expression]


def _looks(value: Any) -> Any:
    """What tells recorded values apart, to look up by."""
    if isinstance(value, Tensor):
        sizes = tuple(map(_looks, (*value.shape, *value.stride())))
        return value.dtype, value.device, value.requires_grad, sizes
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_looks, value))
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return type(value), value.node.expr
    return type(value), repr(value)
