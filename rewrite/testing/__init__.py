"""Evidence for the author of a rule: drawn models, and one assertion that tries everything a rule promises.

    from hypothesis import given
    from rewrite.testing import assert_rule, batch_norms, convolutions

    @given(convolutions(), batch_norms())
    def test_the_norm_folds(layer, norm):
        norm = norm.after(layer)
        model = nn.Sequential(layer.module(), norm.module()).eval()
        assert_rule(FoldBatchNorm(), model, layer.inputs(), matches=1)

Strategies draw *specifications*: frozen values whose ``repr`` is the code that makes them, so that a failing example
can be read and run again. ``spec.module()`` is the layer in evaluation mode with its random weights, ``spec.inputs()``
what it is called with; both are the same at each call.

- :mod:`rewrite.testing.convolutions`, :mod:`~rewrite.testing.linears`, :mod:`~rewrite.testing.norms`,
  :mod:`~rewrite.testing.activations`, :mod:`~rewrite.testing.pools`, :mod:`~rewrite.testing.values`: what is drawn.
- :mod:`rewrite.testing.assertions`: :func:`assert_rule`; :mod:`rewrite.testing.exact`: :func:`assert_exact_modulo`, for
  rules that are polynomial in weights and inputs.
- :mod:`rewrite.testing.mutation`: whether the tests of a rule need each of its preconditions.

Needs `Hypothesis <https://hypothesis.readthedocs.io>`_, which torch-rewrite itself does not.
"""

from __future__ import annotations

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError(
        "rewrite.testing draws its examples with Hypothesis; install it: pip install hypothesis"
    ) from error

from rewrite.testing.activations import ACTIVATIONS, MONOTONE, ActivationSpec, activations
from rewrite.testing.assertions import assert_rule
from rewrite.testing.convolutions import ConvSpec, convolutions
from rewrite.testing.exact import assert_exact_modulo
from rewrite.testing.linears import LinearSpec, linears
from rewrite.testing.norms import (
    BatchNormSpec,
    GroupNormSpec,
    LayerNormSpec,
    batch_norms,
    group_norms,
    layer_norms,
)
from rewrite.testing.polynomials import NotPolynomialError
from rewrite.testing.pools import PoolSpec, pools
from rewrite.testing.result import Result
from rewrite.testing.spec import Layer
from rewrite.testing.values import Values, tensors

__all__ = [
    "assert_rule", "assert_exact_modulo", "Result", "NotPolynomialError",
    "convolutions", "linears", "batch_norms", "group_norms", "layer_norms", "activations", "pools", "tensors",
    "ACTIVATIONS", "MONOTONE",
    "Layer", "ConvSpec", "LinearSpec", "BatchNormSpec", "GroupNormSpec", "LayerNormSpec", "ActivationSpec", "PoolSpec",
    "Values",
]  # fmt: skip
