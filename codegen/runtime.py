"""Lowering to a runtime that reads ONNX, on the CPU: what all such runtimes have in common.

The runtime is given the operators that compute, with their weights baked in, and writes into memory that belongs to the
caller; views and other outputs are torch's. Before an executable is handed out, it is run on the example and compared
with the graph run operator by operator: a runtime is another program, with errors of its own.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from codegen import onnx_model
from codegen.agreement import disagreement
from codegen.packing import pack
from codegen.partition import Facts, Reference, extract, fresh_results
from rewrite import compat
from rewrite.errors import InputError, LoweringError
from rewrite.graph import is_random
from rewrite.lowering import run_eagerly, written_weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch.fx import GraphModule

    from rewrite.graph import Graph
    from rewrite.lowering import Executable

Session = Callable[[Sequence[Tensor], Sequence[Tensor]], None]
"""``run(arguments, results)`` reads contiguous tensors and writes contiguous tensors, from any thread."""

_BY_VALUE = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))


class Runtime(ABC):
    """Runs graphs in a runtime on the CPU, for the sizes of an example.

    Under autocast, and where nothing is computed, graphs run operator by operator.

    Raises:
        InputError: a package is not installed.
    """

    name: str
    freezes = True
    static = True
    arranges = True
    key: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[frozenset[torch.dtype]]

    def __init__(self) -> None:
        missing = self.missing()
        if missing:
            raise InputError(
                f"lower={self.key!r} needs {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not "
                f"installed; pip install {' '.join(missing)}"
            )

    @classmethod
    def missing(cls) -> list[str]:
        """The packages that are not installed."""
        return [name for name in (*cls.packages, *onnx_model.PACKAGES) if importlib.util.find_spec(name) is None]

    @abstractmethod
    def load(self, path: Path, arguments: Sequence[Facts], results: Sequence[Facts]) -> Session:
        """A session of an ONNX model, on as many threads as torch has."""

    def arrange(self, graph: Graph, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights as they are."""
        return weights

    def compile(self, graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Any], frozen: bool) -> Executable:
        """A session of the graph, which has given on the example what torch gives.

        Raises:
            LoweringError: the program is not one for this runtime, or the runtime gives something else than torch.
            Exception: whatever the exporter and the runtime raise.
        """
        self._require(graph, weights, inputs)
        order = tuple(weights)
        if compat.is_any_autocast():  # whose dtypes an exported program does not follow
            return run_eagerly(graph, order)
        examples = _copies(inputs)
        reference = Reference(graph, weights)
        expected = reference.outputs(_copies(inputs))
        baked = set(order).difference(written_weights(graph)) if frozen else set()
        run = self._executable(graph, weights, examples, reference, baked)
        if run is None:
            return run_eagerly(graph, order)
        given = _copies(list(weights.values()))
        with torch.no_grad():
            found = run(examples, given)
        wrong = disagreement(found, expected)
        if wrong:
            raise LoweringError(f"on the example {self.name} {wrong}; pass another lower=")
        if _differ(examples, inputs) or _differ(given, list(weights.values())):
            raise LoweringError(f"{self.name} writes to its arguments; pass another lower=")
        return run

    def rehearse(self, module: GraphModule) -> Callable[..., Sequence[Any]]:
        """With the kernels that compiled code of torch calls: sessions for every part would take too long to make.

        What the runtime itself takes is seen when whole programs are compared.
        """
        pack(module)
        return module.forward

    def compile_traced(
        self, module: GraphModule, examples: Sequence[Any], options: Mapping[str, Any]
    ) -> Callable[..., Sequence[Any]]:
        """Refuse.

        Raises:
            LoweringError: always.
        """
        raise LoweringError(f"{self.name} takes no symbolic sizes and gives no gradients; pass lower='inductor'")

    def _require(self, graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Any]) -> None:
        """Check that the runtime can run a program.

        Raises:
            LoweringError: it cannot.
        """
        for value in (*inputs, *weights.values()):
            if isinstance(value, Tensor) and value.device.type != "cpu":
                raise LoweringError(f"{self.name} runs on the CPU, and a tensor is on {value.device}; move it there")
        for node in graph.calls():
            if is_random(node):
                raise LoweringError(f"{node.target} draws random numbers, and {self.name} has others; leave it out")
            if not _BY_VALUE.isdisjoint(getattr(node.target, "tags", ())):
                raise LoweringError(f"the values of tensors decide on the sizes of {node.target}; leave it out")

    def _executable(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        inputs: Sequence[Any],
        reference: Reference,
        baked: set[str],
    ) -> Executable | None:
        """The executable, None where nothing is computed."""
        facts, numbers = reference.facts, reference.numbers
        fresh = fresh_results(graph, numbers)
        leaves = [node for node in graph.nodes if node.op in ("placeholder", "get_attr") and node not in numbers]
        arguments = {node for node in leaves if node.op == "placeholder" or str(node.target) not in baked}
        head, takes = extract(graph, fresh, arguments, numbers, weights)
        if not fresh or any(0 in facts[node].shape for node in (*takes, *fresh)):
            return None
        for node in facts:
            if facts[node].dtype not in self.dtypes:
                raise LoweringError(f"{self.name} has no {facts[node].dtype}, which '{node.name}' is; convert it")
        places = _places(graph, tuple(weights))
        values = (*inputs, *weights.values())
        results = [facts[node] for node in fresh]
        with onnx_model.onnx_file(head, [values[places[node]].contiguous() for node in takes]) as path:
            session = self.load(path, [facts[node] for node in takes], results)
        computed = _computed(session, [places[node] for node in takes], results)
        if graph.outputs == fresh:
            return computed
        tail, read = extract(graph, graph.outputs, {*leaves, *fresh}, numbers, {})
        return _viewing(computed, tail, places | {node: len(values) + i for i, node in enumerate(fresh)}, read)


def _copies(values: Sequence[Any]) -> list[Any]:
    return [value.clone() if isinstance(value, Tensor) else value for value in values]


def _differ(values: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether any of some tensors has other elements than its counterpart, wherever these lie; NaN is like NaN."""
    return any(
        not torch.equal(a.nan_to_num(), b.nan_to_num()) if a.is_floating_point() else not torch.equal(a, b)
        for a, b in zip(values, others, strict=True) if isinstance(a, Tensor)
    )  # fmt: skip


def _places(graph: Graph, order: Sequence[str]) -> dict[Node, int]:
    """Where the values of inputs and weights are among all of them."""
    inputs = graph.inputs
    numbers = {name: len(inputs) + i for i, name in enumerate(order)}
    reads = {node: numbers[str(node.target)] for node in graph.nodes if node.op == "get_attr"}
    return {**{node: i for i, node in enumerate(inputs)}, **reads}


def _computed(session: Session, takes: Sequence[int], results: Sequence[Facts]) -> Executable:
    """What the runtime computes, each in memory of its own with the strides that it should have."""
    packed = [Facts(fact.shape, torch.empty(fact.shape, device="meta").stride(), fact.dtype) for fact in results]
    # the strides of sizes of one carry no meaning
    direct = [fact.empty().is_contiguous() for fact in results]

    def run(inputs: Sequence[Any], weights: Sequence[Tensor]) -> Sequence[Any]:
        values = (*inputs, *weights)
        outputs = [fact.empty() for fact in results]
        written = [output if fits else fact.empty() for output, fits, fact in zip(outputs, direct, packed, strict=True)]
        session([values[i].detach().resolve_neg().contiguous() for i in takes], written)
        for output, found, fits in zip(outputs, written, direct, strict=True):
            if not fits:
                output.copy_(found)
        return outputs

    return run


def _viewing(computed: Executable, tail: GraphModule, places: Mapping[Node, int], read: Sequence[Node]) -> Executable:
    """All outputs: what was computed, and torch's views."""
    taken = [places[node] for node in read]

    def run(inputs: Sequence[Any], weights: Sequence[Tensor]) -> Sequence[Any]:
        values = (*inputs, *weights, *computed(inputs, weights))
        return tail(*(values[i] for i in taken))  # type: ignore[no-any-return]

    return run
