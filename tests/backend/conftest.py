"""What the tests of the backend share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh():
    """Dynamo without the graphs of other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
