"""Results in other processes: in the workers of a loader, and through queues."""

from __future__ import annotations

import os
import subprocess
import sys
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


def alone(call: str) -> None:
    """Call a function of this file in a fresh process: what forks has no threads then that libraries left running."""
    script = f"from tests.habits import test_workers\nif __name__ == '__main__':\n    test_workers.{call}\n"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=2 * LIMIT, check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


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
def test_loaders_compute_in_their_workers(start: str, lower: str) -> None:
    alone(f"compute_in_workers({start!r}, {lower!r})")


def compute_in_workers(start: str, lower: Any) -> None:
    model = net()
    fast = optimize(model, image(), lower=lower)
    fast(image())
    fast(image(64, 16))  # large enough for threads, which a forked process has not
    loader = DataLoader(Features(fast), batch_size=None, num_workers=1, multiprocessing_context=start, timeout=LIMIT)
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
    alone("send_through_queue()")


def send_through_queue() -> None:
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


FORKED = """
import secrets
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from rewrite import optimize
from tests.result.programs import image

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.cos(self.conv(x).relu() + NEW)

NEW = 1 + secrets.randbits(40) / 2**40  # it stands in the code, which nobody has compiled before
model = Net().eval()
fast = optimize(model, image(), lower="inductor", cache=False)

class Results(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        with torch.no_grad():
            return fast(image(1, seed=i))[0]

if __name__ == "__main__":
    with torch.no_grad():
        fast(image())  # the parent has threads that compile
        loader = DataLoader(Results(), batch_size=2, num_workers=1, multiprocessing_context="fork", timeout=90)
        found = next(iter(loader))
        expected = torch.cat([model(image(1, seed=i)) for i in range(2)])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
"""


def test_a_forked_worker_compiles_after_its_parent_has(with_libraries: dict[str, str]) -> None:
    """With nothing of it in Inductor's cache, so that both compile."""
    environment = {**with_libraries, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, env=environment, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
