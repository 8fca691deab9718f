"""Two questions about a model: what is in the way of a rewrite, and which rewrite is wrong?"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without installation

from passes.fold_affine import FoldBatchNorm
from rewrite import Fidelity, Rule, bisect, explain
from rewrite.pattern import Call, Var

aten = torch.ops.aten


@dataclass(frozen=True)
class CheapGelu(Rule):
    """Claims that the approximation of gelu is gelu itself, which verification does not let through."""

    fidelity = Fidelity.ELEMENTWISE
    pattern = Call(aten.gelu.default, self=Var("x"), approximate="none")

    def rewrite(self, match, g):
        return g(aten.gelu.default, match.x, approximate="tanh")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.left = nn.Conv2d(16, 16, 3, padding=1)
        self.right = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")

    def forward(self, x):
        x = nn.functional.gelu(self.norm(self.conv(x)))
        return self.left(x) + self.right(x)


def main() -> None:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 32, 32)

    print("What is in the way of a rewrite?\n")
    print(explain(model, x, "merge-branches"))

    print("\nWhich rewrite is wrong? (made without verification)\n")
    print(bisect(model, x, pipeline=[FoldBatchNorm(), CheapGelu()]))


if __name__ == "__main__":
    main()
