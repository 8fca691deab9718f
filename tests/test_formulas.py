"""Formulas that come back from text, and text that is none."""

from __future__ import annotations

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st
from sympy.codegen.cfunctions import log2

from rewrite.arithmetic import symbol
from rewrite.formulas import parsed

N, H = symbol("N"), symbol("H")
LEAVES = st.one_of(st.integers(-9, 9).map(sympy.Integer), st.sampled_from([N, H, symbol("s77")]))
FORMULAS = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.builds(lambda a, b: a + b, parts, parts),
        st.builds(lambda a, b: a * b, parts, parts),
        st.builds(lambda a, b: a - b / 2, parts, parts),
        st.builds(lambda a: a**2, parts),
        st.builds(lambda a: sympy.floor(a / 3), parts),
        st.builds(lambda a: sympy.ceiling(a / 2), parts),
        st.builds(sympy.Max, parts, parts),
        st.builds(lambda a: N * log2(a**2 + 2), parts),
    ),
    max_leaves=5,
)


@given(FORMULAS)
def test_what_str_gave_comes_back(formula: sympy.Expr):
    found = parsed(str(formula))
    assert sympy.expand(found - formula) == 0 or found == formula
    assert found.free_symbols == formula.free_symbols


@pytest.mark.parametrize(
    "text",
    [
        "", "N +", "__import__('os').getcwd()", "N.name", "[N]", "lambda: 1", "eval('1')", "N ** N", "9 ** 99",
        "'N'", "True", "Max(N, key=1)", "floor()", "N if N else 1", "(" * 3000 + "N" + ")" * 3000, "-" * 10**5 + "N",
        "N / 'a'", "2 ** -1",
    ],
)  # fmt: skip
def test_other_text_is_refused(text: str):
    with pytest.raises(ValueError, match="formula of sizes"):
        parsed(text)
