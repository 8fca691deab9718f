"""``bisect``: the first rewrite that makes a check fail."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rewrite.api.arguments import call_of, lowering_of, recipe_of, require_original
from rewrite.errors import BisectionError, InputError, PlanError, RewriteError, reason_of
from rewrite.events import emit
from rewrite.halving import first_bad
from rewrite.listener import Listener
from rewrite.printer import digest
from rewrite.result import OptimizedModule
from rewrite.rewriting import Rewriting
from rewrite.trace import bound, capture, check_model, unwrap
from rewrite.verify import compare_whole

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from rewrite.driver import Commit, StepRecord
    from rewrite.graph import Graph
    from rewrite.lowered import Lower
    from rewrite.numerics import Numerics
    from rewrite.pipeline import Step
    from rewrite.recipe import Recipe, Verify
    from rewrite.report import Report
    from rewrite.trace import Capture

    Judge = Callable[[Rewriting], tuple[bool, str]]


@dataclass(frozen=True)
class Trial:
    """One run of the check.

    Attributes:
        number: counts from 1.
        fuel: how many rewrites had been made.
        good: whether the check passed.
        reason: why it did not, as far as that is known.
        low, high: the largest number of rewrites that is known to pass and the smallest that is known to fail, after
            this run; None where none is known yet.
    """

    number: int
    fuel: int
    good: bool
    reason: str
    low: int | None
    high: int | None

    def __str__(self) -> str:
        text = f"run {self.number}: {'passes' if self.good else 'fails'} after {self.fuel} rewrites"
        if self.low is None or self.high is None:
            return text
        return f"{text}; {self.low} pass, {self.high} fail"


@dataclass(frozen=True, repr=False)
class Bisection:
    """The first rewrite that makes a check fail; ``print`` shows it.

    Attributes:
        commit: the rewrite. The check passes on the program right before it and fails right after it.
        total: how many rewrites the pipeline makes.
        trials: the runs of the check, in order.
        report: of the run that stops right after the rewrite.
    """

    commit: Commit
    total: int
    trials: tuple[Trial, ...]
    report: Report

    @property
    def runs(self) -> int:
        """How often the check ran."""
        return len(self.trials)

    @property
    def reason(self) -> str:
        """Why the check fails after the rewrite: what it raised, or where the model differs; '' for a plain no."""
        return next(trial.reason for trial in self.trials if trial.fuel == self.commit.number)

    def reproduce(self, path: str | os.PathLike[str] | None = None) -> str:
        """The rewrite as a script that needs torch alone, see :meth:`~rewrite.report.Report.reproduce`."""
        return self.report.reproduce(self.commit.number, path)

    @property
    def finding(self) -> str:
        """Which rewrite it is, why the check fails after it, and its diff, as text."""
        number, module = self.commit.number, self.commit.module
        hunk = next(hunk for hunk in self.report.diff() if hunk.number == number)
        place = " ".join(filter(None, (module and f"in {module}", self.commit.source and f"({self.commit.source})")))
        lines = [
            f"rewrite {number} of {self.total} makes the check fail: {self.commit.rule} {place}".rstrip(),
            *([f"because {self.reason}"] if self.reason else []),
            "", str(hunk), "",
            f"found in {self.runs} runs of the check",
        ]  # fmt: skip
        return "\n".join(lines)

    def __str__(self) -> str:
        number, rule, module = self.commit.number, self.commit.rule, self.commit.module
        without = f'exclude="{rule}"' + (f', or exclude="{module}" for the module alone' if module else "")
        lines = [
            self.finding,
            f"to go on without it: {without}",
            f'to look at it: .reproduce("rewrite_{number}.py") writes both sides as a script that needs torch alone;',
            f"  fuel={number - 1} stops right before it, fuel={number} right after it",
        ]  # fmt: skip
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def bisect(
    model: nn.Module,
    example_inputs: Any,
    check: Callable[[nn.Module], Any] | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    method: str | None = None,
    pipeline: Any = None,
    exclude: str | Iterable[str] = (),
    numerics: Numerics = "default",
    verify: Verify = "off",
    lower: Lower | None = "eager",
    progress: Callable[[Trial], None] | None = None,
) -> Bisection:
    """Find the first rewrite after which a check fails: one that makes results wrong, or the model slow.

    The model is captured once. For n rewrites the check runs at most ``log2(n)`` times, rounded up, and twice more for
    the two ends, each time on the program after the first k rewrites, which are made again and not searched. A check
    that comes and goes is fine too: it passes right before the rewrite that is found, and fails right after it.

    Args:
        model: a module in evaluation mode; it is not changed.
        example_inputs, example_kwargs, method, pipeline, exclude, numerics: as in :func:`optimize`.
        check: takes what :func:`optimize` would return after k rewrites, a module with the model's signature for the
            sizes of the example. It returns whether that is good, or raises AssertionError; one that returns None has
            asserted all it wanted to. Other exceptions end the bisection. It has to be deterministic: each program is
            checked once, and of a check that fails by chance the rewrite that is found says nothing. Default: the whole
            model is verified.
        verify: how each match is checked. With ``"off"`` rewrites are made, too, that verification rejects. Name the
            level that :func:`optimize` had to look at the rewrites that it made.
        lower: what the check runs on, as in :func:`optimize`; all but ``"eager"`` compile once for each run, and
            ``"fastest"`` may choose differently each time, so that the check is not deterministic.
        progress: told of each run of the check.

    Raises:
        BisectionError: the check fails on the captured program already, or passes after all rewrites, or there are
            none.
        InputError: an argument does not fit.
        CaptureError: the model cannot be captured as a functional graph.
        PipelineError: an unknown pass or option.
        RewriteError: two runs of the pipeline do not make the same rewrites.
    """
    require_original(model, "bisect")
    if check is not None and not callable(check):
        raise InputError(f"check={check!r} cannot be called; pass a function that takes the module and returns a bool")
    lowering_of(lower)
    model = bound(unwrap(model), method)
    recipe = recipe_of(model, pipeline, exclude, verify=verify, numerics=numerics)
    check_model(model, training=False)
    args, kwargs = call_of(example_inputs, example_kwargs)
    captured = capture(model, args, kwargs)

    def judge(rewriting: Rewriting) -> tuple[bool, str]:
        if check is not None:
            return _ask(check, _module(model, rewriting, lower, args, kwargs))
        verdict = compare_whole(captured.model, captured.graph, rewriting.graph, args, kwargs)
        return verdict.accepted, verdict.reason

    return _Bisector(captured, recipe, judge, progress).bisection()


def _ask(check: Callable[[nn.Module], Any], module: nn.Module) -> tuple[bool, str]:
    """Whether a module is good, and why not."""
    try:
        answer = check(module)
    except AssertionError as error:
        lines = str(error).strip().splitlines()
        return False, lines[0] if lines else "an assertion failed"
    return answer is None or _truth(answer), ""


def _truth(answer: Any) -> bool:
    """What a check says with its answer.

    Raises:
        InputError: it has none or several truth values, as a comparison of tensors has.
    """
    try:
        return bool(answer)
    except (RuntimeError, TypeError, ValueError) as error:
        kind = type(answer).__name__
        shape = f" of shape {list(answer.shape)}" if isinstance(answer, Tensor) else ""
        raise InputError(
            f"check returned a {kind}{shape}, which is neither true nor false; return one truth value, as torch.equal "
            "and torch.allclose do"
        ) from error


def _module(
    model: nn.Module, rewriting: Rewriting, lower: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> OptimizedModule:
    """What ``optimize`` returns, over a program that is there already."""
    programs = [rewriting.program(None)]

    def compile_program(*call: Any) -> Any:
        if not programs:
            raise InputError("a program of a bisection takes the sizes of its example only; bisect with an example of "
                             "the sizes that the check needs")  # fmt: skip
        return programs.pop()

    fast = OptimizedModule(model, compile_program, lowering_of(lower))
    fast.specialize(args, kwargs)
    return fast


class _Bisector:
    """The bisection of one captured model: one search for the plan, then replays of its beginning."""

    def __init__(self, captured: Capture, recipe: Recipe, judge: Judge, progress: Callable[[Trial], None] | None):
        self.captured, self.recipe, self.judge, self.progress = captured, recipe, judge, progress
        self.programs = _Programs()
        self.whole = Rewriting.of(captured, replace(recipe, listeners=(*recipe.listeners, self.programs)))
        self.total = len(self.whole.commits)
        self.trials: list[Trial] = []
        self.low: int | None = None
        self.high: int | None = None

    def bisection(self) -> Bisection:
        if self.total == 0:
            raise BisectionError("the pipeline makes no rewrite of this model, so there is none to be found")
        if self._is_good(self.total):
            raise BisectionError(f"check passes on all {self.total} rewrites, so there is none to be found; pass a "
                                 "check that fails on the optimized model")  # fmt: skip
        if not self._is_good(0):
            reason = f" ({self.trials[-1].reason})" if self.trials[-1].reason else ""
            raise BisectionError(f"check fails on the unrewritten program already{reason}, so no rewrite is to blame; "
                                 "pass a check that the model itself passes")  # fmt: skip
        number = first_bad(0, self.total, self._is_good)
        found = self._searched(number)
        return Bisection(found.commits[-1], self.total, tuple(self.trials), found.program(None).report)

    def _is_good(self, fuel: int) -> bool:
        good, reason = self.judge(self._replayed(fuel))
        self.low, self.high = (fuel, self.high) if good else (self.low, fuel)
        trial = Trial(len(self.trials) + 1, fuel, good, reason, self.low, self.high)
        self.trials.append(trial)
        emit("bisect", str(trial), fuel=fuel, good=good, reason=reason)
        if self.progress is not None:
            self.progress(trial)
        return good

    def _replayed(self, fuel: int) -> Rewriting:
        """The program after so many rewrites, which are verified already."""
        if fuel == self.total:
            return self.whole
        return self._run(replace(self.recipe, plan=self.whole.plan, fuel=fuel, verify="off"))

    def _searched(self, fuel: int) -> Rewriting:
        """The same as ``optimize(fuel=...)`` makes it, to be reported."""
        return self._run(replace(self.recipe, fuel=fuel))

    def _run(self, recipe: Recipe) -> Rewriting:
        assert recipe.fuel is not None
        try:
            rewriting = Rewriting.of(self.captured, replace(recipe, listeners=(self.programs,)))
        except PlanError as error:
            raise _unstable(reason_of(error)) from error
        if len(rewriting.commits) != recipe.fuel:
            raise _unstable(f"there are {len(rewriting.commits)} instead of {recipe.fuel}")
        return rewriting


class _Programs(Listener):
    """Compares the programs of several runs after the same number of rewrites.

    Not their results: to these belong copies that keep the strides of what is returned.
    """

    def __init__(self) -> None:
        self._digests: dict[int, str] = {}
        self._graph: Graph | None = None

    def step_started(self, step: Step, graph: Graph) -> None:
        self._graph = graph

    def committed(self, commit: Commit) -> None:
        if commit.number in self._digests:
            assert self._graph is not None
            self.know(commit.number, self._graph)

    def step_finished(self, record: StepRecord, graph: Graph) -> None:
        if record.commits:
            self.know(record.commits[-1].number, graph)

    def know(self, number: int, graph: Graph) -> None:
        """The program after so many rewrites.

        Raises:
            RewriteError: it was another one in an earlier run.
        """
        found = digest(graph)
        if self._digests.setdefault(number, found) != found:
            raise _unstable(f"the programs after {number} rewrites differ")


def _unstable(reason: str) -> RewriteError:
    return RewriteError(
        f"two runs of the pipeline do not make the same rewrites ({reason}), so there is no first one to be found; let "
        "every rule decide by the graph alone"
    )
