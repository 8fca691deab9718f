"""A lowering that runs kernels in Triton's interpreter and everything else operator by operator.

For tests, and for looking into a kernel: it takes thousands of times longer than a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from codegen.triton.binding import bind
from codegen.triton.device import REFERENCE, Device
from codegen.triton.export import generated
from codegen.triton.launching import interpreted, interprets
from codegen.triton.planning import KernelPlan, planned
from rewrite.errors import LoweringError
from rewrite.lowered import Fused
from rewrite.lowering import flat_module, record

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from codegen.triton.family import Family
    from codegen.triton.kernel import Kernel
    from rewrite.graph import Graph
    from rewrite.lowering import Executable


class Interpreted:
    """Runs the kernels that a device would run, in the interpreter.

    Args:
        device: whose kernels are planned.
        kinds: families to use; None for all that are registered.
        choose: which kernels of a plan run; by default the first candidate of each region.
        elementwise: only kernels in which NaN and infinities stay where the operators leave them.

    Attributes:
        plans: of what was compiled, in order.
        kernels: those that were bound.
    """

    name = "Triton's interpreter"
    freezes = True
    static = True
    arranges = False

    def __init__(
        self,
        device: Device = REFERENCE,
        kinds: Sequence[Family] | None = None,
        choose: Callable[[KernelPlan], Sequence[Kernel]] | None = None,
        elementwise: bool = False,
    ):
        self.device = device
        self.plans: list[KernelPlan] = []
        self.kernels: list[Kernel] = []
        self._kinds = kinds
        self._elementwise = elementwise
        self._choose = choose or (lambda plan: [each.candidates[0].emit() for each in plan.regions])

    def arrange(self, graph: Graph, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights as they are."""
        return weights

    def compile(self, graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Any], frozen: bool) -> Executable:
        """The graph with kernels.

        Raises:
            LoweringError: Triton compiles in this process.
        """
        if not interprets():
            raise LoweringError("set TRITON_INTERPRET=1 before triton is imported to run kernels in its interpreter")
        arguments = [] if frozen else list(weights)
        module = flat_module(graph, arguments, weights)
        examples = [*inputs, *(weights[name] for name in arguments)]
        record(module, examples)
        plan = planned(module.graph, self.device, self._kinds, self._elementwise)
        kernels = self._choose(plan)
        told = tuple(generated(kernel) for kernel in kernels)  # while the operators are there
        bind(module, kernels, interpreted, "CPU")
        self.plans.append(plan)
        self.kernels += kernels

        def run(inputs: Sequence[Any], weights: Sequence[Tensor]) -> Sequence[Any]:
            taken = () if frozen else weights
            return module(*inputs, *taken)  # type: ignore[no-any-return]

        return Fused(run, told)

    def rehearse(self, module: GraphModule) -> Callable[..., Sequence[Any]]:
        """The module's own code."""
        return module.forward

    def compile_traced(
        self, module: GraphModule, examples: Sequence[Any], options: Mapping[str, Any]
    ) -> Callable[..., Sequence[Any]]:
        """Refuse.

        Raises:
            LoweringError: always.
        """
        raise LoweringError("kernels are made for fixed sizes; optimize the model with an example instead")
