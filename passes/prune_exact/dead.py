"""Remove channels that are constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from passes.prune_exact import ends
from passes.prune_exact.ends import Reading
from passes.prune_exact.knowledge import Knowledge, constants, made_constants
from passes.prune_exact.maps import Added, Depthwise, Multiplied
from passes.prune_exact.rule import Judgement, RemoveChannels
from rewrite.ops import AveragePool, Cast, Convolution, Pad
from rewrite.provenance import called, function_name
from rewrite.rule import Fidelity, Refusal

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.prune_exact.flow import Flow
    from passes.prune_exact.steps import Step
    from rewrite.graph import Graph


@dataclass(frozen=True)
class RemoveDeadChannels(RemoveChannels):
    r"""Remove output channels that do not depend on the input, and put what they give into the bias of the next layers.

    .. math:: W_o = 0: \quad y_o = v = f(b_o), \quad
        b'_p = b_p + \sum_i W_{poi} v

    A channel is constant where all weights of the layer, or the scale of a norm behind it, are exactly zero. A layer
    that pads with zeros sees another constant than ``v`` at its border, so it takes only zeros. Where values are added
    the channel has to be constant in all of them. As in Gavrikov and Keuper, CNN Filter DB, CVPR 2022.

    Where the input is infinite or NaN, zero weights give NaN in the model, and nothing afterwards; no finite result
    changes.
    """

    fidelity = Fidelity.ELEMENTWISE
    reads_values = True
    starts = "a layer of whose channels some are constant"

    def starts_at(self, graph: Graph, node: Node) -> tuple[Node, int] | None:
        """A layer or a norm that makes constants."""
        made = made_constants(graph, node)
        return None if made is None else (node, made[0])

    def judge(self, flow: Flow) -> Judgement:
        """Classes that are constant wherever a layer reads them."""
        known = constants(flow)
        candidates, varying = _constant(flow, known) & flow.read, _varying(flow, known)
        blocked = candidates & (flow.pins.keys() | varying.keys())

        def reason(label: int) -> Refusal:
            return _lost(flow, known, label) or flow.pins.get(label) or varying[label]

        return Judgement(
            reason, lambda layer, kept: _absorbing(known, layer.input, kept), candidates - blocked, blocked
        )


def _absorbing(known: Knowledge, node: Node, kept: list[int]) -> Reading:
    """Constants other than zero go into the bias."""
    gone = torch.isfinite(known.constant[node]) & ~known.zero[node]
    gone[kept] = False
    return Reading(tuple(kept), constant=tuple(gone.nonzero()[:, 0].tolist()))


def _constant(flow: Flow, known: Knowledge) -> set[int]:
    """The classes of which some layer or operator makes a constant."""
    found: set[int] = set()
    for node in (*flow.sources, *flow.steps):
        for label, fixed in zip(flow.classes[node], torch.isfinite(known.constant[node]).tolist(), strict=True):
            if fixed:
                found.add(label)
    return found


def _varying(flow: Flow, known: Knowledge) -> dict[int, Refusal]:
    """The classes that a layer cannot do without, and why."""
    found: dict[int, Refusal] = {}
    for node, layer in flow.readers.items():
        constant = known.constant[layer.input]
        fixed = torch.isfinite(constant)
        free = fixed & (known.zero[layer.input] | (not ends.pads(layer))) | ends.unused(flow.graph, layer)
        for i, label in enumerate(flow.classes[layer.input]):
            if bool(free[i]) or label in found:
                continue
            if bool(fixed[i]) and isinstance(layer, Convolution) and layer.transposed:
                found[label] = Refusal(
                    f"a transposed convolution spreads the constant {float(constant[i]):.3g} unevenly", node,
                    "give the channel a bias for which it is zero",
                )  # fmt: skip
            elif bool(fixed[i]):
                found[label] = Refusal(
                    f"the convolution pads with zeros, where the channel is {float(constant[i]):.3g}", node,
                    "set padding=0, or give the channel a bias for which it is zero",
                )  # fmt: skip
            else:
                found[label] = Refusal(f"{called(node)} reads the channel before it is constant", node,
                                       f"let {called(node)} read what is constant")  # fmt: skip
    return found


def _lost(flow: Flow, known: Knowledge, label: int) -> Refusal | None:
    """The first operator that makes something varying of a channel that is constant."""
    fixed = {node: torch.isfinite(constant).tolist() for node, constant in known.constant.items()}
    for made in flow.steps.values():
        for operand, origin in zip(made.operands, made.origins(), strict=True):
            for i, channel in enumerate(origin.tolist()):
                if channel < 0 or flow.classes[made.node][i] != label or operand in flow.constants:
                    continue
                if fixed[operand][channel] and not fixed[made.node][i]:
                    return _reason(made)
    return None


def _reason(made: Step) -> Refusal:
    node, name = made.node, function_name(made.node)
    if isinstance(made, Depthwise):
        return Refusal("the depthwise convolution pads with zeros, where the channel is another constant", node,
                       f"set padding=0 in {called(node)}, or give the channel a bias for which it is zero")  # fmt: skip
    if isinstance(made, Added):
        return Refusal(f"{name} adds a channel that is not constant", node,
                       "make the same channels of all terms constant")  # fmt: skip
    if isinstance(made, Multiplied):
        return Refusal(f"{name} multiplies the constant by what depends on the input", node,
                       "give the channel a bias for which it is zero")  # fmt: skip
    if isinstance(made.view, AveragePool):
        return Refusal(f"{name} counts the zeros around the channel, which is another constant", node,
                       "set count_include_pad=False")  # fmt: skip
    if isinstance(made.view, Pad):
        return Refusal(f"{name} puts another constant around the channel", node,
                       "pad with mode='replicate', or give the channel a bias for which it is the same")  # fmt: skip
    if isinstance(made.view, Cast):
        return Refusal(f"{name} rounds the constant, which is folded without rounding", node,
                       "compute all layers in one dtype, or give the channel a bias for which it is zero")  # fmt: skip
    return Refusal(f"behind {name} the channel is not constant any more", node,
                   f"let the next layer read the channel without {called(node)}")  # fmt: skip
