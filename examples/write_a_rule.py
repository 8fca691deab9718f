"""Write a rule: ``x * sigmoid(x)`` becomes ``silu(x)``, one operator and one pass over memory instead of two."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without installation

from rewrite import Fidelity, Rule, optimize
from rewrite.pattern import Call, ProductOf, Var

aten = torch.ops.aten


@dataclass(frozen=True)
class FuseSilu(Rule):
    """``x * sigmoid(x) = silu(x)``, whichever way round the product is written."""

    fidelity = Fidelity.ELEMENTWISE  # equal in real arithmetic; only rounding differs
    pattern = ProductOf(Var("x"), Call(aten.sigmoid.default, self=Var("x")))

    def rewrite(self, match, g):
        return g(aten.silu.default, match.x)


class Wrong(FuseSilu):
    """The same, but wrong: verification compares it with what it replaces and does not let it through."""

    fidelity = Fidelity.ELEMENTWISE

    def rewrite(self, match, g):
        return g(aten.gelu.default, match.x)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        y = self.conv(x)
        return y.sigmoid() * y


def main() -> None:
    model, x = Gate().eval(), torch.randn(2, 3, 32, 32)

    fast = optimize(model, x, pipeline=FuseSilu(), lower="eager")
    print(fast.report.diff("fuse-silu"))

    same = optimize(model, x, pipeline=Wrong(), lower="eager")
    print(same.report.records[0].rejections[0].reason)
    torch.testing.assert_close(same(x), model(x))


if __name__ == "__main__":
    main()
