"""What other compilers leave unused: exact matches of this project that they do not make of the same fragment.

    python -m benchmarks.unused [model ...]

Each match of the default pipeline that lowers the number or the arithmetic of convolutions and matrix products is cut
out of its network as a module of its own, with its own weights, which is the easiest case for anyone. A peer has left
it unused when its optimized program of that module has more contractions, or more arithmetic in them, than the
replacement. Equal fragments are tried once. Matches that only save pointwise work are not compared, because what is
fused where cannot be counted alike. Prints a table and writes ``results/unused.json``.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from benchmarks import harness
from benchmarks.corpus import networks
from benchmarks.peers import Contractions, available
from passes import default_pipeline
from rewrite.driver import Driver
from rewrite.flops import Sizes, flops
from rewrite.fragment import Fragment, extract
from rewrite.gain import Work, work
from rewrite.listener import Listener
from rewrite.ops import Convolution, Linear, view
from rewrite.trace import capture
from rewrite.verify import MatchVerifier

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.fx import Node

    from benchmarks.peers import Peer
    from rewrite.driver import Commit
    from rewrite.graph import Graph
    from rewrite.rule import Match

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "mv", "dot")
_ROUNDING = 1.001  # shapes are whole numbers; this only forgives a division


@dataclass
class Found:
    """A match with both sides.

    Attributes:
        rule, module, source: where it is.
        old: the fragment, as it was before.
        values: what its constant boundary nodes hold.
        before, after: contractions of both sides.
        saved: work of the old side less that of the new.
    """

    rule: str
    module: str
    source: str
    old: Fragment
    values: dict[Node, Any]
    before: Contractions
    after: Contractions
    saved: Work


@dataclass
class Collector(Listener):
    """Remembers the matches that are made and save contractions; counts the others."""

    graph: Graph
    found: list[Found] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    _pending: tuple[Fragment, dict[Node, Any], Contractions, Work] | None = None

    def matched(self, match: Match) -> None:
        """Keep the old side: soon its nodes are gone."""
        sizes, old = Sizes(self.graph), extract(match)
        live = [node for node in match.nodes if not self.graph.is_constant(node)]
        values = {node: self.graph.value(node) for node in match.inputs if self.graph.is_constant(node)}
        self._pending = old, values, contractions(live, sizes), work(live, sizes)

    def committed(self, commit: Commit) -> None:
        """Compare it with what took its place."""
        assert self._pending is not None
        old, values, before, cost = self._pending
        sizes = Sizes(self.graph)
        made = [node for node in self.graph.calls() if node.name in commit.made and not self.graph.is_constant(node)]
        after, left = contractions(made, sizes), work(made, sizes)
        if after.calls >= before.calls and after.flops >= before.flops:
            self.others[commit.rule] += 1
            return
        saved = Work(cost.flops - left.flops, cost.bytes - left.bytes, cost.seconds - left.seconds)
        self.found.append(Found(commit.rule, commit.module, commit.source, old, values, before, after, saved))


def contractions(nodes: Iterable[Node], sizes: Sizes) -> Contractions:
    """The convolutions and matrix products among operator nodes."""
    total = Contractions()
    for node in nodes:
        name = node.target._opname if isinstance(node.target, torch._ops.OpOverload) else ""
        if isinstance(view(node), (Convolution, Linear)) or name in _PRODUCTS:
            total += Contractions(1, flops(node, sizes))
    return total


def module_of(found: Found, graph: Graph) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The old side as a module over its varying inputs, for one sample, and random inputs for it."""
    sizes = Sizes(graph)
    root = nn.Module()
    program = fx.Graph()
    mapping: dict[Node, Node] = {}
    inputs: list[Tensor] = []
    constants = {found.old.inputs[node]: value for node, value in found.values.items()}
    for node, stand_in in found.old.inputs.items():
        if stand_in in constants:
            name = f"weight_{len(mapping)}"
            root.register_buffer(name, constants[stand_in].detach().clone())
            mapping[stand_in] = program.get_attr(name)
        else:
            mapping[stand_in] = program.placeholder(f"input_{len(mapping)}")
            inputs.append(torch.randn(sizes.shape(node), dtype=node.meta["val"].dtype))
    for node in found.old.fx.nodes:
        if node.op == "call_function":
            mapping[node] = program.node_copy(node, mapping.__getitem__)
    program.output(tuple(mapping[node] for node in found.old.outputs))
    return fx.GraphModule(root, program).eval(), tuple(inputs)


def collect(model: nn.Module, x: tuple[Any, ...]) -> Collector:
    """The matches of the default pipeline over a model."""
    graph = capture(model, x).graph
    collector = Collector(graph)
    Driver(graph, MatchVerifier(), [collector]).run(default_pipeline())
    return collector


def left_unused(name: str, collector: Collector, peers: dict[str, Peer], known: dict[Any, Any]) -> list[dict[str, Any]]:
    """One row for each match that saves contractions."""
    rows = []
    for found in collector.found:
        key = found.old.key()
        if key not in known:
            module, inputs = module_of(found, collector.graph)
            known[key] = {peer: _tried(call, module, inputs) for peer, call in peers.items()}
        unused = [
            peer for peer, made in known[key].items() if isinstance(made, Contractions) and _worse(made, found.after)
        ]
        peer_results = {
            peer: asdict(made) if isinstance(made, Contractions) else made for peer, made in known[key].items()
        }
        rows.append({
            "model": name, "rule": found.rule, "module": found.module, "source": found.source,
            "before": asdict(found.before), "after": asdict(found.after), "peers": peer_results, "unused_by": unused,
            "saved_flops": found.saved.flops, "saved_bytes": found.saved.bytes,
        })  # fmt: skip
    return rows


def _tried(peer: Peer, module: nn.Module, inputs: tuple[Tensor, ...]) -> Contractions | str:
    try:
        return peer(module, inputs)
    except Exception as error:  # a peer that cannot take a fragment is said to, and not to have left it unused
        return f"{type(error).__name__}: {error}"[:200]


def _worse(made: Contractions, ours: Contractions) -> bool:
    if made.flops > _ROUNDING * ours.flops:
        return True
    return made.calls > ours.calls and _ROUNDING * made.flops >= ours.flops


def table(rows: list[dict[str, Any]], peers: Iterable[str]) -> str:
    """Matches by rule, and how many of them each peer leaves unused."""
    lines = ["rule".ljust(28) + "matches".rjust(9) + "".join(peer.rjust(14) for peer in peers) + "by all".rjust(9)
             + "GFLOP saved".rjust(14) + "MB saved".rjust(10)]  # fmt: skip
    names = list(peers)
    for rule in [*sorted({row["rule"] for row in rows}), ""]:
        mine = [row for row in rows if rule in ("", row["rule"])]
        everyone = [row for row in mine if len(row["unused_by"]) == len(names)]
        counts = "".join(str(sum(peer in row["unused_by"] for row in mine)).rjust(14) for peer in names)
        saved = f"{sum(row['saved_flops'] for row in everyone) / 1e9:14.3f}"
        moved = f"{sum(row['saved_bytes'] for row in everyone) / 1e6:10.1f}"
        lines.append((rule or "all").ljust(28) + str(len(mine)).rjust(9) + counts + str(len(everyone)).rjust(9)
                     + saved + moved)  # fmt: skip
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Collect, ask the peers, print, save."""
    peers = available()
    print(f"peers: {', '.join(peers)}", flush=True)
    known: dict[Any, Any] = {}
    rows: list[dict[str, Any]] = []
    for name, model, inputs in networks(names):
        collector = collect(model, inputs)
        mine = left_unused(name, collector, peers, known)
        rows += mine
        by_all = sum(len(row["unused_by"]) == len(peers) for row in mine)
        others = sum(collector.others.values())
        print(f"{name}: {len(mine)} matches, {by_all} left unused by all; {others} others", flush=True)
    print(table(rows, peers))
    print(harness.save("unused", rows))


if __name__ == "__main__":
    main(sys.argv[1:])
