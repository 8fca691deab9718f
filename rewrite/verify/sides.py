"""Both sides of a rewrite on the same values: evaluated in float64 and in the drawn dtypes, and compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import compat, evaluate
from rewrite.finite import all_finite
from rewrite.rule import Fidelity
from rewrite.verify.compare import Finding, close, equal, same_kind
from rewrite.verify.magnitude import environment, magnitudes
from rewrite.verify.rounding import Arithmetic, count
from rewrite.verify.sharing import shared

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from torch.fx import Node

    from rewrite.fragment import Fragment


@dataclass(frozen=True)
class Outcome:
    """What one draw showed.

    Attributes:
        compared: whether both sides were evaluated, or the new one alone failed.
        failure: why the new fragment is not equal; '' if it is.
        error: the largest error as a fraction of what is allowed.
        evidence: whether any finite value was compared in each output.
        skipped: why the old fragment could not be evaluated.
        gained: pairs of an output of new and what it shares memory with, where old does not.
    """

    compared: bool
    failure: str = ""
    error: float = 0.0
    evidence: bool = True
    skipped: str = ""
    gained: frozenset[tuple[int, Hashable]] = frozenset()


@dataclass
class Sides:
    """Two fragments over one boundary.

    Attributes:
        fidelity: what the rule promises.
        old, new: the fragments.
        names: of the outputs, for messages.
        constant: whether each boundary node is a constant of the graph.
        reach: distance from an edge that counts as border, for each spatial dimension.
        rounds_weights: as the rule declares.
    """

    fidelity: Fidelity
    old: Fragment
    new: Fragment
    names: Sequence[str]
    constant: Mapping[Node, bool]
    reach: Sequence[int]
    rounds_weights: bool = False

    def compare(self, values: Mapping[Node, Any], double: bool) -> Outcome:
        """Evaluate both sides on values of the boundary nodes and compare.

        With ``double`` in float64 throughout, whatever dtypes the fragments name; else in the dtypes of the values, as
        the rewritten program will run, and in float64 besides.
        """
        try:
            reference = environment(self.old, values) if self._bounded or double else {}
            olds = self._outputs(self.old, reference, values, double)
        except Exception as error:
            return Outcome(False, skipped=_message(error))
        try:
            exact = environment(self.new, values) if self._bounded or double else {}
            news = self._outputs(self.new, exact, values, double)
        except Exception as error:
            return Outcome(True, f"the replacement raises {_message(error)}")
        different = next(filter(None, map(same_kind, self.names, olds, news)), "")
        if different:
            return Outcome(True, different)
        gained = shared(news, values) - shared(olds, values)
        findings = self._bounds(values, olds, news, reference, exact) if self._bounded else self._equal(olds, news)
        failure = next((finding.failure for finding in findings if finding.failure), "")
        return Outcome(True, failure, max((f.error for f in findings), default=0.0), all(f.evidence for f in findings),
                       gained=gained)  # fmt: skip

    def _outputs(
        self, fragment: Fragment, env: Mapping[Node, Any], values: Mapping[Node, Any], double: bool
    ) -> tuple[Any, ...]:
        if double:
            return tuple(env[node] for node in fragment.outputs)
        return fragment.evaluate_folded(values, self.constant)

    @property
    def _bounded(self) -> bool:
        return self.fidelity in (Fidelity.ELEMENTWISE, Fidelity.NORMWISE)

    def _equal(self, olds: Sequence[Any], news: Sequence[Any]) -> list[Finding]:
        if self.fidelity is not Fidelity.BITWISE:
            return []
        pairs = zip(_leaves(self.names, olds), _leaves(self.names, news), strict=True)
        return [equal(name, old, new, self.reach) for (name, old), (_, new) in pairs]

    def _bounds(
        self,
        values: Mapping[Node, Any],
        olds: Sequence[Any],
        news: Sequence[Any],
        reference: Mapping[Node, Any],
        exact: Mapping[Node, Any],
    ) -> list[Finding]:
        """Compare in float64, where every wrong term shows, and as computed, where rounding and overflow show."""
        truths = [reference[node] for node in self.old.outputs]
        sharps = [exact[node] for node in self.new.outputs]
        if self._identical(truths, sharps, olds, news):
            return [Finding()]
        counts = count(self.old, reference) | count(self.new, exact)
        sides = (truths, sharps, olds, news, magnitudes(self.old, values, reference, self.fidelity))
        findings = []
        for leaves in zip(*(_leaves(self.names, side) for side in sides), strict=True):
            name, (truth, sharp, old, new, magnitude) = leaves[0][0], [leaf for _, leaf in leaves]
            if not (truth.is_floating_point() or truth.is_complex()):
                findings.append(equal(name, old, new, self.reach))
                continue
            floor = self._sharp_arithmetic().floor(magnitude, counts)
            # constants that new brings are as the model's own dtypes made them, rounding on purpose included
            own = old if self.new.constants else truth
            findings.append(close(name, self.fidelity, sharp, own, truth, floor, self.reach))
            if old.dtype != truth.dtype:
                floor = Arithmetic.of(old.dtype).floor(magnitude, counts)
                findings.append(close(name, self.fidelity, new, old, truth, floor, self.reach))
        return findings

    def _identical(
        self, truths: Sequence[Any], sharps: Sequence[Any], olds: Sequence[Any], news: Sequence[Any]
    ) -> bool:
        """Whether both sides are finite and the same bits, as where a constant is folded: its size does not matter."""
        owns = olds if self.new.constants else truths
        pairs = (*zip(_leaves(self.names, news), _leaves(self.names, olds), strict=True),
                 *zip(_leaves(self.names, sharps), _leaves(self.names, owns), strict=True))  # fmt: skip
        return bool(pairs) and all(_same(new, evaluate.lift(old) if new.dtype != old.dtype else old)
                                   for (_, new), (_, old) in pairs)  # fmt: skip

    def _sharp_arithmetic(self) -> Arithmetic:
        """That of float64; constants that the new fragment brings were rounded once to their own dtype.

        So are the weights of a rule that says so, in the dtypes that they are recorded with.
        """
        arithmetic, weights = Arithmetic.of(torch.float64), list(self.new.constants.values())
        if self.rounds_weights:
            boundary = [node.meta["val"] for node in self.old.inputs if self.constant[node]]
            weights += [value for value in boundary if isinstance(value, Tensor)]
        for value in weights:
            if value.is_floating_point() or value.is_complex():
                arithmetic = arithmetic.coarser(value.dtype)
        return arithmetic


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.numel() > 0 and torch.equal(a, b) and all_finite(a)


def _leaves(names: Sequence[str], outputs: Sequence[Any]) -> list[tuple[str, Tensor]]:
    """The tensors of outputs with their names; an operator with several results, such as a split, is one output."""
    found: list[tuple[str, Tensor]] = []
    for name, output in zip(names, outputs, strict=True):
        leaves = compat.tree_flatten(output)[0]
        texts = [name] if len(leaves) == 1 else [f"{name}[{i}]" for i in range(len(leaves))]
        found += [(text, leaf) for text, leaf in zip(texts, leaves, strict=True) if isinstance(leaf, Tensor)]
    return found


def _message(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else ''}"
