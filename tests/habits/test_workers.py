"""Results in other processes: in the workers of a loader, and through queues."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rewrite import optimize
from tests.result.programs import close, image, net

LIMIT = 120
"""Seconds after which a process is taken to hang."""


class Features(Dataset[Any]):
    """Pictures, computed upon in the process that asks for them."""

    def __init__(self, extract: nn.Module) -> None:
        self.extract = extract

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with torch.inference_mode():
            return self.extract(image(2, seed=index)).clone(), torch.get_num_threads()


@pytest.mark.parametrize(
    ("start", "lower"),
    [
        ("fork", "eager"),
        ("spawn", "eager"),
        pytest.param("fork", "inductor", marks=pytest.mark.slow),
        pytest.param("spawn", "inductor", marks=pytest.mark.slow),
    ],
)
def test_loaders_compute_in_their_workers(start: str, lower: Any) -> None:
    model = net()
    fast = optimize(model, image(), lower=lower)
    fast(image())
    fast(image(64, 16))  # large enough for threads, which a forked process has not
    loader = DataLoader(Features(fast), batch_size=None, num_workers=2, multiprocessing_context=start, timeout=LIMIT)
    found = list(loader)
    assert [threads for _, threads in found] == [1] * 6
    for index, (output, _) in enumerate(found):
        assert close(output, model(image(2, seed=index)))
    assert close(fast(image()), model(image()))


def serve(given: Any, taken: Any) -> None:
    torch.set_num_threads(1)  # as in the workers of a loader
    fast = given.get()
    with torch.no_grad():
        taken.put((fast(image()).tolist(), type(fast).__name__, fast.num_classes))


def test_results_go_through_queues() -> None:
    model = net()
    fast = optimize(model, image(), lower="eager")
    context = multiprocessing.get_context("fork")
    given, taken = context.Queue(), context.Queue()
    process = context.Process(target=serve, args=(given, taken), daemon=True)
    process.start()
    given.put(fast)
    output, kind, classes = taken.get(timeout=LIMIT)
    process.join(LIMIT)
    assert process.exitcode == 0
    assert close(torch.tensor(output), model(image()))
    assert (kind, classes) == ("OptimizedModule", 5)
