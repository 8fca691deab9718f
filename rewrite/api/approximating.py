"""``approximate``: rewrites that change the function, within a budget that is measured."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import passes
from passes.select import Select
from rewrite import compat
from rewrite.api.arguments import exclusions_of, require_original
from rewrite.api.optimizing import optimize
from rewrite.approximation import ApproximatedModule, Approximation, Entry, Ledger
from rewrite.approximation.calibration import Batches, call_of
from rewrite.approximation.ledger import parameters
from rewrite.approximation.search import Goal, Search
from rewrite.errors import InputError, PipelineError
from rewrite.gain import total
from rewrite.graph import Graph, is_random
from rewrite.pipeline import Pipeline
from rewrite.progress import Progress
from rewrite.provenance import called
from rewrite.trace import unwrap
from rewrite.weights import WeightProgram

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rewrite.approximation.search import Candidate, Turn
    from rewrite.approximation.sites import Site


def approximate(
    model: nn.Module,
    batches: Iterable[Any],
    rules: str | Approximation | Sequence[str | Approximation],
    *,
    max_error: float | None = None,
    max_site_error: float | None = None,
    saving: float | None = None,
    inputs: Callable[[Any], Any] | None = None,
    exclude: str | Iterable[str] = (),
) -> ApproximatedModule:
    """Replace parts of a model by cheaper ones that compute nearly the same on your data.

    The model is rewritten exactly first, as :func:`optimize` does: norms folded, branches merged. Then each rule says
    what it would put at which site, fitted to the batches by least squares. Some batches are held out: on these the
    error of each site, and of the model's outputs by it, is measured. A knapsack over the sites spends the budget
    where it saves most time; the result is measured as a whole, and sites are taken back until the budget holds.

    Args:
        model: a module in evaluation mode; not changed, nor shared: the result has weights of its own.
        batches: calibration data, as inputs of the model: a tensor, a tuple of positional arguments, or a dict of
            keyword arguments each. Statistics are kept, not batches, so there may be many; they are read to the end.
            One in four is held out, at most two. Rules of whole regions, with others behind them, read the batches
            several times.
        rules: names with options, ``"inception{square=3}, low-rank"``, or instances; see ``passes.APPROXIMATIONS``.
        max_error: of the model's outputs on held-out data: the root of the sum of squares of the difference, over that
            of the outputs; of several outputs the largest.
        max_site_error: likewise of each replaced part's output.
        saving: instead of ``max_error``: the part of the model's time that is to be saved, by a nominal roofline,
            between 0 and 1, with the least error; as much as there is where that is less.
        inputs: takes the arguments out of a batch: ``lambda batch: batch[0]``.
        exclude: paths of modules that are left as they are.

    Returns:
        A module with the model's signature, with parameters to be trained, a ``ledger`` that prints, and ``undo()``.
        Train it with :func:`distill`, then :func:`optimize` it.

    Raises:
        InputError: an argument does not fit, or the data does not: none, empty or of another shape, NaN.
        PipelineError: an unknown rule or option, or one that is no approximation.
        CaptureError: the model cannot be captured.
    """
    require_original(model, "approximate")
    if compat.is_any_autocast():
        raise InputError("autocast is on, and errors are measured in the model's own dtypes; leave the context")
    model = unwrap(model)
    chosen = approximations_of(rules)
    _check_goal(max_error, max_site_error, saving)
    data = Batches(batches, inputs)
    with torch.inference_mode(False):
        return _approximated(model, data, chosen, (max_error, max_site_error, saving), exclude)


def _approximated(
    model: nn.Module,
    data: Batches,
    chosen: Sequence[Approximation],
    budget: tuple[float | None, float | None, float | None],
    exclude: str | Iterable[str],
) -> ApproximatedModule:
    max_error, max_site_error, saving = budget
    excluded = exclusions_of(exclude, model, Pipeline(()))
    args, kwargs = call_of(data.example)
    fast = optimize(model, args, kwargs, pipeline=_exact(), lower="eager", tune="off", exclude=excluded, cache=False)
    source = independent(*fast.program(), dict(model.named_parameters(remove_duplicate=False)))
    random = next((node for node in source.calls() if is_random(node)), None)
    if random is not None:
        raise InputError(f"{called(random)} draws random numbers, so that no two runs can be compared; approximate the "
                         "model without it")  # fmt: skip
    before = total(source)
    goal = Goal(
        math.inf if max_error is None else max_error,
        math.inf if max_site_error is None else max_site_error,
        None if saving is None else saving * before.seconds,
    )
    search = Search(source, data, goal, frozenset(excluded), Progress("Measuring sites"))
    search.run(chosen)
    return _result(type(model).__name__, chosen, source, search, data)


def approximations_of(given: Any) -> tuple[Approximation, ...]:
    """The rules that a user means.

    Raises:
        PipelineError: an unknown name or option, something that is no approximation, or nothing.
    """
    if isinstance(given, type) or not isinstance(given, (str, Approximation, Iterable)):
        raise PipelineError(
            f"rules={given!r} is no approximation; name some of {', '.join(_names())}, or pass instances"
        )
    parts = (given,) if isinstance(given, (str, Approximation)) else tuple(given)
    found: list[Approximation] = []
    for part in parts:
        steps = passes.approximations().parse(part).steps if isinstance(part, str) else (part,)
        for step in steps:
            if not isinstance(step, Approximation):
                raise PipelineError(f"{step!r} is no approximation; name some of {', '.join(_names())}")
            found.append(step)
    if not found:
        raise PipelineError(f"no approximation is named; name some of {', '.join(_names())}")
    return tuple(found)


def _names() -> list[str]:
    return sorted(passes.approximations().steps)


def _check_goal(max_error: Any, max_site_error: Any, saving: Any) -> None:
    """Check that there is a budget, and that it is one.

    Raises:
        InputError: there is none, there are two, or one is no positive number.
    """
    for name, number in (("max_error", max_error), ("max_site_error", max_site_error), ("saving", saving)):
        if number is None:
            continue
        if isinstance(number, bool) or not _is_number(number) or not number > 0:
            raise InputError(f"{name}={number!r} is no budget; pass a number above 0")
    if saving is not None and saving >= 1:
        raise InputError(f"saving={saving!r} is not below 1; pass the part of the time that is to be saved")
    if saving is not None and max_error is not None:
        raise InputError("max_error= and saving= are given, and each decides how much is done; leave out one")
    if saving is None and max_error is None and max_site_error is None:
        raise InputError("there is no budget; pass max_error=, max_site_error= or saving=")


def _is_number(given: Any) -> bool:
    return isinstance(given, numbers.Real)  # those of NumPy too


def _exact() -> Pipeline:
    """The default pipeline without choices of algorithms, which hide what is approximated."""
    return Pipeline(tuple(step for step in passes.default_pipeline() if not isinstance(step, Select)))


def independent(graph: Graph, weights: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> Graph:
    """The graph with weights of its own, which are not refolded any more.

    Args:
        graph: not changed.
        weights: their values.
        parameters: those of the model, by all their names; what was folded from one is a parameter too.
    """
    twin = graph.copy()
    read = {str(node.target): node for node in twin.nodes if node.op == "get_attr"}
    written = {mutation.target for mutation in graph.signature.mutations if mutation.kind == "weight"}
    found: dict[str, Tensor] = {}
    for name in sorted(read.keys() | written):
        value = weights[name].detach().clone()
        names = graph.program.origins(read[name]) if name in read else {name}
        origins = [parameters[each] for each in names if each in parameters]
        trained = bool(origins) and value.is_floating_point()
        found[name] = nn.Parameter(value, any(each.requires_grad for each in origins)) if trained else value
    return Graph(twin.fx, found, graph.signature, graph.fake_mode, WeightProgram())


def _result(
    name: str, rules: Sequence[Approximation], source: Graph, search: Search, data: Batches
) -> ApproximatedModule:
    entries = [_entry(turn, candidate) for turn in search.turns for candidate in _told(turn)]
    told = {(entry.site, entry.rule) for entry in entries}
    left = [_left(turn, site, search.goal) for turn in search.turns for site in turn.sites
            if (site.name, site.rule.name) not in told]  # fmt: skip
    order = {node.name: i for i, node in enumerate(source.nodes)}
    ordered = sorted([*entries, *left], key=lambda entry: order.get(entry.site, len(order)))
    student = ApproximatedModule(source, search.taken)
    student.ledger = Ledger(
        model_name=name,
        rules=str(Pipeline(tuple(rules))),
        entries=tuple(ordered),
        refused=tuple(text for turn in search.turns for text in turn.refused),
        drift=search.turns[-1].drift,
        before=total(source),
        after=total(student.graph),
        parameters=(parameters(source), parameters(student.graph)),
        fitted=data.fitted,
        held_out=len(data.held_out),
        seconds=search.seconds,
    )
    return student


def _told(turn: Turn) -> list[Candidate]:
    return [*turn.chosen, *turn.dropped]


def _entry(turn: Turn, each: Candidate) -> Entry:
    taken = each in turn.chosen
    site, priced = each.site, each.priced
    return Entry(
        site.name, site.rule.name, site.module, site.source, priced.option.text, "taken" if taken else "rolled back",
        each.predicted, each.measured, each.reach * each.predicted, each.drift, turn.so_far.get(each), priced.before,
        priced.after, "" if taken else "over the budget once it was measured",
    )  # fmt: skip


def _left(turn: Turn, site: Site, goal: Goal) -> Entry:
    """The entry of a site where nothing was chosen: its option that was measured, if it has any."""
    mine = [each for each in turn.candidates if each.site is site]
    if not mine:
        reason = site.reason or "every option is over the budget of a site"
        where = site.name, site.rule.name, site.module, site.source
        return Entry(*where, "", "left", 0.0, None, 0.0, None, None, site.before, site.before, reason)
    each = next((each for each in mine if each.measured is not None), mine[0])
    return Entry(
        site.name, site.rule.name, site.module, site.source, each.priced.option.text, "left", each.predicted,
        each.measured, each.reach * each.predicted, each.drift, None, each.priced.before, each.priced.after,
        _reason(turn, mine, goal),
    )  # fmt: skip


def _reason(turn: Turn, mine: Sequence[Candidate], goal: Goal) -> str:
    """Why none of the options of a site was chosen."""
    places = range(mine[0].site.first, mine[0].site.last + 1)
    if any(each.site.first in places or mine[0].site.first in range(each.site.first, each.site.last + 1)
           for each in turn.chosen):  # fmt: skip
        return "another approximation of these operators saves more"
    if min(each.expected for each in mine) > goal.max_error:
        return "it is over the budget alone"
    return "it is not needed for the saving" if goal.saved is not None else "others save more within the budget"
