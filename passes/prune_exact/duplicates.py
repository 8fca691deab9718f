"""Merge channels that are multiples of each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.affine import channel_axis
from passes.prune_exact.alike import Alike, collinear
from passes.prune_exact.ends import Reading, dense, legible, row_values, unused
from passes.prune_exact.knowledge import Knowledge, made_constants, multiples
from passes.prune_exact.maps import Depthwise, Norm
from passes.prune_exact.rule import Judgement, RemoveChannels
from passes.prune_exact.steps import Passes, Pointwise
from passes.prune_exact.weights import Weights
from rewrite.provenance import called, function_name
from rewrite.rule import Fidelity, Refusal

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.prune_exact.flow import Flow
    from passes.prune_exact.steps import Step
    from rewrite.graph import Graph


@dataclass(frozen=True)
class MergeDuplicateChannels(RemoveChannels):
    r"""Merge output channels that are multiples of each other into one, and add up the weights of those that read them.

    .. math:: y_o = a\,y_p: \quad W'_{qp} = W_{qp} + a W_{qo}

    Two channels of a layer are multiples where weights and bias are, :math:`W_o = a W_p` and :math:`b_o = a b_p`.
    Any activation keeps equal channels equal; a rectifier keeps multiples by a positive factor, an operator that is
    linear any multiples. Channels that are constants other than zero are multiples of each other, so of several such
    channels before a padded convolution one is left. Ratios have to agree to the last digit of float64: for weights of
    at most 32 bits this is equality in real arithmetic. As in Gavrikov and Keuper, CNN Filter DB, CVPR 2022.

    Where a channel is infinite the merged weight may give another infinity or NaN; where the model's result is finite
    it stays what it is, unless the sum of two weights overflows, which is found when the rewrite is verified.
    """

    fidelity = Fidelity.ELEMENTWISE
    reads_values = True
    starts = "a layer of whose channels some are multiples of others"

    def starts_at(self, graph: Graph, node: Node) -> tuple[Node, int] | None:
        """A layer with rows that are multiples, or what makes several constants."""
        layer = dense(node)
        if layer is not None and legible(graph, layer):
            rows = row_values(Weights(graph), layer)
            return (node, channel_axis(layer)) if _multiples(collinear([0] * len(rows), rows)) else None
        made = made_constants(graph, node)
        return (node, made[0]) if made is not None and len(made[1]) > 1 else None

    def judge(self, flow: Flow) -> Judgement:
        """Classes that have, at every layer that reads them, a multiple that stays."""
        known, places = multiples(flow), _places(flow)
        alike = known.alike
        made = {flow.classes[node][i] for node in flow.sources for i in _multiples(alike[node])}
        read = {flow.classes[node][i] for node in _inputs(flow) for i in _multiples(alike[node])}
        # constants are multiples by chance
        fixed = {
            flow.classes[node][int(i)]
            for node in flow.sources
            for i in torch.isfinite(known.constant[node]).nonzero()[:, 0]
        }
        wanted: set[int] = set()
        blocked: set[int] = set()
        needed: set[int] = set()
        for label in sorted((made | read) & flow.read):
            roots = _roots(flow, alike, places.get(label, []))
            if roots is None or label in flow.pins:
                blocked.add(label)
            elif label not in needed | roots and not roots & wanted:
                wanted.add(label)
                needed |= roots

        def reason(label: int) -> Refusal:
            return _lost(flow, alike, label) or flow.pins.get(label) or _elsewhere(flow, alike, places[label])

        blocked = (blocked & made) - fixed
        return Judgement(reason, lambda layer, kept: _merging(known, layer.input, kept), wanted, blocked)


def _merging(known: Knowledge, node: Node, kept: list[int]) -> Reading:
    """The weights of each channel that goes are added to those of its root; one without a root has weights of zero."""
    alike, left = known.alike[node], set(kept)
    constant = torch.isfinite(known.constant[node])
    pairs = [(i, root) for i, root in enumerate(alike.root.tolist()) if i not in left and root in left]
    equal = [pair for pair in pairs if alike.factor[pair[0]] == 1]
    others = [pair for pair in pairs if alike.factor[pair[0]] != 1]
    return Reading(
        tuple(kept),
        equal=tuple(equal),
        multiple=tuple(pair for pair in others if not constant[pair[0]]),
        proportional=tuple(pair for pair in others if constant[pair[0]]),
    )


def _places(flow: Flow) -> dict[int, list[tuple[Node, int]]]:
    """For each class where layers read it: the layer, and the channel of its input, unless the weights are zero."""
    found: dict[int, list[tuple[Node, int]]] = {}
    for node, layer in flow.readers.items():
        zero = unused(flow.graph, layer).tolist()
        for i, label in enumerate(flow.classes[layer.input]):
            if not zero[i]:
                found.setdefault(label, []).append((node, i))
    return found


def _multiples(known: Alike) -> list[int]:
    """The channels that are multiples of another."""
    return (known.root != torch.arange(len(known.root))).nonzero()[:, 0].tolist()


def _inputs(flow: Flow) -> list[Node]:
    return [layer.input for layer in flow.readers.values()]


def _roots(flow: Flow, known: dict[Node, Alike], places: list[tuple[Node, int]]) -> set[int] | None:
    """The classes of the roots at all places; None where the channel is a multiple of no other at one of them."""
    found: set[int] = set()
    for reader, i in places:
        source = flow.readers[reader].input
        root = int(known[source].root[i])
        if root == i:
            return None
        found.add(flow.classes[source][root])
    return found


def _lost(flow: Flow, known: dict[Node, Alike], label: int) -> Refusal | None:
    """The first operator behind which a channel is a multiple of no other any more; None where it is the root."""
    for made in flow.steps.values():
        for operand, origin in zip(made.operands, made.origins(), strict=True):
            before, after = known[operand].root, known[made.node].root
            for i, channel in enumerate(origin.tolist()):
                here = channel >= 0 and flow.classes[made.node][i] == label
                if here and before[channel] != channel and after[i] == i:
                    return _reason(made)
    return None


def _elsewhere(flow: Flow, known: dict[Node, Alike], places: list[tuple[Node, int]]) -> Refusal:
    """The first layer that reads a channel where it is a multiple of no other."""
    reader = next(reader for reader, i in places if known[flow.readers[reader].input].root[i] == i)
    return Refusal(f"{called(reader)} reads the channel where it is no multiple of another", reader,
                   f"let {called(reader)} read what is a multiple")  # fmt: skip


def _reason(made: Step) -> Refusal:
    node, name = made.node, function_name(made.node)
    if isinstance(made, Pointwise):
        change = "multiples by a positive factor before" if made.passes is Passes.POSITIVE else "a rectifier instead of"
        return Refusal(f"behind {name} multiples of a channel are no multiples any more", node,
                       f"use {change} {called(node)}, or channels that are equal")  # fmt: skip
    if isinstance(made, (Norm, Depthwise)):
        return Refusal(f"the parameters of {name} are not those of a multiple", node,
                       f"give both channels the same parameters in {called(node)}")  # fmt: skip
    return Refusal(f"behind {name} multiples of a channel are no multiples any more", node,
                   f"let the next layer read the channels without {called(node)}")  # fmt: skip
