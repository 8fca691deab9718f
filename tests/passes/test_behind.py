"""A sliced convolution follows its remedy, read from the text, and gives the slice."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from passes.obstruction import obstruction
from passes.reparameterize.behind import behind
from tests.programs import Program, aten

END = 2**63 - 1


def remedy(x: Tensor, weight: Tensor, options: Sequence[object], *slices: tuple[int, int, int, int]) -> str:
    """What the refusal of a sliced convolution says; each slice is ``(dim, start, end, step)``."""
    program = Program()
    operator = aten.conv2d.padding if isinstance(options[1], str) else aten.conv2d.default
    node: Node = program(operator, program.input(x), program.weight("weight", weight), None, *options)
    for part in slices:
        node = program(aten.slice.Tensor, node, *part)
    found = obstruction(program.graph(node), node)
    assert found is not None
    refusal = behind(found, node)
    assert refusal.reason == "slice stands between the layer and the sum"
    return refusal.remedy


def followed(text: str, x: Tensor, weight: Tensor, options: Sequence[object]) -> Tensor:
    """The convolution as it is after a remedy."""
    stride, padding, dilation = options
    for name, values in re.findall(r"(stride|padding)=(\(\d+, \d+\)|0)", text):
        given = tuple(map(int, re.findall(r"\d+", values)))
        stride, padding = (given, padding) if name == "stride" else (stride, given if len(given) > 1 else 0)
    amounts = re.search(r"F\.pad\(input, \[([\d, ]+)\]\)", text)
    if amounts is not None:
        x = F.pad(x, [int(amount) for amount in amounts[1].split(",")])
    return F.conv2d(x, weight, None, stride, padding, dilation)


KERNELS = [(1, 1), (2, 3), (5, 4)]
SLICES = [
    ((2, 0, END, 2), (3, 0, END, 2)), ((2, 0, END, 3),), ((2, 0, 5, 1), (3, 0, -1, 1)), ((2, 1, END, 1),),
    ((3, 1, -1, 2),), ((2, 2, 7, 2), (3, 2, END, 3)), ((3, 1, END, 1), (3, 1, END, 2)), ((2, 0, 5, 3),),
]  # fmt: skip


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_follows_the_remedy_is_the_slice(kernel: tuple[int, int], stride: int, dilation: int):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 2, 17, 19, dtype=torch.float64), torch.randn(3, 2, *kernel, dtype=torch.float64)
    built = 0
    for padding in ([0, 0], [1, 2], [4, 4]):
        options = ([stride, stride], padding, [dilation, dilation])
        for slices in SLICES:
            want = F.conv2d(x, weight, None, *options)
            for dim, start, end, step in slices:
                want = want[(slice(None),) * dim + (slice(start, end, step),)]
            text = remedy(x, weight, options, *slices)
            if text.startswith("build "):
                built += 1
                torch.testing.assert_close(followed(text, x, weight, options), want, rtol=1e-12, atol=1e-12)
            else:
                assert text == "add up before slice, with all branches in one shape"
                assert any(start > 0 or end < END for _, start, end, _ in slices)
    assert built >= 2 * 3 + 2


def test_a_padding_by_name_is_written_in_numbers_beside_a_stride():
    x, weight = torch.randn(1, 2, 9, 8), torch.randn(3, 2, 3, 5)
    options = ([1, 1], "same", [1, 1])
    text = remedy(x, weight, options, (2, 0, END, 2), (3, 0, END, 2))
    assert text == "build conv2d with stride=(2, 2) and padding=(1, 2) instead of slice"
    want = F.conv2d(x, weight, None, *options)[..., ::2, ::2]
    torch.testing.assert_close(followed(text, x, weight, options), want)


def test_channels_and_batches_are_no_padding():
    x, weight = torch.randn(4, 2, 9, 8), torch.randn(3, 2, 3, 3)
    for part in ((1, 0, 2, 1), (0, 0, END, 2)):
        text = remedy(x, weight, ([1, 1], [1, 1], [1, 1]), part)
        assert text == "add up before slice, with all branches in one shape"
