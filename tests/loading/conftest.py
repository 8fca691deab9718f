"""A saved result that the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rewrite.result import OptimizedModule
from tests.loading.files import eager
from tests.result.programs import image, net


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, OptimizedModule, Path]:
    """A model, its result, and the file of that. Tests do not change them."""
    torch.manual_seed(0)
    model = net()
    fast = eager(model, image())
    path = tmp_path_factory.mktemp("saved") / "net.rewrite"
    fast.save(path)
    return model, fast, path
