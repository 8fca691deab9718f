"""``optimize`` and ``transform``: capture, rewrite, verify, and hand over a module.

This is the composition root: the one place that knows the framework, the passes and the code generators.
"""

from __future__ import annotations

import platform
import time
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

import codegen
import passes
from passes.fold_constants import FoldConstants
from rewrite import __version__
from rewrite.cost import count
from rewrite.driver import Driver, Listener
from rewrite.errors import InputError, PipelineError, VerificationError
from rewrite.lowering import written_weights
from rewrite.names import nearest
from rewrite.pipeline import Pass, Pipeline, Step, rules_of
from rewrite.report import Report
from rewrite.result import OptimizedModule, Program, TransformedModule
from rewrite.rule import Rule
from rewrite.trace import capture, check_model, isolated, replica, unwrap
from rewrite.verify import MatchVerifier, verify_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rewrite.driver import StepRecord
    from rewrite.graph import Graph
    from rewrite.lowering import Lowering
    from rewrite.trace import Capture
    from rewrite.verdict import Verdict

Verify = Literal["off", "default", "thorough"]


def optimize(
    model: nn.Module,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    pipeline: Any = None,
    exclude: str | Iterable[str] = (),
    verify: Verify = "default",
    lower: Literal["inductor", "eager"] | None = None,
    fuel: int | None = None,
    listeners: Sequence[Listener] = (),
) -> OptimizedModule:
    """Rewrite a model for inference; the result has been checked against the model itself.

    The model is not changed. The result reads the model's own weights and notices when they change: then the folded
    weights are computed again. Any batch size runs; another image size is captured when it is first seen.

    Args:
        model: a module in evaluation mode. A module that is optimized already is returned as it is.
        example_inputs: the argument, or a tuple of the positional arguments (a list is one argument). Without any
            example the first call captures.
        example_kwargs: keyword arguments of the example call.
        pipeline: passes to run: text such as ``"simplify, reparameterize{max_kernel=31}"``, a
            :class:`~rewrite.pipeline.Pipeline`, a rule or pass, or several. Default: every exact pass.
        exclude: names of passes and rules that do not run, and paths of modules that are left as they are.
        verify: ``"default"`` checks each match and the whole model; ``"thorough"`` draws more, at full sizes; ``"off"``
            checks nothing.
        lower: ``"inductor"`` compiles with TorchInductor, ``"eager"`` runs the operators one by one. Default: Inductor
            where a C++ compiler is found.
        fuel: at most so many rewrites, to find the one that makes a difference.
        listeners: hear every match, miss and rewrite as it happens.

    Returns:
        A module with the model's signature and ``state_dict``, and with ``report``, ``graph_module`` and ``refold()``.

    Raises:
        InputError: an argument does not fit; the message names the remedy.
        CaptureError: the model cannot be captured as a functional graph.
        PipelineError: an unknown pass or option.
        VerificationError: the rewritten model as a whole is not equal to the source.
    """
    if isinstance(model, OptimizedModule):
        return model
    compiler = _Compiler(model, _pipeline(pipeline, passes.default_pipeline()), exclude, verify, fuel, listeners)
    lowering = _lowering(lower)
    result = OptimizedModule(model, compiler.compile, lowering)
    if example_inputs is not None or example_kwargs is not None:
        result.specialize(*_call(example_inputs, example_kwargs))
    return result


def transform(
    model: nn.Module,
    example_inputs: Any,
    pipeline: Any = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    exclude: str | Iterable[str] = (),
    verify: Verify = "default",
    fuel: int | None = None,
    listeners: Sequence[Listener] = (),
) -> TransformedModule:
    """Rewrite a model and keep its parameters live: the result computes with the very same ``Parameter`` objects.

    An optimizer over the model's parameters trains the result, and the other way round. Nothing is folded: the algebra
    on weights stays in the graph and is differentiated. The model's mode is kept: in training mode batch norms use and
    update their statistics, and rules that need fixed statistics do not match.

    Args:
        model: a module in training or evaluation mode.
        example_inputs: a tensor, or a tuple of the positional arguments.
        pipeline: passes to run; default: the exact passes that keep weights live.
        example_kwargs, exclude, verify, fuel, listeners: as in :func:`optimize`.

    Raises:
        InputError, CaptureError, PipelineError, VerificationError: as in :func:`optimize`.
        PipelineError: also for a rule that holds for the present values of the weights only.
    """
    if isinstance(model, OptimizedModule):
        raise InputError("transform needs the model itself, not an optimized one; pass the module that was optimized")
    default = Pipeline(tuple(step for step in passes.default_pipeline() if not _freezing(step)))
    steps = _pipeline(pipeline, default)
    for step in steps:
        rule = _freezing(step)
        if rule is not None:
            raise PipelineError(
                f"'{rule.name}' holds for the present weights only, and transform keeps them trainable; leave it out, "
                "or use optimize"
            )
    compiler = _Compiler(model, steps, exclude, verify, fuel, listeners, training=True)
    return TransformedModule(model, compiler.compile(*_call(example_inputs, example_kwargs)))


class _Compiler:
    """Captures, rewrites and verifies one model for one example call; called again for every new static signature."""

    def __init__(
        self,
        model: nn.Module,
        pipeline: Pipeline,
        exclude: str | Iterable[str],
        verify: Verify,
        fuel: int | None,
        listeners: Sequence[Listener],
        training: bool = False,
    ):
        self.model = unwrap(model)
        check_model(self.model, training)
        if verify not in ("off", "default", "thorough"):
            raise InputError(f"verify={verify!r} is not one of 'off', 'default', 'thorough'")
        if fuel is not None and fuel < 0:
            raise InputError(f"fuel={fuel!r} is not a count; pass a whole number of rewrites, or None for no limit")
        self.pipeline = pipeline
        self.exclude = _exclusions(exclude, self.model, pipeline)
        self.verify = verify
        self.fuel = fuel
        self.listeners = listeners
        self.training = training

    def compile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
        """The verified program for this example call.

        Raises:
            VerificationError: the program as a whole is not equal to the model.
        """
        captured = capture(self.model, args, kwargs, training=self.training)
        original, graph = captured.graph.copy(), captured.graph
        started = time.perf_counter()
        verifier = None if self.verify == "off" else MatchVerifier(self.verify)
        driver = Driver(graph, verifier, self.listeners, self.fuel, self.exclude)
        records = driver.run(self.pipeline)
        graph.check()
        graph.prune()
        passes_seconds = time.perf_counter() - started
        verdict = None if self.verify == "off" else self._verify(captured, original, graph, args, kwargs)
        match_seconds = sum(record.verify_seconds for record in records)
        seconds = {
            "capture": captured.seconds,
            "passes": passes_seconds - match_seconds,
            "verification": match_seconds + (verdict.seconds if verdict else 0.0),
        }
        report = Report(
            type(captured.model).__name__, str(self.pipeline), records, count(original), count(graph), verdict,
            seconds, captured.notes, _versions(),
        )  # fmt: skip
        return Program(graph, report, _value_rules(self.pipeline, records), captured.one_row, seconds)

    def _verify(
        self, captured: Capture, original: Graph, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Verdict:
        # calls may write state (a step counter, running statistics): each side works on a copy of it
        program = graph.to_module({name: graph.weights[name].clone() for name in written_weights(graph)})
        folded = [tensor for name, tensor in graph.weights.items() if name not in original.weights]
        with isolated(captured.model), replica(captured.model) as source:
            verdict = verify_model(source, program, original, args, kwargs, weights=folded)
        if not verdict.accepted:
            raise VerificationError(
                f"the rewritten {type(captured.model).__name__} is not equal to the model, which is unchanged: "
                f"{verdict.reason}; find the rewrite with fuel=, or leave its rule out with exclude="
            )
        return verdict


def _pipeline(given: Any, default: Pipeline) -> Pipeline:
    if given is None:
        return default
    if isinstance(given, str):
        return passes.registry().parse(given)
    if isinstance(given, Pipeline):
        return given
    steps = (given,) if isinstance(given, (Pass, Rule)) else given
    try:
        steps = tuple(steps)
    except TypeError:
        raise PipelineError(f"{given!r} is not a pipeline; pass its text, a Pipeline, passes or rules") from None
    for step in steps:
        if not isinstance(step, (Pass, Rule)):
            hint = " (write its name with parentheses)" if isinstance(step, type) else ""
            raise PipelineError(f"{step!r} is neither a pass nor a rule{hint}; pass instances")
    return Pipeline(steps)


def _exclusions(given: str | Iterable[str], model: nn.Module, pipeline: Pipeline) -> tuple[str, ...]:
    """Names of steps, rules and module paths; a pass that runs as part of another stands for its rules."""
    names = (given,) if isinstance(given, str) else tuple(given)
    known = {name for step in pipeline for name in (step.name, *(rule.name for rule in rules_of(step)))}
    registered = passes.registry().steps
    known.update(registered)
    paths = {path: module for path, module in model.named_modules(remove_duplicate=False) if path}
    found: dict[str, None] = {}
    for name in names:
        if name not in known and name not in paths:
            raise InputError(
                f"exclude={name!r} is no pass, rule or module of this model{nearest(name, {*known, *paths})}"
            )
        found[name] = None
        if name in registered and all(step.name != name for step in pipeline):
            found.update((rule.name, None) for rule in rules_of(registered[name]()))
        # a module that is registered twice is captured under either path
        found.update((path, None) for path, module in paths.items() if module is paths.get(name))
    return tuple(found)


def _call(example_inputs: Any, example_kwargs: Mapping[str, Any] | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example as positional and keyword arguments; only a tuple is several arguments."""
    kwargs = dict(example_kwargs or {})
    if example_inputs is None:
        return (), kwargs
    return (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), kwargs


def _lowering(name: str | None) -> Lowering:
    if name is None:
        return codegen.default_lowering()
    found = codegen.LOWERINGS.get(name)
    if found is None:
        raise InputError(f"lower={name!r} is unknown{nearest(str(name), codegen.LOWERINGS)}")
    return found()


def _freezing(step: Step) -> Rule | None:
    """The first rule of a step whose result holds for the present values of the weights only."""
    return next((rule for rule in rules_of(step) if rule.reads_values or isinstance(rule, FoldConstants)), None)


def _value_rules(pipeline: Pipeline, records: Sequence[StepRecord]) -> tuple[str, ...]:
    fired = {commit.rule for record in records for commit in record.commits}
    rules = (rule for step in pipeline for rule in rules_of(step))
    return tuple(dict.fromkeys(rule.name for rule in rules if rule.reads_values and rule.name in fired))


def _versions() -> dict[str, str]:
    return {"torch-rewrite": __version__, "torch": torch.__version__, "python": platform.python_version()}
