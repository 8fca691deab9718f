"""Train a multi-branch network on handwritten digits through ``transform``, then deploy it with ``optimize``.

The branches train as they are; the rewritten network for inference is one convolution a block, and equal.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without installation

from rewrite import optimize, transform


class Block(nn.Module):
    """A 3x3 and a 1x1 convolution and the identity, each with a norm, added up."""

    def __init__(self, channels: int):
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.narrow = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.wide(x) + self.narrow(x) + self.identity(x))


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), Block(16), Block(16), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    )

    step = transform(model.train(), images[:128])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(3):
        for rows in torch.randperm(1500).split(128):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(step(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()

    model.eval()
    fast = optimize(model, images[:128], lower="eager")
    print(fast.report)
    with torch.no_grad():
        held_out = images[1500:]
        agree = (fast(held_out).argmax(1) == model(held_out).argmax(1)).all()
        accuracy = (fast(held_out).argmax(1) == labels[1500:]).float().mean()
    print(f"\naccuracy on held-out digits {float(accuracy):.3f}; predictions equal to the model's: {bool(agree)}")


if __name__ == "__main__":
    main()
