"""Translation validation of single matches: old fragment against new, before anything is spliced.

Both sides are evaluated on the same values and compared with the old side in float64. Random weights show what a rule
does in general; they are drawn once for equal fragments. The weights of the match itself show what it does here. After
Pnueli, Siegel and Singerman, Translation Validation, TACAS 1998: not the compiler is checked, but each of its runs.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from rewrite import compat
from rewrite.rule import Fidelity
from rewrite.verdict import Verdict
from rewrite.verify.draws import Draw, boundary_values
from rewrite.verify.facts import facts
from rewrite.verify.precision import full_precision
from rewrite.verify.sharing import noticeable
from rewrite.verify.sides import Outcome, Sides
from rewrite.verify.sizes import Batch, UndeterminedSizeError, batch_symbols, example_sizes, reach, shrinkages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch.fx import Node

    from rewrite.fragment import Fragment
    from rewrite.graph import Graph
    from rewrite.rule import Match
    from rewrite.verify.sizes import Shrinkage

Level = Literal["default", "thorough"]

_CACHED_BYTES = 1 << 28


class MatchVerifier:
    """Compares the two fragments of a match on drawn values; see :mod:`rewrite.verify` for what is drawn.

    One verifier serves one run of a driver: it remembers which fragments were equal, and values of constants.

    Args:
        level: ``"thorough"`` draws more, at the recorded sizes, and remembers no verdict.
    """

    def __init__(self, level: Level = "default"):
        self.level = level
        self._accepted: dict[Any, Verdict] = {}
        self._constants = _Constants()

    def verify(self, graph: Graph, match: Match, old: Fragment, new: Fragment) -> Verdict:
        """Whether ``new`` may replace ``old``. The graph is only read.

        Rejected are: a difference beyond rounding in any draw, another shape, dtype or device, non-finite values that
        ``old`` does not have, memory shared where a caller would notice, an exception of ``new`` alone, and whatever
        could not be drawn. Rules that are not exact are compared in shape and dtype only, and the note says so.
        """
        started = time.perf_counter()
        with torch.no_grad(), full_precision(node.meta.get("val") for node in old.inputs):
            try:
                verdict = self._verify(_Task(graph, match, old, new, self._constants, self.level))
            except UndeterminedSizeError as error:
                verdict = Verdict(False, f"nothing can be drawn for it: {error}")
        if verdict.accepted and match.rule.fidelity in (Fidelity.APPROXIMATE, Fidelity.STRUCTURAL):
            verdict = replace(verdict, note=f"the rule is {match.rule.fidelity.value}: values are not compared")
        return replace(verdict, seconds=time.perf_counter() - started)

    def _verify(self, task: _Task) -> Verdict:
        general, particular = task.draws()
        key = None if self.level == "thorough" or task.reads_values else task.key()
        if key in self._accepted:
            verdict = replace(self._accepted[key], draws=0)
        else:
            verdict = task.run(general) if general else Verdict(True)
            if verdict.accepted and key is not None:
                self._accepted[key] = verdict
        if not verdict.accepted or not particular:
            return verdict
        real = task.run(particular)
        notes = "; ".join(note for note in dict.fromkeys((verdict.note, real.note)) if note)
        return replace(real, draws=verdict.draws + real.draws, error=max(verdict.error, real.error), note=notes)


@dataclass
class _Constants:
    """Values of the constant nodes of a graph: those used last, up to a number of bytes."""

    graph: Graph | None = None
    values: OrderedDict[Node, Any] = field(default_factory=OrderedDict)
    size: int = 0

    def value(self, graph: Graph, node: Node) -> Any:
        """The value of a constant node of a graph."""
        if node.op == "get_attr":
            return graph.value(node)
        if graph is not self.graph:
            self.graph, self.size = graph, 0
            self.values.clear()
        if node not in self.values:
            self.values[node] = graph.value(node)
            self.size += _bytes(self.values[node])
        self.values.move_to_end(node)
        while self.size > _CACHED_BYTES and len(self.values) > 1:
            self.size -= _bytes(self.values.popitem(last=False)[1])
        return self.values[node]


def _bytes(value: Any) -> int:
    return sum(leaf.nbytes for leaf in compat.tree_flatten(value)[0] if isinstance(leaf, Tensor))


class _Task:
    """The verification of one match."""

    def __init__(self, graph: Graph, match: Match, old: Fragment, new: Fragment, constants: _Constants, level: Level):
        self.graph, self.match, self.old, self.new, self.level = graph, match, old, new, level
        self.reads_values = match.rule.reads_values or bool(new.constants)
        self.facts = facts(old, new)
        self.constant = {node: graph.is_constant(node) for node in self.facts}
        self.data = [node for node, constant in self.constant.items() if not constant]
        self._constants = constants
        self._symbols, self._example = batch_symbols(graph), example_sizes(graph)
        self._sides = Sides(match.rule.fidelity, old, new, [node.name for node in match.outputs], self.constant,
                            reach((old, new), self.data), match.rule.rounds_weights)  # fmt: skip

    def key(self) -> Any:
        """Equal for matches that random weights cannot tell apart: the same rule, programs and boundary."""
        order = {node: i for i, node in enumerate(self.facts)}
        places = tuple(order[node] for node in self.new.inputs)
        flags = tuple(self.constant.values())
        devices = tuple(str(getattr(node.meta["val"], "device", "")) for node in self.facts)
        rule = self.match.rule
        return type(rule), repr(rule), self.old.key(), self.new.key(), places, flags, devices

    # -- what is drawn ------------------------------------------------------------------------------------------------

    def draws(self) -> tuple[list[Draw], list[Draw]]:
        """The draws that tell the same for all equal fragments, and those of this match alone."""
        stacked = Draw(None, 1, real=True, stacked=True)
        if not self.data and self.reads_values:
            return [], [stacked]
        general = [
            Draw(torch.float64, 3, seed=1),
            Draw(torch.float64, 2, "channels_last", odd=False, seed=2),
            Draw(torch.float64, 1, "sliced", seed=3),
            Draw(None, 2, seed=4),
        ]
        if self._recorded_dtypes() == {torch.float32} and self._takes_other_dtypes():
            general.append(Draw(torch.bfloat16, 2, odd=False, seed=5))
        if self.level == "thorough":
            general += [replace(draw, seed=draw.seed + 10 * i, odd=not draw.odd) for i in (1, 2) for draw in general]
        if self.reads_values:
            general = [replace(draw, real=True) for draw in general]
        if self.new.constants and self.match.rule.fidelity is Fidelity.BITWISE:
            # what was rounded when it was folded is the same bits in its own dtype only
            general = [replace(draw, dtype=None) for draw in general]
        if not any(self.constant.values()) and not self.reads_values:
            # without weights the extreme inputs, too, tell the same for all equal fragments
            return [*general, stacked], []
        return general, [stacked]

    def _recorded_dtypes(self) -> set[torch.dtype]:
        leaves = compat.tree_flatten([node.meta["val"] for node in self.facts])[0]
        return {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()}

    def _takes_other_dtypes(self) -> bool:
        """Whether the old fragment means the same in another dtype, and the new one is not bound to one."""
        arguments = compat.tree_flatten([(node.args, node.kwargs) for node in self.old.calls()])[0]
        named = any(isinstance(leaf, torch.dtype) and leaf.is_floating_point for leaf in arguments)
        # an FFT has no 16-bit form
        return not named and not self.new.constants and self.match.rule.fidelity is not Fidelity.NORMWISE

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self, draws: Sequence[Draw]) -> Verdict:
        """The verdict on all draws; the first failure ends it."""
        done, error, notes, skipped = 0, 0.0, dict[str, None](), ""
        for draw in draws:
            outcome, note = self._draw(draw)
            done += outcome.compared
            error = max(error, outcome.error)
            notes.update({note: None} if note else {})
            skipped = skipped or outcome.skipped
            if outcome.failure:
                return Verdict(False, outcome.failure, done, error=error)
        if not done:
            return Verdict(False, f"the model's own operators do not run on drawn values: {skipped}")
        if skipped:
            notes[f"draws were left out on which the model's own operators do not run: {skipped}"] = None
        return Verdict(True, draws=done, error=error, note="; ".join(notes))

    def _draw(self, draw: Draw) -> tuple[Outcome, str]:
        """One draw, at a small size where that succeeds, else at the recorded one: only that can reject."""
        failed = ""
        for shrinkage in self._shrinkages(draw):
            outcome = self._at(draw, shrinkage)
            if outcome.compared and not outcome.failure:
                return outcome, f"holds at the recorded sizes only: {failed}" if failed else ""
            failed = failed or outcome.failure
        return outcome, ""

    def _shrinkages(self, draw: Draw) -> Iterator[Shrinkage | None]:
        if self.level == "default":
            yield from shrinkages((self.old, self.new), self.data, draw.odd, least=draw.real)
        yield None

    def _at(self, draw: Draw, shrinkage: Shrinkage | None) -> Outcome:
        batch = Batch(self._symbols, draw.batch, self._example)
        needed = {
            node: self._constants.value(self.graph, node) if draw.real or _keeps_values(node) else None
            for node, constant in self.constant.items()
            if constant
        }
        # where extreme inputs are finite nowhere (an exponential of them), normal ones tell more
        attempts = [draw, replace(draw, seed=draw.seed + 100)]
        attempts[1:1] = [replace(draw, stacked=False)] if draw.stacked else []
        for attempt in attempts:
            values = boundary_values(attempt, batch, shrinkage, self.facts, needed)
            outcome = self._sides.compare(values, double=draw.dtype == torch.float64)
            if outcome.gained and not outcome.failure:
                unlike = noticeable(self.graph, self.match, outcome.gained)
                outcome = replace(outcome, failure=unlike and f"{unlike}, and does not in the model")
            if outcome.failure or outcome.evidence:
                break
        else:
            outcome = replace(outcome, failure="every value is infinite or NaN on both sides, which shows nothing")
        return replace(outcome, failure=outcome.failure and f"{outcome.failure} ({attempt}{self._sizes(values)})")

    def _sizes(self, values: Mapping[Node, Any]) -> str:
        shapes = [str(list(value.shape)) for node in self.data if isinstance(value := values[node], Tensor)]
        return f", inputs {' '.join(shapes)}" if shapes else ""


def _keeps_values(node: Node) -> bool:
    """Whether a constant has its own values in every draw: positions, masks, containers."""
    recorded = node.meta["val"]
    return not isinstance(recorded, Tensor) or not (recorded.is_floating_point() or recorded.is_complex())
