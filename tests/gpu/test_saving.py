"""Saved on one device and loaded on another, and programs of the cache on a device."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from rewrite import load, optimize
from tests.cache.nets import small

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_a_file_of_the_device(tmp_path: Path) -> None:
    model = small()
    there, x = copy.deepcopy(model).cuda(), X.cuda()
    fast = optimize(there, x, lower="eager")
    fast.save(tmp_path / "net")
    for found in (load(tmp_path / "net", lower="eager"), load(tmp_path / "net", there, lower="eager")):
        assert found(x).is_cuda
        torch.testing.assert_close(found(x), fast(x))
    here = load(tmp_path / "net", model, lower="eager")
    torch.testing.assert_close(here(X), model(X), rtol=1e-4, atol=1e-4)


def test_a_file_of_a_result_that_was_moved(tmp_path: Path) -> None:
    fast = copy.deepcopy(optimize(small(), X, lower="eager")).cuda()
    fast.save(tmp_path / "net")
    found = load(tmp_path / "net", lower="eager")
    torch.testing.assert_close(found(X.cuda()), fast(X.cuda()))
    torch.testing.assert_close(found.cpu()(X), small()(X), rtol=1e-4, atol=1e-4)


def test_the_cache_tells_devices_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_REWRITE_CACHE", "1")
    monkeypatch.setenv("TORCH_REWRITE_CACHE_DIR", str(tmp_path))
    hits = []
    for device in ("cpu", "cuda", "cpu", "cuda"):
        model, x = small().to(device), X.to(device)
        fast = optimize(model, x, lower="eager")
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
        hits.append("cache" in fast.report.time)
    assert hits == [False, False, True, True]
