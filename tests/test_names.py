"""What error messages say of names that do not exist."""

from __future__ import annotations

import pytest

from rewrite.names import nearest


@pytest.mark.parametrize(("names", "text"), [
    ({"simplify", "select"}, "; did you mean 'simplify'?"),
    ({"b", "a"}, "; there are a, b"),
    (set(), "; there are none"),
    ({f"block_{i:02}" for i in range(50)}, "; there are 50, from 'block_00' to 'block_49'"),
])  # fmt: skip
def test_the_nearest_name_or_what_there_is(names: set[str], text: str):
    assert nearest("simplfy", names) == text
