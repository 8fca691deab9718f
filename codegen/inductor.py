"""Lowering with TorchInductor, for certain sizes, without Dynamo.

The graph is flat and its sizes are known, so nothing is left for Dynamo to trace or guard: that saves most of a
millisecond at each call. With frozen weights Inductor packs them and chooses channels-last itself; where weights stay
arguments, the kernels of convolutions are laid out in channels-last beforehand.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codegen import native
from codegen.binding import bound
from codegen.packing import pack
from rewrite import compat
from rewrite.lowered import Fused
from rewrite.lowering import flat_module, run_eagerly, written_weights
from rewrite.ops import Convolution, view_as

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.fx import GraphModule

    from rewrite.graph import Graph
    from rewrite.lowered import Generated
    from rewrite.lowering import Executable
    from rewrite.target import Target

aten = torch.ops.aten

# Inductor keeps state of a compilation in globals.
_COMPILING = threading.RLock()


def available() -> bool:
    """Whether Inductor can compile here: a C++ compiler for the CPU, or an accelerator with Triton."""
    return compat.cpp_compiler() is not None or torch.accelerator.is_available()


class Inductor:
    """Compiles a graph for the sizes, strides, dtypes and device of an example.

    Args:
        target: measures where kernels of our own are faster than those that TorchInductor calls; None for its alone on
            a CPU, and on a GPU for ours where they are faster by far as predicted.
        elementwise: no kernels that let NaN and infinities reach results that they do not reach in the operators.
        cudagraphs: on a GPU, record the kernels of each program once and replay them: for small batches, where most of
            the time goes to launching them. Results are overwritten by the next call.
    """

    name = "TorchInductor"
    freezes = True
    static = True
    arranges = True

    def __init__(self, target: Target | None = None, elementwise: bool = False, cudagraphs: bool = False):
        self._target = target
        self._elementwise = elementwise
        self._options: dict[str, Any] = {"triton.cudagraphs": True} if cudagraphs else {}
        if target is not None:
            native.begin()

    def arrange(self, graph: Graph, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights with the kernels of convolutions in channels-last layout."""
        kernels = _kernels(graph)
        return {
            name: tensor.contiguous(memory_format=torch.channels_last) if name in kernels else tensor
            for name, tensor in weights.items()
        }

    def compile(self, graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Any], frozen: bool) -> Executable:
        """Compile for inputs like the example. Gradients pass through if grad mode is on and a tensor requires them.

        Raises:
            Exception: whatever Inductor raises.
        """
        graph = bound(graph)
        written = written_weights(graph)
        arguments = [name for name in weights if not frozen or name in written]
        taken = [i for i, name in enumerate(weights) if name in arguments]
        literals = {i: value for i, value in enumerate(inputs) if not isinstance(value, Tensor)}
        module = flat_module(graph, arguments, weights, literals)
        tensors = [i for i in range(len(inputs)) if i not in literals]
        examples = [_like(tensor) for tensor in (*(inputs[i] for i in tensors), *(weights[n] for n in arguments))]
        results = _results(module, examples)
        if frozen and torch.is_autocast_enabled("cpu"):
            with compat.without_autocast():  # the program was written for other dtypes than it has under it
                native.undo(module, examples)
                native.bind(module, examples, self._target, layers=False)
        elif frozen:
            native.bind(module, examples, self._target)
            native.join(module)
        kernels = self._kernels(module, examples)
        if not frozen:
            _restore_strides(module, results, _results(module, _recorded_layout(graph, arguments, examples)))
        computed = _keep_computed(module, results)
        if not computed:
            return run_eagerly(graph, tuple(weights))
        with compiling():
            compiled = compat.inductor_compile(module, examples, {"freezing": frozen, **self._options})

        def run(inputs: Sequence[Any], weights: Sequence[Tensor]) -> Sequence[Any]:
            found = compiled(*(inputs[i] for i in tensors), *(weights[i] for i in taken))
            outputs = list(results)
            for position, value in zip(computed, found, strict=True):
                outputs[position] = value
            return outputs

        return Fused(run, kernels) if kernels else run

    def _kernels(self, module: GraphModule, examples: Sequence[Any]) -> tuple[Generated, ...]:
        """Kernels of our own for regions of a program on a GPU; under autocast its dtypes are not those recorded."""
        if torch.is_autocast_enabled("cuda") or not any(example.is_cuda for example in examples):
            return ()
        from codegen.triton.fusing import fuse  # what it plans with takes a while to import, and is for GPUs alone

        return fuse(module, examples, self._target, self._elementwise)

    def rehearse(self, module: GraphModule) -> Callable[..., Sequence[Any]]:
        """The module with packed kernels in channels-last layout; what Inductor generates runs operator by operator."""
        pack(module, self._target)
        return module.forward

    def compile_traced(
        self, module: GraphModule, examples: Sequence[Any], options: Mapping[str, Any]
    ) -> Callable[..., Sequence[Any]]:
        """Compile with AOTAutograd and Inductor.

        Raises:
            Exception: whatever Inductor raises.
        """
        with compiling():
            return compat.inductor_compile_traced(module, examples, dict(options))


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Within, this thread compiles and no other does, without warnings about Inductor's own code."""
    with _COMPILING, warnings.catch_warnings():
        # Inductor's own modules use what torch has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        # transforms are calls of libraries in any case
        warnings.filterwarnings("ignore", "Torchinductor does not support code generation for complex operators")
        yield


def _kernels(graph: Graph) -> set[str]:
    """The names of weights that are kernels of two-dimensional convolutions and nothing else."""
    found: dict[str, bool] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            layers = [view_as(user, Convolution) for user in node.users]
            kernel = all(layer is not None and layer.weight is node and layer.dims == 2 for layer in layers)
            found[str(node.target)] = kernel and bool(layers) and found.get(str(node.target), True)
    return {name for name, kernel in found.items() if kernel}


def _like(tensor: Tensor) -> Tensor:
    """An example of its own object: Inductor takes two arguments that are one object for one argument."""
    return tensor.detach().requires_grad_(tensor.requires_grad and torch.is_grad_enabled())


def _recorded_layout(graph: Graph, order: Sequence[str], examples: Sequence[Tensor]) -> list[Tensor]:
    """The examples with kernels laid out as they were captured: what the strides of results follow."""
    kernels = _kernels(graph)
    recorded = {str(node.target): node.meta["val"].stride() for node in graph.nodes if node.op == "get_attr"}
    start = len(examples) - len(order)
    return [*examples[:start], *(
        torch.empty_strided(tensor.shape, recorded[name], dtype=tensor.dtype, device=tensor.device)
        if name in kernels else tensor
        for name, tensor in zip(order, examples[start:], strict=True)
    )]  # fmt: skip


def _results(module: GraphModule, examples: Sequence[Tensor]) -> list[Any]:
    """The outputs on fake tensors: numbers that the sizes decide, and strides."""
    with compat.FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        return list(module(*(mode.from_tensor(example, static_shapes=True) for example in examples)))


def _restore_strides(module: GraphModule, results: Sequence[Any], wanted: Sequence[Any]) -> None:
    """Make outputs contiguous that would be channels-last for the layout of the kernels alone."""
    output = module.graph.output_node()
    values = list(output.args[0])  # type: ignore[arg-type]
    with module.graph.inserting_before(output):
        for i, (found, want) in enumerate(zip(results, wanted, strict=True)):
            if isinstance(found, Tensor) and found.stride() != want.stride() and want.is_contiguous():
                values[i] = module.graph.call_function(
                    aten.clone.default, (values[i],), {"memory_format": torch.contiguous_format}
                )
    output.args = (tuple(values),)


def _keep_computed(module: GraphModule, results: list[Any]) -> list[int]:
    """Let the module return tensors that it computes only; their positions.

    Inductor takes no other outputs under freezing. ``results`` keeps the constants, and forgets the fake tensors.
    """
    output = module.graph.output_node()
    values: Any = output.args[0]
    computed = [i for i, found in enumerate(results) if isinstance(found, Tensor)]
    output.args = (tuple(values[i] for i in computed),)
    results[:] = [None if isinstance(found, Tensor) else found for found in results]
    module.recompile()
    return computed
