"""Maps beside layers of every geometry: folded wherever the algebra allows it, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import FoldAffine
from rewrite.testing import BatchNormSpec, ConvSpec, LinearSpec, assert_rule, batch_norms, convolutions, linears

HALF = settings(max_examples=max(10, settings.default.max_examples // 2))

Layer = ConvSpec | LinearSpec


@dataclass(frozen=True)
class Affine:
    """A map by its kind: of a vector over the channels, a parameter of one element, or a number."""

    kind: str
    operand: str
    seed: int

    @property
    def shifts(self) -> bool:
        return self.kind in ("add", "sub", "rsub", "scaled add")

    def module(self, channels: int, rank: int, axis: int, dtype: torch.dtype) -> nn.Module:
        generator = torch.Generator().manual_seed(self.seed)
        if self.operand == "number":
            return Mapped(self.kind, None, 0.7)
        shape = [channels if dim == axis and self.operand == "vector" else 1 for dim in range(rank)]
        shape = shape[self.seed % (axis + 1) :]  # leading ones may be left out
        sign = torch.where(torch.rand(shape, generator=generator) < 0.3, -1, 1)
        return Mapped(self.kind, nn.Parameter(((torch.rand(shape, generator=generator) + 0.5) * sign).to(dtype)), 0.7)


class Mapped(nn.Module):
    def __init__(self, kind: str, operand: nn.Parameter | None, number: float) -> None:
        super().__init__()
        self.kind, self.parameter, self.number = kind, operand, number

    def forward(self, x: Tensor) -> Tensor:
        operand: Any = self.number if self.parameter is None else self.parameter
        functions: dict[str, Callable[[], Tensor]] = {
            "mul": lambda: x * operand, "rmul": lambda: operand * x, "div": lambda: x / operand, "neg": lambda: -x,
            "add": lambda: x + operand, "sub": lambda: x - operand, "rsub": lambda: operand - x,
            "scaled add": lambda: torch.add(x, operand, alpha=0.3),
        }  # fmt: skip
        return functions[self.kind]()


maps = st.builds(
    Affine,
    st.sampled_from(["mul", "rmul", "div", "neg", "add", "sub", "rsub", "scaled add"]),
    st.sampled_from(["vector", "vector", "one", "number"]),
    st.integers(0, 99),
)


def channels_of(layer: Layer, inputs: bool) -> int:
    if isinstance(layer, ConvSpec):
        return layer.in_channels if inputs else layer.out_channels
    return layer.in_features if inputs else layer.out_features


def map_of(layer: Layer, drawn: Affine | BatchNormSpec, inputs: bool) -> nn.Module:
    """The drawn map for what a layer reads, or for what it gives."""
    if isinstance(drawn, BatchNormSpec):
        return (drawn.before(layer) if inputs else drawn.after(layer)).module()
    rank = len(layer.input_shape)
    axis = 1 if isinstance(layer, ConvSpec) else rank - 1
    return drawn.module(channels_of(layer, inputs), rank, axis, layer.dtype)


layers = convolutions(transposed=None) | linears()


@HALF
@given(layers, maps)
def test_a_map_behind_a_layer_always_folds(layer: Layer, drawn: Affine):
    model = nn.Sequential(layer.module(), map_of(layer, drawn, inputs=False)).eval()
    assert_rule(FoldAffine(), model, layer.inputs(), matches=1, batches=(0, 1), polynomial=True)


def adds_zeros(layer: Layer) -> bool:
    """Whether a layer sees zeros beside its input."""
    if not isinstance(layer, ConvSpec) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return False
    if layer.padding == "same":
        return any(d * (k - 1) for d, k in zip(layer.dilation, layer.kernel, strict=True))
    return any(map(any, layer.padding))


@HALF
@given(layers, maps)
def test_a_map_before_a_layer_folds_where_no_zeros_are_moved(layer: Layer, drawn: Affine):
    model = nn.Sequential(map_of(layer, drawn, inputs=True), layer.module()).eval()
    result = assert_rule(FoldAffine(), model, layer.inputs(), batches=(0, 1), polynomial=True)
    made = [commit.rule for commit in result.record.commits]
    if not drawn.shifts:
        assert made == ["fold-input-scale"]
    elif isinstance(layer, ConvSpec) and layer.transposed:
        assert not made
    elif not adds_zeros(layer):
        assert made == ["fold-input-shift"]
    else:  # zeros by an operator of their own become another number; zeros of the convolution, perhaps a map
        assert made in ([], ["fold-bias-map"], ["fold-input-shift"])
        assert ("fold-input-shift" in made) <= (drawn.operand == "number")


@HALF
@given(convolutions() | linears(dims=0), batch_norms(), st.booleans())
def test_a_norm_beside_a_layer(layer: Layer, norm: BatchNormSpec, behind: bool):
    parts = [map_of(layer, norm, inputs=not behind), layer.module()]
    model = nn.Sequential(*(parts[::-1] if behind else parts)).eval()
    result = assert_rule(FoldAffine(), model, layer.inputs(), polynomial=True)
    assert not result.norms or (not behind and adds_zeros(layer))


class Attention(nn.Module):
    """Queries, keys and values as parts of one layer, in any arrangement, and a scale somewhere."""

    def __init__(self, heads: int, size: int, order: tuple[int, ...], ways: tuple[str, str]) -> None:
        super().__init__()
        self.heads, self.size, self.order, self.ways = heads, size, order, ways
        self.qkv = nn.Linear(5, 3 * heads * size)

    def forward(self, x: Tensor) -> Tensor:
        place, split = self.ways
        sizes = [(3, self.heads, self.size)[i] for i in self.order]
        # [parts, heads, ..., tokens, size]
        y = self.qkv(x).unflatten(-1, sizes)
        y = y.movedim([2 + self.order.index(i) for i in range(3)], (0, 2, 4))
        if split == "unbind":
            q, k, v = y.unbind(0)
        elif split == "select":
            q, k, v = y[0], y[1], y[2]
        else:
            q, k, v = (part.squeeze(0) for part in y.chunk(3, 0))
        if place == "queries":
            q = q * 0.3
        elif place == "keys":
            k = k / 3
        scores = q @ k.mT
        return (scores * 0.3 if place == "scores" else scores).softmax(-1) @ v


@HALF
@given(
    st.integers(1, 3), st.integers(1, 4), st.permutations(range(3)),
    st.tuples(st.sampled_from(["queries", "keys", "scores"]), st.sampled_from(["unbind", "select", "chunk"])),
)  # fmt: skip
def test_the_scale_of_an_attention_folds_however_it_is_arranged(
    heads: int, size: int, order: list[int], ways: tuple[str, str]
):
    model = Attention(heads, size, tuple(order), ways).eval()
    assert_rule(FoldAffine(), model, torch.randn(2, 4, 5), matches=1, batches=(1,))
