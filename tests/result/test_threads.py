"""Many threads call while weights change: each output is the old model's or the new one's."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

import rewrite
from tests.result.programs import Compiler, image, net, optimize


class Pair(nn.Module):
    """One weight that is folded into a kernel and its bias, and read as it is besides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y * self.norm.weight[:, None, None]


def together(count: int, work: Any) -> list[BaseException]:
    """Run ``work(index)`` in threads that start at once; what they raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def body(index: int) -> None:
        try:
            barrier.wait()
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_no_output_mixes_old_and_new_weights() -> None:
    model, x = Pair().eval(), image()
    fast = optimize(model, x)
    scales = [nn.Parameter(torch.full((8,), float(value))) for value in (1, 2, 3, 5, 7, 11)]
    allowed = []
    for scale in scales:
        model.norm.weight = scale
        allowed.append(fast(x).clone())
    done = threading.Event()

    def work(index: int) -> None:
        if index == 0:
            for turn in range(60):
                model.norm.weight = scales[turn % len(scales)]
                fast(x)
            done.set()
            return
        while not done.is_set():
            out = fast(x)
            assert any(torch.equal(out, known) for known in allowed), "neither old nor new"

    assert together(8, work) == []


def test_a_new_size_is_captured_once_for_all_threads() -> None:
    model = net()
    fast = optimize(model)
    expected = {size: model(image(2, size)) for size in (8, 10)}
    outputs: dict[int, Tensor] = {}

    def work(index: int) -> None:
        outputs[index] = fast(image(2, 8 if index % 2 else 10))

    assert together(8, work) == []
    compiler: Compiler = fast._engine._compile_program
    assert compiler.calls == 2
    for index, out in outputs.items():
        assert torch.allclose(out, expected[8 if index % 2 else 10], atol=1e-5)


def test_captures_in_several_threads() -> None:
    """Calls of sizes that no program takes, and results that are made, while another runs."""
    models = [net(seed) for seed in range(4)]
    results = [rewrite.optimize(model, image(), lower="eager", cache=False) for model in models[:3]]

    def work(index: int) -> None:
        fast = results[index] if index < 3 else rewrite.optimize(models[3], image(), lower="eager", cache=False)
        for turn in range(200 if index == 2 else 3):
            x = image(size=8 if index >= 2 else 9 + turn)
            torch.testing.assert_close(fast(x), models[index](x), rtol=1e-4, atol=1e-4)

    assert together(4, work) == []
    assert not torch.compiler.is_exporting()
