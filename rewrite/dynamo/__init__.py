"""The front end inside ``torch.compile``: from the graph that Dynamo traced to a :class:`~rewrite.graph.Graph`.

Weights are arguments of such a graph: Dynamo reuses it for every instance of a class and guards neither the identity
nor the values of parameters. :func:`lift` names them, so that rules see weights, and
:class:`~rewrite.dynamo.folds.Folds` keeps what was folded from them apart for each set of tensors that a call brings.
"""

from __future__ import annotations

from rewrite.dynamo.decline import Declined
from rewrite.dynamo.execute import executable
from rewrite.dynamo.folds import Folds, refold
from rewrite.dynamo.lift import Lifted, lift
from rewrite.dynamo.verify import verify

__all__ = ["Declined", "Folds", "Lifted", "executable", "lift", "refold", "verify"]
