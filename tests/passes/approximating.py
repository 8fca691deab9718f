"""What the tests of approximations of layers share: options fitted to data, and what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewrite.approximation import Approximation, Option
from rewrite.approximation.sites import find_sites, replacement
from rewrite.fragment import Fragment
from rewrite.graph import Graph
from rewrite.rule import Match
from rewrite.trace import capture


@dataclass(frozen=True)
class Offered:
    """An option of a layer, and the program that it is."""

    option: Option
    graph: Graph
    match: Match
    fragment: Fragment

    @property
    def form(self) -> str:
        return self.option.text.split()[0]

    def __call__(self, x: Tensor) -> Tensor:
        values = {node: x if node.op == "placeholder" else self.graph.value(node) for node in self.fragment.inputs}
        return self.fragment.evaluate(values)[0]

    @property
    def weights(self) -> list[Tensor]:
        """The kernels in the order of the program, without the bias."""
        return [tensor for name, tensor in self.fragment.constants.items() if not name.endswith("bias")]


def offered(layer: nn.Module, rule: Approximation, *batches: Tensor) -> list[Offered]:
    """All that a rule offers for a model of one layer, fitted to batches."""
    graph = capture(layer.eval(), (batches[0],)).graph
    [site], misses = find_sites(graph, [rule], frozenset())
    assert not misses
    for x in batches:
        with torch.no_grad():
            given = {True: x, False: layer(x)}
        for watch in site.watches.values():
            watch.statistic.add(*(given[node.op == "placeholder"] for node in watch.nodes))
    seen = {name: watch.statistic for name, watch in site.watches.items()}
    return [Offered(option, graph, site.match, replacement(graph, site.match, option))
            for option in rule.options(graph, site.match, seen)]  # fmt: skip


def by_form(found: list[Offered]) -> Iterator[tuple[str, list[Offered]]]:
    """The options of each form, in the order in which they are offered."""
    for form in dict.fromkeys(each.form for each in found):
        yield form, [each for each in found if each.form == form]


def relative(found: Tensor, wanted: Tensor) -> float:
    """The root of the energy of the difference over that of what is wanted."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())


def smooth(*shape: int, window: int = 5) -> Tensor:
    """Noise whose neighbours are alike, as in images, with channels that are correlated."""
    n, channels, height, width = shape
    x = torch.randn(n, channels, height + window - 1, width + window - 1, dtype=torch.float64)
    x = F.avg_pool2d(x, window, 1) * window
    mix = torch.randn(channels, channels, dtype=torch.float64) * torch.logspace(0, -1.5, channels, dtype=torch.float64)
    return torch.einsum("nchw,oc->nohw", x, mix)
