"""The lowering that is fastest here: each one that is there is timed on the example.

The default is kept unless another one is faster by more than the noise. Where timing would tell nothing, or would
change what the caller sees, the default is taken: for random numbers, under autocast, and for weights that are
arguments, which runtimes cannot pack.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from codegen.eager import Eager
from codegen.inductor import Inductor, available
from codegen.onnx_runtime import OnnxRuntime
from codegen.openvino import OpenVINO
from rewrite import compat
from rewrite.errors import LoweringError
from rewrite.events import emit
from rewrite.graph import is_random
from rewrite.lowered import Choice, Chosen
from rewrite.timing import interleave, second_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor
    from torch.fx import GraphModule

    from rewrite.graph import Graph
    from rewrite.lowering import Executable, Lowering
    from rewrite.target import Target

MARGIN = 0.02
"""The least part of its time that another lowering has to save, however little the noise happens to be."""

_ROUNDS, _WARMUP, _SECONDS = 50, 3, 3.0
_HOPELESS = 4.0
"""What takes so many times longer than the fastest is run twice and no more."""
_SHORT = 0.2
"""Seconds of a run that may have taken long because the machine was busy, and is tried again."""


def default_lowering(target: Target | None = None, elementwise: bool = False) -> Lowering:
    """Inductor where it can compile, with kernels that a target measures, else eager."""
    return Inductor(target, elementwise) if available() else Eager()


def candidates(target: Target | None = None, elementwise: bool = False) -> dict[str, Lowering]:
    """The lowerings that can be tried here by name, the default first."""
    found: dict[str, Lowering] = {"inductor": Inductor(target, elementwise)} if available() else {}
    found["eager"] = Eager()
    found.update((kind.key, kind()) for kind in (OnnxRuntime, OpenVINO) if not kind.missing())
    return found


class Fastest:
    """Compiles with every lowering, and keeps the executable that is fastest on the example.

    Args:
        target, elementwise: as for :class:`~codegen.inductor.Inductor`.
    """

    name = "fastest"
    freezes = True
    static = True

    def __init__(self, target: Target | None = None, elementwise: bool = False) -> None:
        self._target, self._elementwise = target, elementwise
        self.arranges = default_lowering().arranges

    def rehearse(self, module: GraphModule) -> Callable[..., Sequence[Any]]:
        """With the kernels of the default lowering; whole programs are timed on all of them."""
        return default_lowering(self._target, self._elementwise).rehearse(module)

    def arrange(self, graph: Graph, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As the default lowering, which runs what is not frozen."""
        return default_lowering().arrange(graph, weights)

    def compile(self, graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Any], frozen: bool) -> Executable:
        """The fastest executable, which knows its :class:`~rewrite.lowered.Choice`.

        Raises:
            Exception: what the default lowering raises, where nothing is timed.
        """
        reason = _reason(graph, frozen)
        if reason:
            lowering = default_lowering(self._target, self._elementwise)
            emit("default-lowering", f"{lowering.name} is taken, and nothing is timed: {reason}",
                 lowering=lowering.name, reason=reason)  # fmt: skip
            return lowering.compile(graph, weights, inputs, frozen and lowering.freezes)
        found = candidates(self._target, self._elementwise)
        runs = _compiled(graph, weights, inputs, found)
        tensors = list(weights.values())

        def call(run: Executable) -> Callable[[], Any]:
            return lambda: run(inputs, tensors)

        once = _tried({name: call(run) for name, run in runs.items()})
        limit = _HOPELESS * min(once.values())
        hopeful = {name: call(runs[name]) for name, spent in once.items()
                   if spent <= limit or (spent < _SHORT and _again(call(runs[name]), limit))}  # fmt: skip
        compared = interleave(hopeful, _ROUNDS, _WARMUP, _SECONDS)
        times = {name: timing.median for name, timing in compared.timings.items()}
        choice = Choice(_best(times, compared.noise), times, compared.noise)
        emit("fastest", f"{choice}, noise {100 * choice.noise:.2g} %", lowering=choice.name, milliseconds=times,
             noise=choice.noise)  # fmt: skip
        return Chosen(runs[choice.name], choice)

    def compile_traced(
        self, module: GraphModule, examples: Sequence[Any], options: Mapping[str, Any]
    ) -> Callable[..., Sequence[Any]]:
        """Refuse.

        Raises:
            LoweringError: always.
        """
        raise LoweringError("sizes are symbolic, so there is no example to time; pass lower='inductor'")


def _reason(graph: Graph, frozen: bool) -> str:
    """Why nothing is timed; '' where it is."""
    if not frozen:
        return "the weights change, so they are arguments"
    if compat.is_any_autocast():
        return "runtimes do not follow autocast"
    if any(is_random(node) for node in graph.nodes):
        return "the model draws random numbers"
    return ""


def _compiled(
    graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Any], lowerings: Mapping[str, Lowering]
) -> dict[str, Executable]:
    """Executables by the names of lowerings; those that cannot compile are left out."""
    runs: dict[str, Executable] = {}
    for name, lowering in lowerings.items():
        try:
            runs[name] = lowering.compile(graph, weights, inputs, lowering.freezes)
        except Exception as error:  # another one runs the program
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            emit("lowering-failed", f"{lowering.name} is left out: {reason}", logging.INFO, lowering=name,
                 reason=reason)  # fmt: skip
    return runs


def _tried(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of the second run of each call; those that fail are left out."""
    once: dict[str, float] = {}
    for name, call in calls.items():
        try:
            once[name] = second_run(call)
        except Exception as error:  # another one runs the program
            emit("lowering-failed", f"{name} is left out: {error}", logging.INFO, lowering=name, reason=str(error))
    return once


def _again(call: Callable[[], Any], limit: float) -> bool:
    """Whether one of three more runs takes no longer than a limit."""
    return any(second_run(call) <= limit for _ in range(3))


def _best(times: Mapping[str, float], noise: float) -> str:
    """The fastest, or the first where that saves no more than the noise."""
    first, best = next(iter(times)), min(times, key=times.__getitem__)
    saved = 1 - times[best] / times[first]
    return best if saved > max(noise, MARGIN) else first
