"""Convolutions in the frequency domain, as one call: the spectrum never leaves the cache.

Libraries transform each channel by itself and write every spectrum to memory, forth and back. Ours transforms as many
channels at once as a vector has floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from codegen.native.calls import insert, take_over
from codegen.native.operators import operator, pack_fft
from codegen.native.pitch import pitch
from codegen.native.sites import constant, fits, plane
from rewrite.ops import Pad, Product, Slice, Transform, is_tensor, value, view_as

if TYPE_CHECKING:
    from torch.fx import GraphModule, Node

_PRIMES = (2, 3, 5, 7)


@dataclass(frozen=True)
class CircularConvolution:
    """One of them: a depthwise convolution of real signals on a circle, and the part of the result that is read.

    Attributes:
        node: the result, ``[N, C, *size]``.
        input: ``[N, C, *size]``; as many dimensions, one or two of them transformed.
        spectrum: what the spectrum of the input is multiplied with, ``[C, *frequencies]`` or what broadcasts to that.
        points: of the circle, along each dimension.
        shift: how many zeros stand before the input along each dimension.
        stride: each so many-th point is kept, from the first on.
    """

    node: Node
    input: Node
    spectrum: Node
    points: tuple[int, ...]
    shift: tuple[int, ...]
    stride: tuple[int, ...]

    def described(self) -> str:
        """What is timed, as text: equal where the time is."""
        shapes = f"{tuple(value(self.input).shape)} {tuple(value(self.node).shape)}"
        return f"native fft {shapes} on {self.points} by {self.stride}, places {self._pitch} apart"

    def contenders(self, module: GraphModule) -> dict[str, Callable[[], Tensor]]:
        """Torch's transforms, ``"library"``, and ours, ``"native"``, on drawn values."""
        x, spectrum = self._drawn(), _of(module, self.spectrum)
        dims, packed, geometry = tuple(range(2, x.dim())), self.packed(module), self.geometry(leaves=False)

        def library() -> Tensor:
            whole: Tensor = torch.fft.irfftn(torch.fft.rfftn(x, self.points, dims) * spectrum, self.points, dims)
            return whole

        copied = distance(value(self.input)) is None

        def native() -> Tensor:
            found: Tensor = operator("fft_convolution")(x.clone() if copied else x, packed, geometry)
            return found

        return {"library": library, "native": native}

    def packed(self, module: GraphModule) -> Tensor:
        """The kernel's spectrum in the order in which ours reads it."""
        dims = tuple(range(1, len(self.points) + 1))
        spectrum = _of(module, self.spectrum).to(torch.complex128)
        frequencies = (*self.points[:-1], self.points[-1] // 2 + 1)
        spectrum = spectrum.reshape(-1, *spectrum.shape[spectrum.dim() - len(frequencies) :])
        kernel = torch.fft.irfftn(spectrum.expand(value(self.input).shape[1], *frequencies), self.points, dims)
        kernel = kernel.roll(self.shift, dims)
        return pack_fft(kernel.float().reshape(kernel.shape[0], *plane(self.points)))

    def geometry(self, leaves: bool) -> list[int]:
        """The numbers that the operator takes."""
        size = tuple(value(self.node).shape[2:])
        return [*plane(self.points), *plane(size), *plane(self.stride), int(leaves)]

    @property
    def _pitch(self) -> int:
        return distance(value(self.input)) or 0

    def _drawn(self) -> Tensor:
        batch, channels, *size = value(self.input).shape
        last = bool(self._pitch)
        shape = (batch, *size, self._pitch) if last else (batch, channels, *size)
        generator = torch.Generator("cpu").manual_seed(0)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        return drawn.movedim(-1, 1)[:, :channels] if last else drawn


def circular_convolutions(module: GraphModule) -> list[CircularConvolution]:
    """Those of a module whose kernels are constants, in order.

    Args:
        module: with recorded values.
    """
    found = [_found(module, node) for node in module.graph.nodes]
    return [one for one in found if one is not None]


def _found(module: GraphModule, node: Node) -> CircularConvolution | None:
    back = view_as(node, Transform)
    product = view_as(back.input, Product) if back is not None and back.inverse and back.real else None
    if back is None or product is None or product.divided or len(product.node.users) != 1:
        return None
    for spectrum, kernel in ((product.left, product.right), (product.right, product.left)):
        forth = view_as(spectrum, Transform)
        known = constant(module, kernel) if is_tensor(kernel) else None  # type: ignore[arg-type]
        if forth is not None and known is not None and _belong(forth, back, known):
            points: Any = back.sizes
            x, shift = _unpadded(forth)
            end, stride = _kept(node, len(points))
            return CircularConvolution(end, x, kernel, tuple(points), shift, stride)  # type: ignore[arg-type]
    return None


def _unpadded(forth: Transform) -> tuple[Node, tuple[int, ...]]:
    """What is transformed without the zeros around it, and how many of them stand before it along each dimension."""
    pad, dims = view_as(forth.input, Pad), len(forth.dims)
    if pad is None or pad.mode != "constant" or pad.fill != 0 or len(pad.node.users) != 1:
        return forth.input, (0,) * dims
    amounts = [(0, 0)] * (dims - len(pad.amounts)) + list(pad.amounts)
    if len(amounts) != dims or any(amount < 0 for pair in amounts for amount in pair) or not fits(value(pad.input)):
        return forth.input, (0,) * dims
    return pad.input, tuple(low for low, _ in amounts)


def _belong(forth: Transform, back: Transform, kernel: Tensor) -> bool:
    """Whether two transforms and what is multiplied in between are a convolution that ours computes."""
    x, y = value(forth.input), value(back.node)
    dims = tuple(range(2, x.dim()))
    if forth.inverse or not forth.real or len(dims) not in (1, 2) or not (fits(x) and fits(y)):
        return False
    if (forth.dims, back.dims) != (dims, dims) or forth.sizes != back.sizes or forth.norm != back.norm:
        return False
    if len(forth.node.users) != 1 or not all(isinstance(size, int) and _is_smooth(size) for size in forth.sizes):
        return False
    if forth.sizes[-1] % 2:
        return False
    if any(size > points for size, points in zip(x.shape[2:], forth.sizes, strict=True)):
        return False
    frequencies = tuple(value(forth.node).shape[2:])
    shape = (1,) * (x.dim() - kernel.dim()) + tuple(kernel.shape)
    whole = len(shape) == x.dim() and shape[0] == 1 and shape[1] in (1, x.shape[1]) and shape[2:] == frequencies
    return whole and kernel.dtype == torch.complex64 and y.shape[:2] == x.shape[:2]


def _kept(node: Node, dims: int) -> tuple[Node, tuple[int, ...]]:
    """The last of the slices from the first element on behind a result, and the stride of all along each dimension."""
    stride = [1] * dims
    while len(node.users) == 1:
        user = next(iter(node.users))
        cut = view_as(user, Slice)
        if cut is None or cut.dim < 2 or cut.start not in (0, None) or cut.step < 1:
            break
        stride[cut.dim - 2] *= cut.step
        node = user
    return node, tuple(stride)


def _is_smooth(points: int) -> bool:
    for prime in _PRIMES:
        while points % prime == 0:
            points //= prime
    return points == 1


def _of(module: GraphModule, node: Node) -> Tensor:
    found = constant(module, node)
    assert found is not None
    return found


def distance(x: Tensor) -> int | None:
    """From place to place of signals with channels last, which may be some of more channels.

    0 where what belongs to a channel lies together; None where it is neither, and has to be copied.
    """
    return 0 if x.is_contiguous() else pitch(x)


def put(module: GraphModule, site: CircularConvolution, x: Node, number: int, leaves: bool) -> Node:
    """Call the operator in the place of a site; the call."""
    arguments = x, site.packed(module), site.geometry(leaves)
    return take_over(site.node, insert(module, site.node, operator("fft_convolution"), arguments, f"fft_{number}"))
