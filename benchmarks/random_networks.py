"""Every rule on thousands of random networks: what is rewritten, what is refused, and that nothing is ever wrong.

    python -m benchmarks.random_networks [--examples 5000] [--processes 2] [--seed 0]
    python -m benchmarks.random_networks --again        # those of the record that failed; the others stay counted
    python -m benchmarks.random_networks --more --seed 2 --examples 1000        # others, besides those of the record

Each network of :func:`rewrite.testing.networks.networks` is captured once. Every step that pipelines can name runs over
it alone, choices included, and then the default pipeline; each result is compared with the model itself, element by
element, in float64 and in its own dtype. A failure prints the network as code after Hypothesis has made it small.
Writes ``results/random_networks.json``, by rule: rewrites, refusals with a reason, and operators of the kinds that the
rule rewrites which it left as they were without one, because they lack what its definition says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, seed, settings

import passes
from benchmarks import harness
from rewrite.driver import Driver
from rewrite.pipeline import Pipeline, rules_of
from rewrite.rule import Fidelity
from rewrite.testing.agreement import disagreement
from rewrite.testing.networks import networks
from rewrite.trace import capture
from rewrite.verify import MatchVerifier

if TYPE_CHECKING:
    from rewrite.testing.networks import Network

ENOUGH_REWRITES, ENOUGH_REFUSALS = 50, 20
SHARD = 250  # networks that one process draws: what a failure keeps from being tried
MOST_SHARDS = 1_000  # of one seed


@dataclass
class Tally:
    """What was done, by rule.

    Attributes:
        networks: how many were tried.
        commits, refusals: rewrites that were made, and places where a rule gave a reason not to.
        anchors: by rule and operator, the rewrites that were made at it.
        left: by rule and operator, how often it was looked at and neither rewritten nor refused.
    """

    networks: int = 0
    commits: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    anchors: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Count another tally's too."""
        self.networks += other.networks
        for mine, theirs in zip(self.counters, other.counters, strict=True):
            mine.update(theirs)

    @property
    def counters(self) -> tuple[Counter[str], ...]:
        """All of them, in the order of the fields."""
        return self.commits, self.refusals, self.anchors, self.left

    def left_by(self, rule: str) -> int:
        """What the rule left without a reason, of operators at which it has rewritten something."""
        return sum(count for key, count in self.left.items() if key.split()[0] == rule and self.anchors[key])


def pipelines() -> list[Pipeline]:
    """Every exact step alone with its defaults, where more is asked for also with that, and the default pipeline."""
    steps = [step() for step in passes.STEPS]
    exact = [step for step in steps if all(rule.fidelity.exact for rule in rules_of(step))]
    asked = [passes.ReductionAlgebra(finite=True), passes.MeanOfUniformGroupNorm(finite=True),
             passes.PatchesAsLinear(pointwise=True), passes.FftConvolution(saving=0)]  # fmt: skip
    return [*(Pipeline((step,)) for step in (*exact, *asked)), passes.default_pipeline()]


def attempt(network: Network, tally: Tally) -> None:
    """Run everything over one network.

    Raises:
        AssertionError: a match was rejected, or a result differs from the model.
    """
    model, inputs = network.module(), network.inputs()
    captured = capture(model, inputs).graph
    for pipeline in pipelines():
        graph = captured.copy()
        targets = {node.name: node.target for node in graph.calls()}
        records = Driver(graph, MatchVerifier()).run(pipeline)
        for record in records:
            # of a batch of none, fixed by a mean over it, every value may be NaN on both sides
            rejected = [found for found in record.rejections if network.batch or "shows nothing" not in found.reason]
            assert not rejected, f"{pipeline}: {rejected[0].rule} was rejected: {rejected[0].reason}"
            tally.commits.update(commit.rule for commit in record.commits)
            tally.refusals.update(refused.rule for refused in record.refused)
            tally.anchors.update(f"{commit.rule} {targets.get(commit.node, '')}" for commit in record.commits)
            if len(pipeline.steps) == 1:
                refused = {(refused.rule, refused.node) for refused in record.refused}
                tally.left.update(f"{rule.name} {node.target}" for rule in rules_of(pipeline.steps[0])
                                  for node in graph.calls() if (rule.name, node.name) not in refused)  # fmt: skip
        if any(record.commits for record in records):
            graph.check()
            rules = [rule for step in pipeline for rule in rules_of(step)]
            loosest = Fidelity.NORMWISE if any(r.fidelity is Fidelity.NORMWISE for r in rules) else Fidelity.ELEMENTWISE
            rounds_weights = any(rule.rounds_weights for rule in rules)
            different = disagreement(model, captured, graph, inputs, loosest, rounds_weights)
            assert not different or "shows nothing" in different, f"{pipeline}: {different}"
    tally.networks += 1


def shard(examples: int, number: int) -> Tally:
    """So many networks, chosen by a number."""
    tally = Tally()

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, print_blob=False,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(networks(longest=8))
    def run(network: Network) -> None:
        attempt(network, tally)

    run()
    return tally


def in_own_process(number: int) -> Tally | None:
    """A shard's tally, or None where a network failed, which is printed once it is small."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tally.json"
        command = [sys.executable, "-m", "benchmarks.random_networks", "--shard", str(number), str(path)]
        # bfloat16 convolutions of oneDNN read memory that nobody wrote where the processor has AMX
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ran.returncode:
            print(f"shard {number}:\n{ran.stdout}\n{ran.stderr[-20_000:]}", flush=True)
            return None
        networks, *counters = json.loads(path.read_text())
    print(f"shard {number}: {networks} networks", flush=True)
    return Tally(networks, *map(Counter, counters))


def table(rows: list[dict[str, int | str]]) -> str:
    """One line a rule; a star marks what was seen less often than it should be."""
    counted = ("commits", "refusals", "left")
    lines = ["rule".ljust(32) + "rewrites".rjust(10) + "refusals".rjust(10) + "left".rjust(10)]
    for row in rows:
        commits, refusals, left = (int(row[name]) for name in counted)
        few = commits < ENOUGH_REWRITES or refusals + left < ENOUGH_REFUSALS
        lines.append(str(row["rule"]).ljust(32) + "".join(str(row[name]).rjust(10) for name in counted)
                     + (" *" if few else ""))  # fmt: skip
    return "\n".join(lines)


def recorded() -> dict[str, dict[str, Any]]:
    """The rows of the record by rule; that of the whole run has no name."""
    rows = json.loads((harness.RESULTS / "random_networks.json").read_text())["rows"]
    return {row.get("rule", ""): row for row in rows}


def _row(name: str, tally: Tally, before: dict[str, Any]) -> dict[str, int | str]:
    counts = {"commits": tally.commits[name], "refusals": tally.refusals[name], "left": tally.left_by(name)}
    return {"rule": name, **{key: before.get(key, 0) + count for key, count in counts.items()}}


def main(arguments: list[str]) -> None:
    """Run the shards in processes of their own, add up, print, save: with the shards that failed, if any did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=5000, help=f"rounded up to a multiple of {SHARD}")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="only the shards of the record that failed")
    parser.add_argument("--more", action="store_true", help="what is recorded stays counted")
    parser.add_argument("--shard", nargs=2, help=argparse.SUPPRESS)
    given_ = parser.parse_args(arguments)
    if given_.shard is not None:
        number, path = given_.shard
        tally = shard(SHARD, int(number))
        Path(path).write_text(json.dumps([tally.networks, *tally.counters]))
        return
    started, total, before = time.perf_counter(), Tally(), recorded() if given_.again or given_.more else {}
    whole = before.get("", {"networks": 0, "seeds": [], "failed": []})
    first, count = given_.seed * MOST_SHARDS, -(-given_.examples // SHARD)
    shards = whole["failed"] if given_.again else range(first, first + count)
    with ThreadPoolExecutor(given_.processes) as pool:
        tallies = dict(zip(shards, pool.map(in_own_process, shards), strict=True))
    for tally in tallies.values():
        total.add(tally or Tally())
    failed = [number for number, tally in tallies.items() if tally is None]
    whole = {
        "networks": whole["networks"] + total.networks,
        "seeds": sorted({*whole["seeds"], *(number // MOST_SHARDS for number in shards)}),
        "failed": failed if given_.again else whole["failed"] + failed,
    }
    names = sorted({rule.name for pipeline in pipelines() for step in pipeline for rule in rules_of(step)})
    rows = [_row(name, total, before.get(name, {})) for name in names]
    print(table(rows))
    print(f"{total.networks} networks in {time.perf_counter() - started:.0f} s")
    print(harness.save("random_networks", [whole, *rows]))
    if failed:
        raise SystemExit(f"shards {failed} have a network that failed; it is printed above")


if __name__ == "__main__":
    main(sys.argv[1:])
