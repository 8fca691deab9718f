"""Test a rule on drawn models: one assertion tries everything that it promises. Needs ``pip install hypothesis``."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import given, settings
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without installation

from examples.write_a_rule import FuseSilu, Wrong
from rewrite.testing import ConvSpec, assert_rule, convolutions


class Gate(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y = self.layer(x)
        return y.sigmoid() * y


@settings(max_examples=10, deadline=None)
@given(convolutions())  # kernels even and rectangular, padding of every mode, groups, dtypes, layouts, small sizes, ...
def test_fuse_silu(layer):
    assert_rule(FuseSilu(), Gate(layer.module()).eval(), layer.inputs(), matches=1)


def main() -> None:
    test_fuse_silu()
    print("the rule holds")

    layer = ConvSpec(sizes=(4, 5), kernel=(3, 2), padding=((0, 2), (1, 1)), padding_mode="reflect")
    try:
        assert_rule(Wrong(), Gate(layer.module()).eval(), layer.inputs())
    except AssertionError as error:
        print(error)


if __name__ == "__main__":
    main()
