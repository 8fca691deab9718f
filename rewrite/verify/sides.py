"""Both sides of a rewrite on the same values: evaluated in float64 and in the drawn dtypes, and compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rewrite import compat, evaluate
from rewrite.rule import Fidelity
from rewrite.verify.compare import Finding, close, equal, same_kind
from rewrite.verify.magnitude import Magnitudes, channel_max
from rewrite.verify.rounding import Arithmetic, count
from rewrite.verify.sharing import shared

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from torch.fx import Node

    from rewrite.fragment import Fragment

_NUDGE = 2.0**-26
"""The relative change of the inputs that shows how an unknown operator passes errors on."""


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
    """

    fidelity: Fidelity
    old: Fragment
    new: Fragment
    names: Sequence[str]
    constant: Mapping[Node, bool]
    reach: Sequence[int]

    def compare(self, values: Mapping[Node, Any], double: bool) -> Outcome:
        """Evaluate both sides on values of the boundary nodes and compare.

        With ``double`` in float64 throughout, whatever dtypes the fragments name; else in the dtypes of the values, as
        the rewritten program will run, and in float64 besides.
        """
        try:
            reference = _environment(self.old, values) if self._bounded or double else {}
            olds = self._outputs(self.old, reference, values, double)
        except Exception as error:
            return Outcome(False, skipped=_message(error))
        try:
            exact = _environment(self.new, values) if self._bounded or double else {}
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
        counts = count(self.old, reference) | count(self.new, exact)
        truths = [reference[node] for node in self.old.outputs]
        sharps = [exact[node] for node in self.new.outputs]
        sides = (truths, sharps, olds, news, self._magnitudes(values, reference))
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

    def _sharp_arithmetic(self) -> Arithmetic:
        """That of float64; constants that the new fragment brings were rounded once to their own dtype."""
        arithmetic = Arithmetic.of(torch.float64)
        for value in self.new.constants.values():
            if value.is_floating_point() or value.is_complex():
                arithmetic = arithmetic.coarser(value.dtype)
        return arithmetic

    def _magnitudes(self, values: Mapping[Node, Any], reference: Mapping[Node, Any]) -> list[Any]:
        """The magnitude of each output of the old fragment."""
        truths = [reference[node] for node in self.old.outputs]
        found = Magnitudes(self.old, reference, torch.float32)
        pairs = zip(_leaves(self.names, found.outputs), _leaves(self.names, truths), strict=True)
        if not all(_covers(magnitude, truth) for (_, magnitude), (_, truth) in pairs):
            found = Magnitudes(self.old, reference, torch.float64)
        if not found.guessed:
            return found.outputs
        nudged = _environment(self.old, {node: _nudge(value) for node, value in values.items()})
        return [
            compat.tree_map(_with_change, magnitude, truth, nudged[node])
            for node, truth, magnitude in zip(self.old.outputs, truths, found.outputs, strict=True)
        ]


def _leaves(names: Sequence[str], outputs: Sequence[Any]) -> list[tuple[str, Tensor]]:
    """The tensors of outputs with their names; an operator with several results, such as a split, is one output."""
    found: list[tuple[str, Tensor]] = []
    for name, output in zip(names, outputs, strict=True):
        leaves = compat.tree_flatten(output)[0]
        texts = [name] if len(leaves) == 1 else [f"{name}[{i}]" for i in range(len(leaves))]
        found += [(text, leaf) for text, leaf in zip(texts, leaves, strict=True) if isinstance(leaf, Tensor)]
    return found


def _with_change(magnitude: Any, truth: Any, nudged: Any) -> Any:
    """A magnitude raised by how far the value moved, over the relative change of the inputs."""
    if not isinstance(truth, Tensor) or not (truth.is_floating_point() or truth.is_complex()):
        return magnitude
    return magnitude + channel_max((nudged - truth).abs().nan_to_num(0.0, 0.0, 0.0)) / _NUDGE


def _environment(fragment: Fragment, values: Mapping[Node, Any]) -> dict[Node, Any]:
    """The float64 value of every node of a fragment."""
    env = {node: evaluate.lift(value) for node, value in fragment.environment(values).items()}
    evaluate.run(fragment.fx.nodes, env, double=True)
    return env


def _covers(magnitude: Tensor, truth: Tensor) -> bool:
    """Whether the magnitude is finite wherever the value is; float32 may have overflowed."""
    return bool((torch.isfinite(magnitude) | ~torch.isfinite(truth)).all())


def _nudge(value: Any) -> Any:
    """Double precision values changed by up and down alternating relative steps."""
    lifted = evaluate.lift(value)
    if not isinstance(lifted, Tensor) or not (lifted.is_floating_point() or lifted.is_complex()):
        return lifted
    sign = torch.ones(lifted.numel(), dtype=torch.float64, device=lifted.device)
    sign[::2] = -1
    return lifted * (1 + _NUDGE * sign.reshape(lifted.shape))


def _message(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300] if text else ''}"
