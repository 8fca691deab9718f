"""The states of all random numbers that training draws, to draw the same ones again."""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from rewrite.distillation.batches import Batches


def drawn(batches: Batches, device: torch.device) -> dict[str, Any]:
    """The states of torch's, Python's and NumPy's generators and the loader's own, as data of plain types."""
    found: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "loader": [generator.get_state() for generator in batches.generators],
    }
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    if "numpy" in sys.modules:
        kind, keys, *rest = sys.modules["numpy"].random.get_state()
        found["numpy"] = (kind, torch.from_numpy(keys.astype("int64")), *rest)
    return found


def draw_again(states: dict[str, Any], batches: Batches, device: torch.device) -> None:
    """Go back to these states, those that are there."""
    torch.set_rng_state(states["torch"])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    for generator, state in zip(batches.generators, states["loader"], strict=False):
        generator.set_state(state)
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if "numpy" in states and "numpy" in sys.modules:
        kind, keys, *rest = states["numpy"]
        sys.modules["numpy"].random.set_state((kind, keys.numpy().astype("uint32"), *rest))


def align(batches: Batches, share: Any, device: torch.device) -> None:
    """Give each process the first one's states, so that all shuffle alike; those of GPUs stay."""
    states = drawn(batches, device)
    states.pop("cuda", None)
    draw_again(share(states), batches, device)
