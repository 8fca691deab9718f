"""Random whole networks: layers, sums, concatenations, pools, views; values and modules are used again.

    @given(networks())
    def test_my_pipeline(network):
        assert_rule(MyPass(), network.module(), network.inputs())

A network is a value that prints as the code that makes it, and a failing one shrinks to few steps.

- :mod:`rewrite.testing.networks.steps`: the operators.
- :mod:`rewrite.testing.networks.network`: a network as a value, and its module.
- :mod:`rewrite.testing.networks.motifs`: how networks put layers together.
- :mod:`rewrite.testing.networks.oddities`: what tracing, pruning and unfinished edits leave in them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from hypothesis import strategies as st

from rewrite.testing.networks.drawing import Drawing
from rewrite.testing.networks.motifs import LAYERS, Motif
from rewrite.testing.networks.network import Network
from rewrite.testing.networks.oddities import ODDITIES
from rewrite.testing.networks.steps import KINDS, Step
from rewrite.testing.values import LAYOUTS, seeds

MOTIFS = (*LAYERS, *ODDITIES)
"""All motifs; failing networks shrink towards the first."""

__all__ = ["KINDS", "MOTIFS", "Motif", "Network", "Step", "networks"]


@st.composite
def _grown(draw: st.DrawFn, drawing: Drawing, motifs: list[Motif]) -> None:
    drawing.draw = draw
    draw(st.sampled_from(motifs))(drawing)


@st.composite
def networks(
    draw: st.DrawFn,
    *,
    motifs: Sequence[Motif] = MOTIFS,
    longest: int = 5,
    batches: Collection[int] = (2, 1, 0, 3),
    dtypes: Collection[torch.dtype] = (torch.float32, torch.float64),
    layouts: Collection[str] = LAYOUTS,
) -> Network:
    """Networks over one image.

    Args:
        draw: given by Hypothesis.
        motifs: what they are put together from.
        longest: at most so many motifs in a row.
        batches, dtypes, layouts: of the input.
    """
    shape = (draw(st.sampled_from([4, 3, 2, 6])), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    seed = draw(seeds())
    drawing = Drawing(shape, seed)
    # items of a list, so that a failing network shrinks by whole motifs
    draw(st.lists(_grown(drawing, list(motifs)), min_size=1, max_size=longest))
    last = len(drawing.steps)
    others = draw(st.lists(st.integers(0, last), max_size=1)) if draw(st.booleans()) else []
    results = tuple(dict.fromkeys([last, *others]))
    return Network(shape, tuple(drawing.steps), results, draw(st.sampled_from(list(batches))),
                   draw(st.sampled_from(list(dtypes))), draw(st.sampled_from(list(layouts))), seed)  # fmt: skip
