"""``filters``: how good the filters of a convolutional network are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rewrite.alone import alone
from rewrite.api.arguments import call_of, exclusions_of, pipeline_of, require_original
from rewrite.errors import InputError
from rewrite.filter_quality import FilterQuality, filter_quality
from rewrite.ops import Convolution, view_as
from rewrite.provenance import module_path
from rewrite.recipe import Recipe, Verify
from rewrite.report import FilterReport
from rewrite.trace import bound, capture, class_of, isolated, replica, unwrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rewrite.graph import Graph

_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FORWARDS = {kind.forward for kind in _KINDS}
_EXAMPLE = "pass example_inputs, so that what forward computes is seen"


def filters(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    method: str | None = None,
    pipeline: Any = None,
    exclude: str | Iterable[str] = (),
    verify: Verify = "default",
) -> FilterReport:
    """Measure the filters of a convolutional network: sparsity, variety, likeness to noise, orthogonality.

    The measures of Gavrikov and Keuper, CNN Filter DB, CVPR 2022, of every convolution, 1x1 ones included, whose
    filters of one tap have no entropy. Linear layers, and convolutions by transforms, are left out. The model is not
    changed, and nothing is compiled.

    Without an example the kernels of the convolution modules are read. With one the model is captured, so that kernels
    which are computed, or not in such a module, are seen too, and only what the call uses; and they are measured once
    more after the exact rewrites: a batch norm that is folded into a kernel scales its filters, and with them what is
    near zero beside the largest one.

    Args:
        model: a module; in evaluation mode where there is an example.
        example_inputs: the argument, or a tuple of the positional arguments (a list is one argument).
        example_kwargs: keyword arguments of the example call.
        method: the method to look at instead of ``forward``.
        pipeline: passes to run, as in :func:`optimize`; default: the default pipeline.
        exclude: names of passes and rules that do not run, and paths of modules that are left as they are.
        verify: how much each rewrite is checked; ``"off"`` is quicker and takes every rule at its word.

    Returns:
        A table by ``print``, data by ``to_dict()``; ``before`` and ``after`` are the layers with their measures, the
        worst first. See :class:`rewrite.filter_quality.FilterQuality`.

    Raises:
        InputError: an argument does not fit, there is no convolution, or a kernel has no finite values.
        CaptureError: the model cannot be captured as a functional graph.
        PipelineError: an unknown pass or option.
    """
    require_original(model, "filters")
    model = unwrap(model)
    if example_inputs is None and not example_kwargs:
        _require_no_call(method=method, pipeline=pipeline, exclude=exclude or None,
                         verify=None if verify == "default" else verify)  # fmt: skip
        return _of_modules(model)
    model = bound(model, method)
    steps = pipeline_of(pipeline)
    recipe = Recipe(steps, exclusions_of(exclude, model, steps), verify)
    captured = capture(model, *call_of(example_inputs, example_kwargs))
    name, graph = class_of(captured.model).__name__, captured.graph
    computed: list[str] = []
    kernels = list(_in_graph(graph, computed))
    before = _measured(name, kernels, "this call of it runs none with a kernel of its own")
    with alone:
        recipe.apply(graph)
        graph.eliminate_dead()
    after = _sorted(_quality(_renamed(kernel, kernels)) for kernel in _in_graph(graph, []))
    notes = captured.notes
    if computed:
        some = ", ".join(computed[:3]) + (", ..." if len(computed) > 3 else "")
        notes += (f"kernels that a call computes from its inputs have no values to measure: {some}",)
    return FilterReport(name, before, after, str(steps), notes)


# -- what is measured --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Kernel:
    """The kernel of a layer.

    Attributes:
        name: of the layer.
        weight: its values.
        groups: of channels.
        transposed: whether it is of a transposed convolution.
        sources: the names of the model's tensors that it is computed from, where that is known.
    """

    name: str
    weight: Tensor
    groups: int
    transposed: bool
    sources: frozenset[str] = frozenset()


def _require_no_call(**given: Any) -> None:
    """Check that nothing is given that only means something with an example call.

    Raises:
        InputError: something is.
    """
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name}={value!r} needs an example call; pass example_inputs too, or leave it out")


def _of_modules(model: nn.Module) -> FilterReport:
    name = class_of(model).__name__
    notes: list[str] = []
    with isolated(model), torch.no_grad():
        layers = _measured(name, _in_modules(model, notes), f"it has no module of torch.nn for one; {_EXAMPLE}")
    return FilterReport(name, layers, notes=tuple(notes))


def _in_modules(model: nn.Module, notes: list[str]) -> Iterator[_Kernel]:
    """The kernels of convolution modules, shared ones once; adds to the notes where another one may be used."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, _KINDS):
            continue
        own, weight = module._parameters.get("weight"), None
        if own is not None and id(own) in seen:
            continue
        seen.add(id(own))
        if parametrize.is_parametrized(module, "weight"):
            with replica(module) as twin:  # computing it may change buffers
                weight = twin.weight
        elif own is None or type(module).forward not in _FORWARDS:
            what = f"'{path}' ({type(module).__name__})" if path else type(module).__name__
            notes.append(f"{what} may compute another kernel from its weight, which is measured as it is; {_EXAMPLE}")
        weight = getattr(module, "weight", None) if weight is None else weight
        if isinstance(weight, Tensor):
            yield _Kernel(path, weight, module.groups, module.transposed)


def _in_graph(graph: Graph, computed: list[str]) -> Iterator[_Kernel]:
    """The kernels of a graph's convolutions, shared ones once; adds the names of those that have no fixed value."""
    seen = set()
    for node in graph.calls():
        conv = view_as(node, Convolution)
        if conv is None or graph.is_constant(node):
            continue
        if not graph.is_constant(conv.weight):
            computed.append(module_path(node) or node.name)
            continue
        target = str(conv.weight.target) if conv.weight.op == "get_attr" else conv.weight.name
        if target not in seen:
            seen.add(target)
            own = conv.weight.op == "get_attr" and target not in graph.program.results
            name = target.removesuffix(".weight") if own else module_path(node) or node.name
            yield _Kernel(
                name, graph.value(conv.weight), conv.groups, conv.transposed, graph.program.origins(conv.weight)
            )


def _renamed(kernel: _Kernel, before: Iterable[_Kernel]) -> _Kernel:
    """A kernel under the name that it had before rewrites, a merged one under that of the largest."""
    parts = [other for other in before if other.sources and other.sources <= kernel.sources]
    if not parts:
        return kernel
    return replace(kernel, name=max(parts, key=lambda other: other.weight.numel()).name)


def _measured(model_name: str, kernels: Iterable[_Kernel], otherwise: str) -> tuple[FilterQuality, ...]:
    """The layers of a network, the worst first.

    Raises:
        InputError: there are none, or a kernel has no finite values.
    """
    found = _sorted(map(_quality, kernels))
    if not found:
        raise InputError(f"{model_name} has no convolution: {otherwise}")
    return found


def _sorted(layers: Iterable[FilterQuality]) -> tuple[FilterQuality, ...]:
    return tuple(sorted(layers, key=lambda layer: layer.badness, reverse=True))


def _quality(kernel: _Kernel) -> FilterQuality:
    name, weight = kernel.name, kernel.weight
    if nn.parameter.is_lazy(weight):
        raise InputError(f"'{name}' is not initialized; call the model once on an example input first")
    if weight.device.type == "meta":
        raise InputError(f"'{name}' is on the meta device and has no values; load the weights first")
    if not weight.numel():
        raise InputError(f"'{name}' has a kernel of shape {tuple(weight.shape)}, without values; give it channels")
    bad = weight.numel() - int(weight.isfinite().sum())
    if bad:
        raise InputError(f"'{name}' has {bad} of {weight.numel()} weights that are infinite or NaN; load finite ones")
    return filter_quality(name, weight, kernel.groups, kernel.transposed)
