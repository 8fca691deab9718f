"""From which sizes on the other way is cheaper: on formulas, and against what rules decide about real layers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import sympy
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import rewrite
from passes import FftConvolution, SeparateKernel
from passes.fft_convolution import costs
from passes.fft_convolution.blocks import cut_of
from passes.fft_convolution.circle import Circle
from passes.fft_convolution.crossovers import crossovers
from passes.reparameterize.kernels import taps_of
from rewrite.arithmetic import symbol
from rewrite.crossover import Crossover
from rewrite.offering import offers_in
from rewrite.ops import Convolution, view_as
from rewrite.rule import Match
from rewrite.trace import capture
from tests.test_offers import Scaled
from tests.toy_rules import chain, relu

if TYPE_CHECKING:
    from collections.abc import Sequence

K = symbol("K")


def searched(before: Any, after: Any, low: int = 1, high: int = 100, **options: Any) -> Crossover:
    return Crossover.search("steps", "K", before, after, low, high, 7, **options)


@given(st.integers(-50, 50), st.integers(1, 9), st.integers(-3, 3))
def test_every_size_of_the_range_is_compared(shift: int, slope: int, curve: int):
    before, after = 40 + 0 * K, shift + slope * K - curve * K**2
    found = searched(before, after)
    cheaper = {n for low, high in found.cheaper for n in range(low, high + 1)}
    assert cheaper == {n for n in range(1, 101) if shift + slope * n - curve * n**2 < 40}
    assert all(first[1] + 1 < second[0] for first, second in zip(found.cheaper, found.cheaper[1:], strict=False))
    assert found.start == next((n for n in range(1, 101) if cheaper.issuperset(range(n, 101))), None)


TEXTS = {
    "from K = 11 on": (K**2, 10 * K + 0),
    "from K = 11 on, for some from 6 on": (K, sympy.Piecewise((0, sympy.Eq(K, 6) | (K > 10)), (200, True))),
    "up to K = 9": (10 * K, K**2),
    "from K = 3 to 7": (sympy.Max(10 * K, 10) - 20, K**2),
    "for every K": (K + 1, K),
    "for no K": (K, K),
}


@pytest.mark.parametrize("when", TEXTS)
def test_what_it_says(when: str):
    before, after = TEXTS[when]
    text = str(searched(before, after))
    assert text == f"steps take fewer operations {when} (of 1 to 100; here 7): {before} against {after}"


def test_what_other_symbols_stand_for():
    m = symbol("M")
    found = searched(100 * K, 3 * m, exact=lambda n: (100 * n, 3 * n**2), where={"M": "K**2"})
    assert str(found).endswith("up to K = 33 (of 1 to 100; here 7): 100*K against 3*M, M = K**2")
    assert found.start is None


def convolution(layer: nn.Module, *shape: int) -> tuple[Convolution, list[Circle]]:
    graph = capture(layer.eval(), (torch.randn(2, *shape),)).graph
    conv = next(conv for node in graph.calls() if (conv := view_as(node, Convolution)))
    each = zip(shape[1:], taps_of(conv), conv.stride, strict=True)
    return conv, [Circle(*geometry) for geometry in each]


LAYERS = {
    "same": lambda taps, size: (nn.Conv1d(4, 4, taps, padding="same", groups=4), (4, size)),
    "causal": lambda taps, size: (nn.Conv1d(2, 4, taps, padding=taps - 1), (2, size)),
    "within": lambda taps, size: (nn.Conv1d(2, 3, taps, 2), (2, size)),
    "image": lambda taps, size: (nn.Conv2d(4, 4, taps, padding="same", groups=4), (4, size, size)),
    "row": lambda taps, size: (nn.Conv2d(4, 4, (1, taps), padding="same", groups=4), (4, 6, size)),
}
EXAMPLES = {"same": (49, 200), "causal": (40, 90), "within": (50, 120), "image": (9, 20), "row": (33, 60)}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("size", ["K", "L"])
def test_the_rule_decides_about_real_layers_as_the_crossover_says(name: str, size: str):
    given = dict(zip("KL", EXAMPLES[name], strict=True))
    layer, shape = LAYERS[name](given["K"], given["L"])
    [found] = [crossover for crossover in crossovers(*convolution(layer, *shape)) if crossover.size == size]
    assert found.here == given[size]
    ends = [end for pair in found.cheaper for end in pair if end not in (found.low, found.high)][:2]
    ends = ends or [found.low + 1]
    for edge in sorted({end + step for end in ends for step in (-1, 0, 1)}):
        layer, shape = LAYERS[name](*{**given, size: edge}.values())
        if torch.tensor(layer.kernel_size).prod() < 16:  # the rule does not look at so few
            continue
        graph = capture(layer.eval(), (torch.randn(2, *shape),)).graph
        [decided] = FftConvolution().find(graph, graph.calls())
        assert isinstance(decided, Match) == any(low <= edge <= high for low, high in found.cheaper), edge


# each example captures three layers
@settings(max_examples=settings.default.max_examples // 3)
@given(
    kind=st.sampled_from(sorted(LAYERS)), taps=st.integers(2, 40), size=st.integers(40, 300), other=st.integers(2, 99),
)  # fmt: skip
def test_the_formulas_give_what_is_counted(kind: str, taps: int, size: int, other: int):
    layer, shape = LAYERS[kind](taps, size)
    conv, circles = convolution(layer, *shape)
    assume(cut_of(circles) is None)
    for crossover in crossovers(conv, circles):
        number = other if crossover.size == "K" else size + other
        layer, shape = LAYERS[kind](*((number, size) if crossover.size == "K" else (taps, number)))
        assume(shape[-1] >= layer.kernel_size[-1])
        conv, circles = convolution(layer, *shape)
        periods = {f"M{i + 1}" if i else "M": circle.period for i, circle in enumerate(dict.fromkeys(circles))}
        if kind == "row":
            periods = {"M": circles[-1].period}
        numbers = {crossover.size: number, **periods}
        before, after = (side.subs({s: numbers[str(s)] for s in side.free_symbols})
                         for side in (crossover.before, crossover.after))  # fmt: skip
        assert before == costs.direct(conv, circles)
        assert float(after) == pytest.approx(costs.least(conv, circles, None))


def test_a_long_sequence_is_cut_into_blocks():
    conv, circles = convolution(nn.Conv1d(1, 1, 70, padding=5), 1, 40_000)
    [taps] = crossovers(conv, circles)  # so many sizes are not looked at
    assert taps.where == {"M": "the points of a block"}
    cut = cut_of(circles)
    assert cut is not None
    numbers = {"K": 70, "M": cut.period}
    after = taps.after.subs({s: numbers[str(s)] for s in taps.after.free_symbols})
    assert float(after) == pytest.approx(costs.least(conv, circles, cut))


def test_unequal_taps_and_sizes_have_no_crossover():
    conv, circles = convolution(nn.Conv2d(2, 2, (9, 8)), 2, 20, 21)
    assert crossovers(conv, circles) == []


def test_the_rank_up_to_which_two_steps_pay():
    layer = nn.Conv2d(6, 6, 7, padding=3, groups=6, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(6, 1, 7, 1) * torch.randn(6, 1, 1, 7))
    [offer] = offers_in(capture(layer.eval(), (torch.randn(2, 6, 12, 12),)).graph, [SeparateKernel()])
    [found] = offer.crossovers
    cost = 2 * 6 * 144
    assert (found.before, found.after, found.here) == (49 * cost, 14 * cost * symbol("R"), 1)
    assert found.cheaper == ((1, 3),)
    assert (found.before, found.after.subs(symbol("R"), 1)) == (offer.before.flops, offer.after.flops)
    assert str(found) == (
        "two convolutions take fewer operations up to R = 3 (of 1 to 7; here 1): 84672 against 24192*R"
    )


def test_offers_tell_it_once():
    torch.manual_seed(0)
    layers = [nn.Conv1d(4, 4, 129, padding=64, groups=4) for _ in range(2)]
    found = rewrite.offers(nn.Sequential(*layers).eval(), torch.randn(2, 4, 300), "fft-convolution", verify="off")
    assert len(found) == 2
    assert " ".join(str(found).split()).count("transforms take fewer operations from K = 25 on") == 1
    assert "2400*K against 20*M*log2(M) + 16*M + 32, M = fast_length(Max(K, floor(K/2) + 300))" in " ".join(
        str(found).split()
    )
    data = json.loads(json.dumps(found.to_dict()))["alternatives"][0]["crossovers"][0]
    assert (data["size"], data["before"], data["cheaper"]) == ("K", "2400*K", [[25, 512]])


@dataclass(frozen=True)
class Unsure(Scaled):
    def crossovers(self, match: Match) -> Sequence[Crossover]:
        raise ValueError("who knows")


def test_an_offer_stands_without():
    _, graph = chain(relu)
    assert offers_in(graph, [Scaled()]).offers[0].crossovers == ()
    found = offers_in(graph, [Unsure()])
    assert len(found) == 1
    assert [failure.reason for failure in found.failures] == ["crossovers raised ValueError: who knows"]
