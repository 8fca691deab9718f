"""The symbolic sizes of a graph as the symbols of formulas: what is counted with them holds for every size.

``count(graph, Symbols(graph)).flops`` is a ``sympy`` expression such as ``3628146688*N``.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import Tensor

from rewrite import compat
from rewrite.arithmetic import symbol
from rewrite.cost import Costs, count
from rewrite.flops import Sizes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rewrite.arithmetic import Number
    from rewrite.graph import Graph

BATCH = symbol("N")
"""The size of a batch, in formulas."""

_DIMENSIONS = {3: ("", "", "L"), 4: ("", "", "H", "W"), 5: ("", "", "D", "H", "W")}
"""What the sizes of an input are usually called, by their number."""

_FUNCTIONS = {
    "FloorDiv": lambda a, b: sympy.floor(a / b),
    "CleanDiv": lambda a, b: sympy.floor(a / b),
    "CeilDiv": lambda a, b: sympy.ceiling(a / b),
    "PythonMod": sympy.Mod,
    "Mod": sympy.Mod,
    "Max": sympy.Max,
    "Min": sympy.Min,
}
"""What stands for the functions of torch's own expressions, by their names."""


class Symbols(Sizes):
    """Symbols for the symbolic sizes of a graph, with which counts are expressions.

    The batch is N. Other sizes of the inputs are named as usual, L of ``[N, C, L]`` and H and W of ``[N, C, H, W]``, or
    as torch has them. A reshape that needs no copy for some sizes only counts as it does for those of the example, with
    a batch of two at least. What torch counts, and cannot count for symbols, counts by its elements.

    Attributes:
        symbols: what stands for torch's symbols.
    """

    def __init__(self, graph: Graph):
        super().__init__(graph)
        self.symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        hints: dict[sympy.Symbol, int] = {}
        for node in graph.inputs:
            value = node.meta.get("val")
            shape = tuple(value.shape) if isinstance(value, Tensor) else (value,)
            for dim, size in enumerate(shape):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    usual = ("N", *_DIMENSIONS.get(len(shape), ())[1:]) if isinstance(value, Tensor) else ()
                    self._name(size.node.expr, usual[dim] if dim < len(usual) else "")
                    hints[size.node.expr] = max(2, size.node.hint or 2)
        batch = max((hints[old] for old, new in self.symbols.items() if new == BATCH), default=2)
        self.example = Sizes(graph, batch)
        self._known: dict[sympy.Expr, Number] = {}
        self._mode, named = compat.symbolic_mode({str(old): number for old, number in hints.items()})
        self._stand_ins = {old: named[str(old)] for old in hints}

    def _name(self, old: sympy.Symbol, usual: str) -> None:
        new = symbol(usual or str(old))
        if old not in self.symbols:
            self.symbols[old] = symbol(str(old)) if new in self.symbols.values() else new

    def number(self, size: int | torch.SymInt) -> Number:
        """One size, as an expression where it is no number."""
        return self._expression(size.node.expr) if isinstance(size, torch.SymInt) else int(size)

    def _expression(self, expr: sympy.Expr) -> Number:
        known = self._known.get(expr)
        if known is None:
            ours = {old: self.symbols.get(old, symbol(str(old))) for old in expr.free_symbols}
            found = expr.xreplace(ours).replace(
                lambda part: type(part).__name__ in _FUNCTIONS, lambda part: _FUNCTIONS[type(part).__name__](*part.args)
            )
            known = self._known[expr] = int(found) if found.is_Integer else found
        return known

    def stand_in(self, value: Any) -> Any:
        """A recorded value in a symbolic mode of its own, where nothing that is asked of sizes reaches the graph.

        Raises:
            KeyError: a size depends on more than the sizes of inputs.
        """
        return compat.with_symbols(value, self._mode, self._stand_ins)

    def views(self, value: Tensor, shape: Sequence[int | torch.SymInt]) -> bool:
        """Whether a tensor takes another shape without a copy, at the sizes of the example."""
        return self.example.views(value, shape)

    def counted(self, count: int | torch.SymInt) -> Number:
        """A number that was computed from stand-ins."""
        if not isinstance(count, torch.SymInt):
            return int(count)
        back = {size.node.expr: old for old, size in self._stand_ins.items()}
        return self._expression(count.node.expr.xreplace(back))

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Within, operators take stand-ins."""
        with self._mode, compat.python_dispatcher():
            yield


def costs(before: Graph, after: Graph) -> Costs:
    """The counts of a program before and after as formulas."""
    return Costs(count(before, Symbols(before)), count(after, Symbols(after)))


def is_per_sample(number: Number) -> bool:
    """Whether a count is proportional to the batch, so that the number for one sample says all."""
    if isinstance(number, int):
        return number == 0
    return bool(number.free_symbols <= {BATCH}) and sympy.expand(number - BATCH * number.subs(BATCH, 1)) == 0
