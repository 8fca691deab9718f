"""Views of Fourier transforms, against the shapes of what they compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rewrite.ops import Transform, view, view_as
from tests.programs import Program, aten

r = torch.randn

REAL, COMPLEX = r(2, 5, 6, 7), torch.complex(r(2, 5, 6, 7), r(2, 5, 6, 7))

VIEWS: list[tuple[Any, torch.Tensor, tuple[Any, ...], tuple[int, ...], tuple[int, ...], str]] = [
    # operator, input, arguments, dims, sizes, norm
    (aten.fft_fft.default, COMPLEX, (), (3,), (7,), "backward"),
    (aten.fft_ifft.default, COMPLEX, (9, 1), (1,), (9,), "backward"),
    (aten.fft_rfft.default, REAL, (), (3,), (7,), "backward"),
    (aten.fft_rfft.default, REAL, (4, -2, "ortho"), (2,), (4,), "ortho"),
    (aten.fft_irfft.default, COMPLEX, (), (3,), (12,), "backward"),
    (aten.fft_irfft.default, COMPLEX, (13, -1, "forward"), (3,), (13,), "forward"),
    (aten.fft_fft2.default, COMPLEX, (), (2, 3), (6, 7), "backward"),
    (aten.fft_ifft2.default, COMPLEX, ([3, 4], [3, 1]), (3, 1), (3, 4), "backward"),
    (aten.fft_rfft2.default, REAL, ([8, -1],), (2, 3), (8, 7), "backward"),
    (aten.fft_irfft2.default, COMPLEX, (), (2, 3), (6, 12), "backward"),
    (aten.fft_irfft2.default, COMPLEX, ([9, 11],), (2, 3), (9, 11), "backward"),
    (aten.fft_fftn.default, COMPLEX, (), (0, 1, 2, 3), (2, 5, 6, 7), "backward"),
    (aten.fft_ifftn.default, COMPLEX, ([4, 4],), (2, 3), (4, 4), "backward"),
    (aten.fft_rfftn.default, REAL, ([4, 4, 9], [1, 2, 3], "ortho"), (1, 2, 3), (4, 4, 9), "ortho"),
    (aten.fft_irfftn.default, COMPLEX, (None, [1, -1]), (1, 3), (5, 12), "backward"),
    (aten.fft_irfftn.default, COMPLEX, ([5, -1], [1, -1]), (1, 3), (5, 12), "backward"),
]


@pytest.mark.parametrize(("target", "x", "rest", "dims", "sizes", "norm"), VIEWS, ids=[f"{c[0]}{c[2]}" for c in VIEWS])
def test_every_spelling(
    target: Any, x: torch.Tensor, rest: tuple[Any, ...], dims: tuple[int, ...], sizes: tuple[int, ...], norm: str
):
    program = Program()
    given = program.input(x)
    found = view_as(program(target, given, *rest), Transform)
    assert found is not None
    assert (found.input, found.dims, found.sizes, found.norm) == (given, dims, sizes, norm)
    name = target._opname
    assert (found.inverse, found.real) == ("_i" in name, "rfft" in name)
    shape = list(x.shape)
    for dim, size in zip(dims, sizes, strict=True):
        shape[dim] = size
    if found.real and not found.inverse:
        shape[dims[-1]] = sizes[-1] // 2 + 1
    assert target(x, *rest).shape == tuple(shape)


def test_what_is_no_transform():
    program = Program()
    assert view_as(program(aten.fft_fftshift.default, program.input(REAL)), Transform) is None
    assert not isinstance(view(program(aten.fft_hfft.default, program.input(COMPLEX))), Transform)
