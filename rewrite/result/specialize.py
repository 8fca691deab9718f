"""A program made ready to run: what it reads, and which calls it takes, on the device and in the dtypes of today."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite.lowering import (
    Executable,
    differentiable,
    run_eagerly,
    weight_order,
    writing_module,
    written_weights,
)
from rewrite.result.call import tree_of
from rewrite.result.precision import in_full, needs_full
from rewrite.trace.device import retarget
from rewrite.weights import Evaluator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx import GraphModule

    from rewrite.graph import Graph, Mutation
    from rewrite.lowered import Lowered
    from rewrite.result.call import Tree
    from rewrite.result.program import Program

_COMPLEX = {torch.float16: torch.complex32, torch.float32: torch.complex64, torch.float64: torch.complex128}


@dataclass(frozen=True)
class Conversion:
    """How weights differ from those that a program was captured with.

    Attributes:
        dtypes: recorded floating dtype to present one.
        device: the present device, None where there are no weights.
    """

    dtypes: Mapping[torch.dtype, torch.dtype] = field(default_factory=dict)
    device: torch.device | None = None

    def dtype_of(self, dtype: torch.dtype) -> torch.dtype:
        """The present dtype of a value recorded with ``dtype``."""
        return self.dtypes.get(dtype, dtype)


class Misfit(Exception):
    """The present weights are not those of the program: another shape, or converted in part."""


class Specialization:
    """One program and what the result needs to know of it.

    Args:
        program: what the compiler gave.
        registered: the names of its weights that are parameters or buffers of the model.
        attributes: those that are plain attributes of the model's modules.
        conversion: how the present weights differ from the captured ones.

    Attributes:
        graph: a copy for the present device, without tensors.
        inputs: the names of the flat inputs.
        names: the weights that executables take, in order; the first ``len(written)`` are written by a call.
        written: the weights that a call writes.
        folded: the weights that the weight program computes.
        reads: the names of the model's tensors that are needed, folded away or not.
        constants: tensors that belong to the program alone, on the present device.
        lowered: lowerings that run any call of the program, by name.
        ready: the program lowered with the weights that it was made with; None as soon as they change, or it is used.
    """

    def __init__(
        self,
        program: Program,
        registered: frozenset[str],
        attributes: frozenset[str] = frozenset(),
        conversion: Conversion | None = None,
    ):
        self.registered = registered
        self.attributes = attributes
        self.lowered: dict[str, tuple[Executable, Lowered]] = {}
        self.ready = program.ready
        self.conversion = conversion or Conversion()
        device = self.conversion.device
        self.graph = program.graph.copy() if device is None else _moved(program.graph, device)
        self.inputs = tuple(str(node.target) for node in self.graph.inputs)
        self.names = weight_order(self.graph)
        self.written = written_weights(self.graph)
        self.graph.program.keep(() if program.standalone else self.names)
        self.folded = frozenset(self.graph.program.results)
        read = dict.fromkeys((*self.names, *self.graph.program.sources))
        self.reads = tuple(name for name in read if name in registered or name in attributes)
        constants = {name: program.graph.weights[name] for name in read if name not in self.folded.union(self.reads)}
        self.constants = {name: _on(tensor, device) for name, tensor in constants.items()}
        self.graph.weights = {}
        # the model's tensors and the first folded values are not kept alive
        bare = program.graph.copy()
        bare.weights = constants
        self.program = replace(program, graph=bare, ready=None)

    @cached_property
    def eager(self) -> tuple[Executable, tuple[Mutation, ...]]:
        """The program operator by operator, differentiable, and the writes that it leaves to the caller."""
        graph = self.differentiable
        run = run_eagerly(graph, self.names)
        if self.needs_full:
            run = in_full(run, graph, self.conversion.dtype_of)
        return run, graph.signature.mutations

    @cached_property
    def needs_full(self) -> bool:
        """Whether an algorithm of the program is wrong in half precision, also under autocast."""
        return needs_full(self.graph)

    @cached_property
    def differentiable(self) -> Graph:
        """The graph with batch norms that update their statistics in place."""
        return differentiable(self.graph)

    @cached_property
    def writing(self) -> GraphModule:
        """The program as a flat module of inputs and weights that writes state itself."""
        return writing_module(self.differentiable, self.names)

    def fold(self, sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All weights by name, folded ones computed from ``sources``, which :attr:`reads` names.

        Raises:
            Misfit: a folded value does not fit its dtype, as a product of small weights does not fit float16, though
                the weights that it comes from do.
        """
        moved = {name: _on(sources[name], self.conversion.device) for name in self.attributes if name in sources}
        tensors = {**self.constants, **sources, **moved}
        evaluator = Evaluator(tensors.__getitem__, self.conversion.dtype_of)
        lost = self.graph.program.lost(evaluator)
        if lost and all(map(_finite, tensors.values())):
            raise Misfit(lost)
        folded = self.graph.program.values(evaluator, tensors)
        return {name: folded[name] if name in folded else tensors[name] for name in self.names}

    def fit(self, sources: Mapping[str, Tensor]) -> Specialization:
        """This specialization, or that of the same program for the present dtypes and device of the weights.

        Raises:
            Misfit: there is none.
        """
        conversion = _conversion(self, sources)
        if conversion == self.conversion:
            return self
        short = next((dtype for pair in conversion.dtypes.items() for dtype in pair if dtype.itemsize == 2), None)
        if (self._transforms or self.needs_full) and short is not None:
            raise Misfit(f"it transforms in float32, and its weights were or are {short}")
        return Specialization(self.program, self.registered, self.attributes, conversion)

    def accepts(self, flat: list[Any], structure: Tree, autocast: bool = False) -> bool:
        """Whether a call is one that the program was made for: any batch, else the same sizes, dtypes and devices.

        Under autocast floating dtypes may differ.
        """
        if tree_of(structure) != self.graph.signature.in_spec:
            return False
        symbols: dict[str, int] = {}
        return all(
            self._accepts(node.meta.get("val"), value, symbols, autocast)
            for node, value in zip(self.graph.inputs, flat, strict=True)
        )

    def _accepts(self, recorded: Any, value: Any, symbols: dict[str, int], autocast: bool) -> bool:
        if not isinstance(recorded, Tensor):
            return type(recorded) is type(value) and bool(recorded == value)
        if not isinstance(value, Tensor) or recorded.dim() != value.dim() or recorded.device != value.device:
            return False
        if self.conversion.dtype_of(recorded.dtype) != value.dtype and not (
            autocast and recorded.is_floating_point() and value.is_floating_point()
        ):
            return False
        sizes: tuple[Any, ...] = tuple(recorded.shape)
        for size, given in zip(sizes, value.shape, strict=True):
            symbolic = isinstance(size, torch.SymInt)
            wanted = symbols.setdefault(str(size), given) if symbolic else size
            # asked in this order, so that a size that is symbolic itself stays free
            if wanted != given or (symbolic and any(given == unfit for unfit in self._unfit)):
                return False
        return True

    @cached_property
    def _unfit(self) -> tuple[int, ...]:
        """Values of free sizes for which the program is not made: one, where forward means something else by it, and
        none where it transforms, for libraries have no transform of nothing."""
        return (*(() if self.program.one_row else (1,)), *((0,) if self._transforms else ()))

    @cached_property
    def _transforms(self) -> bool:
        """Whether the program has Fourier transforms, which 16-bit numbers have not."""
        return any(getattr(node.target, "_opname", "").startswith("fft_") for node in self.graph.calls())


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _on(tensor: Tensor, device: torch.device | None) -> Tensor:
    return tensor if device is None else tensor.to(device)


def _recorded(graph: Graph) -> dict[str, Tensor]:
    nodes = (*graph.nodes, *graph.program.fx.nodes)
    return {str(node.target): node.meta["val"] for node in nodes if node.op == "get_attr"}


def _moved(graph: Graph, device: torch.device) -> Graph:
    moved = retarget(graph, device)
    for node in moved.program.fx.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": device}
    return moved


def _conversion(special: Specialization, sources: Mapping[str, Tensor]) -> Conversion:
    """How present weights differ from the recorded ones."""
    dtypes: dict[torch.dtype, torch.dtype] = {}
    devices: dict[torch.device, torch.device] = {}
    for name, recorded in _recorded(special.program.graph).items():
        if name not in sources:
            continue
        tensor = sources[name]
        if tensor.shape != recorded.shape:
            raise Misfit(f"'{name}' has the shape {list(tensor.shape)} instead of {list(recorded.shape)}")
        converts = name in special.registered and (recorded.is_floating_point() or recorded.is_complex())
        if (dtypes.setdefault(recorded.dtype, tensor.dtype) if converts else recorded.dtype) != tensor.dtype:
            wanted = dtypes.get(recorded.dtype, recorded.dtype)
            raise Misfit(f"'{name}' is {tensor.dtype}, where {wanted} would go with the other weights")
        if name in special.registered and tensor.dim() > 0:
            devices[recorded.device] = tensor.device
            if len(set(devices.values())) > 1:
                raise Misfit(f"'{name}' is on {tensor.device}, and other weights are elsewhere")
    for real, made in list(dtypes.items()):
        if real in _COMPLEX and made in _COMPLEX:
            dtypes.setdefault(_COMPLEX[real], _COMPLEX[made])
    changed = {recorded: present for recorded, present in dtypes.items() if recorded != present}
    moved = [present for recorded, present in devices.items() if recorded != present]
    return Conversion(changed, moved[0] if moved else None)
