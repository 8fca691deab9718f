"""``torch.compile(model, backend="torch_rewrite")``: rewrites before AOTAutograd, then TorchInductor.

Each graph that Dynamo traces is rewritten as ``optimize`` rewrites a model: every match is checked, and the whole graph
against Dynamo's on the arguments of the call. Weights are run-time arguments: another instance of the class, a weight
that was replaced, written or stepped by an optimizer is noticed at the next call, and only the folded weights are
computed again. With gradients on nothing is folded, and what remains is differentiated.

A graph that no rewrite understands, or that fails anywhere, is compiled as Dynamo traced it, with the reason in the log
(``TORCH_LOGS="rewrite"``) and in :func:`reports`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

import passes
from rewrite import compat
from rewrite.api.arguments import freezing_rule, lowering_of, pipeline_of, step_exclusions
from rewrite.api.folding import unfolded_note
from rewrite.cost import count
from rewrite.dynamo import Declined, executable, lift, refold, verify
from rewrite.errors import InputError, VerificationError
from rewrite.events import emit, verdict_data
from rewrite.flops import Sizes
from rewrite.names import nearest
from rewrite.numerics import note as numerics_note
from rewrite.pipeline import ChoicePass, Pipeline, rules_of
from rewrite.provenance import entry, module_path
from rewrite.recipe import Recipe
from rewrite.report import Report
from rewrite.strides import note as strides_note
from rewrite.symbolic import costs
from rewrite.versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch.fx import GraphModule

    from rewrite.dynamo import Lifted
    from rewrite.graph import Graph
    from rewrite.listener import Listener
    from rewrite.lowering import Lowering
    from rewrite.numerics import Numerics
    from rewrite.recipe import Verify
    from rewrite.verdict import Verdict

__all__ = ["KEPT", "UNPROFITABLE_LIVE", "CompiledGraph", "Options", "refold", "reports", "torch_rewrite"]

UNPROFITABLE_LIVE = (
    "fold-batch-norm-after", "fold-behind-concatenation", "fold-batch-norm-before", "fold-layer-scale",
)  # fmt: skip
"""Rules that the default pipeline leaves out where gradients are on: Inductor fuses a norm or a scale into what stands
beside it, at no cost, where the algebra on the weights and its backward cost 15 % of a step of resnet18."""

KEPT = 256
"""So many graphs are remembered for :func:`reports`."""


@dataclass(frozen=True)
class CompiledGraph:
    """What became of one graph of Dynamo.

    Attributes:
        name: Dynamo's number of the graph, and where it begins: ``"graph 0/1 (resnet.py:600)"``.
        gradients: whether it was compiled for gradients, so that weights stay as they are.
        operators: how many operators it had.
        report: what was rewritten, or None for a graph that was left as it was.
        reason: why it was left as it was, or "".
    """

    name: str
    gradients: bool
    operators: int
    report: Report | None = None
    reason: str = ""

    def __str__(self) -> str:
        head = f"{self.name}: {self.operators} operators, {'with' if self.gradients else 'without'} gradients"
        return f"{head}\n{self.report}" if self.report is not None else f"{head}, not rewritten: {self.reason}"


_compiled: deque[CompiledGraph] = deque(maxlen=KEPT)


def reports() -> list[CompiledGraph]:
    """What became of the graphs that this process compiled, the newest last; at most :data:`KEPT`."""
    return list(_compiled)


@dataclass(frozen=True)
class Options:
    """What ``torch.compile(options={...})`` may hold; any other key is an option of Inductor.

    Attributes:
        pipeline, exclude, numerics, verify, lower, fuel, listeners: as for :func:`rewrite.optimize`. ``exclude`` takes
            names of passes and rules, and paths of modules as reports show them; ``lower`` is ``"inductor"`` or
            ``"eager"``. Steps that fold weights are left out where gradients are on; of the default pipeline, also the
            rules of :data:`UNPROFITABLE_LIVE`.
    """

    pipeline: Any = None
    exclude: str | Iterable[str] = ()
    numerics: Numerics = "default"
    verify: Verify = "default"
    lower: str | None = None
    fuel: int | None = None
    listeners: Sequence[Listener] = ()


def torch_rewrite(
    module: GraphModule, examples: Sequence[Any], *, mode: str | None = None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """The backend: compile one graph of Dynamo.

    Args:
        module: the graph.
        examples: its real arguments.
        mode: as in ``torch.compile``: ``"default"``, ``"reduce-overhead"``, ``"max-autotune"``, ...
        options: see :class:`Options`.

    Raises:
        InputError: an unknown option.
        PipelineError: an unknown pass.
    """
    own, rest = _split(dict(options or {}))
    patches = {**(compat.inductor_mode(mode) if mode else {}), **rest}
    job = _Job(module, examples, own, lowering_of(own.lower, traced=True), patches)
    try:
        lifted = lift(module, examples)
        return job.rewritten(lifted)
    except compat.dynamo_requests():
        raise
    except Declined as declined:
        return job.as_it_was(str(declined), logging.INFO)
    except Exception as error:  # whatever goes wrong here, the user's program runs
        return job.as_it_was(f"{type(error).__name__}: {error}", logging.WARNING)


class _Job:
    """The compilation of one graph."""

    def __init__(
        self,
        module: GraphModule,
        examples: Sequence[Any],
        options: Options,
        lowering: Lowering,
        patches: Mapping[str, Any],
    ):
        self.module, self.examples, self.options = module, examples, options
        self.lowering, self.patches = lowering, patches
        self.recipe = _recipe(options)
        self.name = _name(module)
        self.operators = sum(node.op.startswith("call_") for node in module.graph.nodes)

    def as_it_was(self, reason: str, level: int) -> Callable[..., Any]:
        """Compile Dynamo's own graph."""
        self._remember(torch.is_grad_enabled(), None, reason)
        emit("graph-declined", f"{self.name} is compiled as it is: {reason}", level, graph=self.name,
             operators=self.operators, reason=reason)  # fmt: skip
        return self.lowering.compile_traced(self.module, self.examples, self.patches)

    def rewritten(self, lifted: Lifted) -> Callable[..., Any]:
        """Rewrite, verify and compile.

        Raises:
            Declined: a rule that was applied does not hold for other weights.
            VerificationError: the graph as a whole is not equal to Dynamo's.
        """
        recipe = self._suited(lifted)
        _doubt_exclusions(self.options, recipe, lifted.graph)
        original, graph = lifted.graph.copy(), lifted.graph
        started = time.perf_counter()
        with compat.without_autocast():
            records = recipe.apply(graph)
        bound = recipe.value_rules(records)
        if bound:
            raise Declined(f"'{bound[0]}' holds for the present values of weights only")
        rewritten = time.perf_counter()
        verdict = None if recipe.verify == "off" else self._verify(lifted, original, graph)
        verified = time.perf_counter()
        run = executable(lifted, graph, self.examples, self.lowering, self.patches)
        matching = sum(record.verify_seconds for record in records)
        split = {
            "passes": rewritten - started - matching,
            "verification": matching + verified - rewritten,
            "lowering": time.perf_counter() - verified,
        }
        left = () if lifted.differentiate else unfolded_note(graph, recipe, records)
        report = Report(
            self.name, str(recipe.pipeline), records, count(original), count(graph), verdict, split,
            (*left, *numerics_note(recipe.forbidden), *strides_note(graph)), versions(), Sizes(original).per_sample,
            costs(original, graph),
        )  # fmt: skip
        self._remember(lifted.differentiate, report)
        commits = sum(len(record.commits) for record in records)
        emit("graph-compiled", f"{self.name}: {self.operators} operators, {commits} rewrites", graph=self.name,
             gradients=lifted.differentiate, operators=self.operators, commits=commits)  # fmt: skip
        return run

    def _suited(self, lifted: Lifted) -> Recipe:
        """The recipe without what folds weights, where they are trained; by default without what looks at them."""
        recipe = self.recipe
        if self.options.pipeline is not None:
            steps = tuple(step for step in recipe.pipeline if freezing_rule(step) is None)
            return replace(recipe, pipeline=Pipeline(steps)) if lifted.differentiate else recipe
        if lifted.differentiate:
            return replace(recipe, pipeline=passes.live_pipeline(), exclude=(*recipe.exclude, *UNPROFITABLE_LIVE))
        return recipe

    def _verify(self, lifted: Lifted, original: Graph, graph: Graph) -> Verdict:
        verdict = verify(self.module, self.examples, lifted, original, graph)
        text = "agrees with Dynamo's" if verdict.accepted else f"does NOT agree with Dynamo's: {verdict.reason}"
        emit("verified", f"{self.name}: the whole graph {text}", model=self.name, **verdict_data(verdict))
        if not verdict.accepted:
            raise VerificationError(f"the rewritten graph is not equal to Dynamo's: {verdict.reason}")
        return verdict

    def _remember(self, gradients: bool, report: Report | None, reason: str = "") -> None:
        _compiled.append(CompiledGraph(self.name, gradients, self.operators, report, reason))


def _name(module: GraphModule) -> str:
    found = (entry(node) for node in module.graph.nodes)
    place = next((f" ({line})" for line in found if line is not None), "")
    return f"graph {compat.graph_number()}{place}"


def _split(options: dict[str, Any]) -> tuple[Options, dict[str, Any]]:
    """The options that are ours, and those of Inductor."""
    names = {spec.name for spec in fields(Options)}
    own = {name: options.pop(name) for name in list(options) if name in names}
    if options.get("freezing"):
        raise InputError("options={'freezing': True} bakes weights in, which are run-time arguments here; "
                         "use rewrite.optimize, which bakes them in and notices when they change")  # fmt: skip
    known = compat.inductor_options() if options else ()
    for name in options:
        if name.replace("-", "_") not in known:
            raise InputError(f"options={{{name!r}: ...}} is no option{nearest(name, {*names, *known})}")
    return Options(**own), options


def _default() -> Pipeline:
    """The default pipeline without what looks at weights, for one graph serves every instance of a class, and without
    choices, for a graph may serve many sizes."""
    return Pipeline(tuple(
        step for step in passes.default_pipeline()
        if not isinstance(step, ChoicePass) and not any(rule.reads_values for rule in rules_of(step))
    ))  # fmt: skip


def _recipe(options: Options) -> Recipe:
    pipeline = pipeline_of(options.pipeline, _default())
    steps, others = step_exclusions(options.exclude, pipeline)
    return Recipe(pipeline, (*steps, *others), options.verify, options.fuel, tuple(options.listeners),
                  numerics=options.numerics)  # fmt: skip


def _doubt_exclusions(options: Options, recipe: Recipe, graph: Graph) -> None:
    """Warn of names that are no pass or rule and no module of a graph, which may be in another graph."""
    _, others = step_exclusions(options.exclude, recipe.pipeline)
    paths = {module_path(node) for node in graph.nodes}
    for name in others:
        if not any(path == name or path.startswith(f"{name}.") for path in paths):
            emit("unknown-exclusion", f"exclude={name!r} is no pass or rule, and no module of this graph",
                 logging.WARNING, name=name)  # fmt: skip
