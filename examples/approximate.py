"""Make a trained network cheaper within a budget, and train it back: real digits, a few seconds.

    python examples/approximate.py

`approximate` fits cheaper parts to data and measures what each of them costs; `distill` trains what comes out on the
outputs of the original; `optimize` rewrites the result exactly, as any model. The labels are used for the first
training alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from rewrite import approximate, distill, optimize


class Block(nn.Module):
    """As in a ConvNeXt: a large depthwise kernel, a norm, two pointwise layers, beside a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.wide, self.narrow = nn.Conv2d(channels, 4 * channels, 1), nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.wide(self.norm(self.mix(x)))))


class Net(nn.Module):
    """A stem, three blocks, and a classifier of ten digits."""

    def __init__(self, channels: int = 24):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(3)))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def digits() -> tuple[Tensor, Tensor]:
    """1797 images ``[N, 1, 8, 8]`` and their labels, in random order."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.tensor(data.target)[order]


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """With labels."""
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * len(images.split(64)))
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for some in order.split(64):
            loss = F.cross_entropy(model(images[some]), labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> str:
    """In percent."""
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).float().mean()
    return f"{100 * float(right):.1f} %"


def main() -> None:
    torch.manual_seed(0)
    images, labels = digits()
    fit, test = (images[:1400], labels[:1400]), (images[1400:], labels[1400:])
    model = Net()
    train(model, *fit, epochs=6)
    print(f"trained          {accuracy(model, *test)} of the test images")
    batches = fit[0].split(100)
    student = approximate(model, batches, "inception, prune-filters", saving=0.4)
    print(f"approximated     {accuracy(student, *test)}")
    distill(student, model, batches, epochs=4, blocks=1)
    print(f"distilled        {accuracy(student, *test)}")
    fast = optimize(student, test[0][:1], lower="eager", tune="off")
    print(f"optimized        {accuracy(fast, *test)}\n")
    print(student.ledger)


if __name__ == "__main__":
    main()
