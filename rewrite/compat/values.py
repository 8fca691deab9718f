"""Recorded values: fake tensors and symbolic sizes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def fake_mode_of(graph: torch.fx.Graph) -> FakeTensorMode | None:
    """The fake mode that all recorded values of a graph share, or None where no value is a tensor."""
    for node in graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None:
            return mode  # type: ignore[no-any-return]
    return None


def symbolic_mode(hints: Mapping[str, int]) -> tuple[FakeTensorMode, dict[str, torch.SymInt]]:
    """A new fake mode and symbolic sizes in it, by name; ``hints`` are the numbers that they have in an example."""
    from torch._dynamo.source import ConstantSource

    shapes = ShapeEnv()
    sizes: dict[str, Any] = {}
    for name, number in hints.items():
        symbol = shapes.create_symbol(number, ConstantSource(name), dynamic_dim=DimDynamic.DYNAMIC)
        sizes[name] = shapes.create_symintnode(symbol, hint=number)
    return FakeTensorMode(shape_env=shapes), sizes


def with_symbols(value: Any, mode: FakeTensorMode, symbols: Mapping[Any, Any]) -> Any:
    """A recorded tensor or size in another symbolic mode, whose sizes stand for those of ``symbols``.

    Raises:
        KeyError: a size depends on a symbol that is not among them.
    """
    if isinstance(value, torch.Tensor):
        sizes, strides = (
            [with_symbols(size, mode, symbols) for size in dims] for dims in (value.shape, value.stride())
        )
        with mode:
            return torch.empty_strided(sizes, strides, dtype=value.dtype, device=value.device)
    if not isinstance(value, torch.SymInt):
        return value
    expr, shapes = value.node.expr, mode.shape_env
    assert shapes is not None
    found = expr.xreplace({symbol: symbols[symbol].node.expr for symbol in expr.free_symbols})
    number = found.xreplace({size.node.expr: size.node.hint for size in symbols.values()})
    return shapes.create_symintnode(found, hint=int(number))


def hint(size: torch.SymInt) -> int:
    """The number that a symbolic size has in the example that it was traced with."""
    return int(size.node.hint)


def is_unbacked(size: torch.SymInt) -> bool:
    """Whether a number depends on the values of tensors, so that there is none for the example."""
    return size.node.hint is None


def has_unbacked_size(value: Any) -> bool:
    """Whether the recorded value is a tensor with a size that depends on the values of other tensors."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return isinstance(value, torch.Tensor) and bool(free_unbacked_symbols(value.shape))


@contextlib.contextmanager
def without_fresh_symbols(mode: FakeTensorMode) -> Iterator[None]:
    """Within, sizes that depend on values are made and forgotten."""
    if mode.shape_env is None:
        yield
    else:
        with mode.shape_env.ignore_fresh_unbacked_symbols():
            yield
