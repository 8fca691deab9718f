r"""Rewrites that are identities, shown without a tolerance: both graphs evaluated modulo primes.

A rule that is exact in real arithmetic, and polynomial or rational in weights and inputs, gives the *same element* at
each output, whatever elements stand for weights and inputs. There is no rounding, so a term of the size of the last
digit that is missing, or wrong, shows as plainly as any other. After Schwartz (Fast Probabilistic Algorithms for
Verification of Polynomial Identities, JACM 1980) and Zippel (EUROSAM 1979), as equality saturation compilers for tensor
programs use it (Jia et al., TASO, SOSP 2019; Wu et al., Mirage, OSDI 2025).

Square roots are functions of which nothing is known: each different argument has a random value. So what is accepted
holds whatever the function is, as an identity in the roots as variables of their own; an identity that needs
:math:`\sqrt{x}^2 = x` is not recognised. Likewise for the elementwise operators that ``opaque`` names.

Numbers in the program are read as the fractions that they stand for (:meth:`~rewrite.testing.field.Field.number`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.driver import Driver
from rewrite.graph import Graph
from rewrite.pipeline import Step, rules_of
from rewrite.testing.field import PRIMES, Field, ZeroDivisorError
from rewrite.testing.modulo import evaluate_modulo
from rewrite.testing.polynomials import NotPolynomialError
from rewrite.testing.result import Result, counted, told
from rewrite.trace import capture

_DRAWS = 8


def assert_exact_modulo(
    rule: Step,
    model: nn.Module,
    inputs: Sequence[Any] | Tensor,
    *,
    matches: int | None = None,
    opaque: Collection[str] = (),
    trials: int = 3,
) -> Result:
    r"""Run a rule or pass over a model, unverified, and compare the graphs before and after modulo primes.

    A right rule always passes. A wrong one passes with a probability of at most :math:`(d / p)^t` in ``t`` trials,
    where :math:`p > 2^{25}` and ``d`` is the degree of the numerator of what differs, as a polynomial in weights,
    inputs and roots. For a convolution, a norm and a scale ``d < 10``, so three trials let it pass less than once in
    :math:`10^{19}`; for a hundred layers in a row ``d < 1000``, less than once in :math:`10^{13}`. One wrong output
    element is enough, and each that is wrong has its own chance to show. (A difference is not seen either if all of its
    coefficients are multiples of every prime tried, that is of a number above :math:`2^{75}`.)

    Args:
        rule: a rule or a pass. Not one that reads the values of weights: these are replaced by others.
        model: in evaluation mode.
        inputs: positional arguments of the call; of floating ones only the shapes are used.
        matches: how many rewrites there are; None for any number.
        opaque: elementwise operators that the rule knows nothing of, as ``{"relu"}``.
        trials: how many primes and draws.

    Raises:
        AssertionError: an output differs, or there are not so many rewrites.
        NotPolynomialError: the model has an operator that is no polynomial or rational function.
        ValueError: the rule reads values.
    """
    args = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    readers = [each.name for each in rules_of(rule) if each.reads_values]
    if readers:
        raise ValueError(f"'{readers[0]}' reads the values of weights, and modulo a prime these are replaced by others")
    captured = capture(model, args)
    before = captured.graph.copy()
    record = Driver(captured.graph).run([rule])[0]
    counted(rule, record, matches, None)
    difference = difference_modulo(before, captured.graph, captured.flat_inputs, opaque, trials)
    if difference:
        raise AssertionError(told(rule, difference, record))
    return Result(captured.graph, record, before)


def difference_modulo(
    old: Graph, new: Graph, inputs: Sequence[Any], opaque: Collection[str] = (), trials: int = 3
) -> str:
    """How two graphs over the same inputs differ modulo primes; '' where they do not.

    Args:
        old, new: the graphs; weights of the same name are the same.
        inputs: flat inputs, of which floating ones give their shape only.
        opaque, trials: as for :func:`assert_exact_modulo`.
    """
    for trial in range(trials):
        field = Field(PRIMES[trial % len(PRIMES)], trial)
        olds, news = _both(old, new, inputs, field, opaque)
        for i, (a, b) in enumerate(zip(_tensors(olds), _tensors(news), strict=True)):
            if a.shape != b.shape:
                return f"output {i} is of shape {list(b.shape)}, not {list(a.shape)}"
            wrong = a != b
            if bool(wrong.any()):
                at = tuple(int(index) for index in wrong.nonzero()[0])
                return (f"output {i} differs modulo {field.prime} in {int(wrong.sum())} of {wrong.numel()} elements, "
                        f"first at {at}: {int(b[at])} instead of {int(a[at])}")  # fmt: skip
    return ""


def _both(
    old: Graph, new: Graph, inputs: Sequence[Any], field: Field, opaque: Collection[str]
) -> tuple[list[Any], list[Any]]:
    """The outputs of both graphs, on elements by which nothing has to be divided that is zero."""
    for _ in range(_DRAWS):
        given = [_drawn(field, value) for value in inputs]
        weights = {name: _drawn(field, tensor) for name, tensor in {**new.weights, **old.weights}.items()}
        try:
            return tuple(evaluate_modulo(graph, field, given, weights, opaque) for graph in (old, new))  # type: ignore[return-value]
        except ZeroDivisorError:
            continue
    raise NotPolynomialError(f"something is divided by zero, with all of {_DRAWS} draws")


def _drawn(field: Field, value: Any) -> Any:
    """Random elements in place of floats; other values as they are."""
    if isinstance(value, Tensor) and value.is_complex():
        raise NotPolynomialError("complex values cannot be evaluated modulo a prime")
    if isinstance(value, Tensor) and value.is_floating_point():
        return field.draw(tuple(value.shape))
    return field.number(value) if isinstance(value, float) else value


def _tensors(values: list[Any]) -> list[torch.Tensor]:
    return [leaf for leaf in compat.tree_flatten(values)[0] if isinstance(leaf, Tensor)]
