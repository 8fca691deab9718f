"""Whether a rewritten graph computes what the model does: values in float64 and in its own dtypes, at any batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rewrite.graph import Graph
from rewrite.rule import Fidelity
from rewrite.testing.program import Program
from rewrite.testing.reference import in_double, own_dtype
from rewrite.verify.compare import close, equal, same_kind
from rewrite.verify.magnitude import magnitudes
from rewrite.verify.rounding import Arithmetic, count
from rewrite.verify.sizes import Batch, batch_symbols


def disagreement(
    model: nn.Module, old: Graph, new: Graph, inputs: Sequence[Any], fidelity: Fidelity, rounds_weights: bool = False
) -> str:
    r"""How the rewritten program differs from the model on flat inputs; '' where it does not.

    In float64, where every wrong term shows, and in the model's own dtypes, where rounding and overflow show; both
    times element by element against the model in float64, with at most twice the larger of the model's own error and
    :math:`((r + 8)\,u + n\,u_a)\,m`: ``r`` results and ``n`` summands are rounded on the way, ``m`` is the sum of the
    absolute values of all terms, see :mod:`rewrite.verify.magnitude`.

    Args:
        model: the user's module.
        old: the captured graph.
        new: the rewritten graph.
        inputs: flat inputs.
        fidelity: what the rules promise; with ``NORMWISE`` norms over planes are compared.
        rounds_weights: whether a rule says so; weights then have a rounding of their own dtype in float64 too.
    """
    before, after = Program.of(old), Program.of(new)
    truths, olds = in_double(model, old, inputs), own_dtype(model, old, inputs)
    with torch.no_grad():
        values = before.values(inputs, double=True)
        reference = before.environment(values)
        try:
            exact = after.environment(after.values(inputs, double=True))
            sharps, news = after.outputs(exact), after.run(inputs)
        except Exception as error:
            return f"the rewritten program raises {type(error).__name__}: {error}"
        scales = magnitudes(before.fragment, values, reference, fidelity)
    names = [str(i) for i in range(len(truths))]
    different = next(filter(None, map(same_kind, names, olds, news)), "")
    if different:
        return different
    counts = count(before.fragment, reference) | count(after.fragment, exact)
    sharp_arithmetic = Arithmetic.of(torch.float64)
    for weight in old.weights.values() if rounds_weights else ():
        if weight.is_floating_point():
            sharp_arithmetic = sharp_arithmetic.coarser(weight.dtype)
    for name, truth, mine, sharp, result, scale in zip(names, truths, olds, sharps, news, scales, strict=True):
        if not (truth.is_floating_point() or truth.is_complex()):
            finding = equal(name, mine, result, ())
            if finding.failure:
                return finding.failure
            continue
        own = Arithmetic.of(mine.dtype)
        for text, found, theirs, arithmetic in (("float64", sharp, truth, sharp_arithmetic),
                                                (_name(mine), result, mine, own)):  # fmt: skip
            floor = arithmetic.floor(scale, counts)
            finding = close(name, fidelity, found, theirs, truth, floor, ())
            if finding.failure:
                return f"in {text}, {finding.failure}"
            if not finding.evidence:
                return f"in {text}, output '{name}' is infinite or NaN everywhere, which shows nothing"
    return ""


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def rebatched(graph: Graph, inputs: Sequence[Any], size: int) -> list[Any]:
    """The flat inputs for another batch size: the same numbers drawn anew; zeros where there are none."""
    batch, generator = Batch(batch_symbols(graph), size), torch.Generator().manual_seed(size)
    result = []
    for node, given in zip(graph.inputs, inputs, strict=True):
        recorded = node.meta.get("val")
        if batch.known(recorded):
            given = batch.concrete(recorded)
        elif isinstance(recorded, Tensor) and any(map(batch.known, recorded.shape)):
            shape = [batch.concrete(length) if batch.known(length) else int(length) for length in recorded.shape]
            chosen = torch.randint(max(1, given.numel()), shape, generator=generator)
            numbers = given.flatten() if given.numel() else torch.zeros(1, dtype=given.dtype, device=given.device)
            given = numbers[chosen]
        result.append(given)
    return result
