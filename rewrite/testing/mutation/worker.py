"""The process that runs the tests: ``python -m rewrite.testing.mutation.worker FD`` with a job on its standard input.

pytest collects once; then each mutant has a forked process of its own, in which the code of one function is exchanged
and the tests that come to it are run until one fails. A first fork, without a mutant, tells which those are. Nothing
may have started a thread before, because a fork has only one.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest

from rewrite.testing.mutation.mutants import Source
from rewrite.testing.mutation.outcome import Fate, Outcome
from rewrite.testing.mutation.swapping import Functions

if TYPE_CHECKING:
    import ast
    from collections.abc import Callable, Iterable, Iterator

    from rewrite.driver import StepRun
    from rewrite.testing.mutation.mutants import Mutant

MEMORY = 8 << 30
"""Bytes that a mutant may take beyond what the process has already."""
PATIENCE = 10.0
"""How many times its own time a test may take with a mutant, and some seconds on top."""
BASELINE = 600.0
"""Seconds for a test without a mutant."""


@dataclass
class Run:
    """One test in a fork.

    Attributes:
        test: its place among the collected ones.
        failed: the first line of its failure, '' if it passed.
        rejections, raised: why verification said no, and what rules raised, while it ran.
        reached: the statements that it came to, module and number.
        seconds: processor time.
    """

    test: int
    failed: str = ""
    rejections: list[str] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    reached: list[tuple[str, int]] = field(default_factory=list)
    seconds: float = 0.0


class Loop:
    """A pytest plugin that runs the collected tests once for each mutant, each time in a fork.

    Args:
        sources: the modules.
        wanted: the mutants' names, in order.
        grace: seconds on top of what a test may take.
        tell: called with a JSON object for the baseline and for each mutant.
    """

    def __init__(self, sources: list[Source], wanted: list[str], grace: float, tell: Callable[[dict[str, Any]], None]):
        self.sources = {source.module: source for source in sources}
        mutants = {mutant.key: (mutant, tree) for source in sources for mutant, tree in source.mutants().items()}
        self.mutants = [mutants[key] for key in wanted]
        self.grace, self.tell = grace, tell
        self.current = Run(-1)
        self.reached: set[tuple[str, int]] = set()
        self.killers: dict[int, int] = {}

    def pytest_sessionstart(self) -> None:
        """Hypothesis draws the same examples each time and does not look for smaller ones."""
        try:
            import hypothesis
        except ImportError:
            return
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutation", hypothesis.settings(), phases=phases, database=None,
                                             derandomize=True, deadline=None)  # fmt: skip
        hypothesis.settings.load_profile("mutation")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the first failure of a test."""
        if report.failed and not self.current.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message if crash is not None else report.longreprtext.strip().rpartition("\n")[2]
            self.current.failed = message.partition("\n")[0][:300] or "failed"

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """The baseline, then every mutant."""
        if session.testsfailed:
            raise session.Interrupted("tests cannot be collected")
        functions = Functions(self.sources.values())
        # torch is needed from here on: tests that cannot be collected need not wait for it
        from rewrite.testing.mutation.warming import warm

        _hear_rejections(self)
        warm()
        gc.collect()
        gc.freeze()
        items = list(session.items)
        baseline = self._baseline(items, functions)
        if len(baseline) < len(items):
            self.tell({"error": f"{items[len(baseline)].nodeid} ends the process, or does not end"})
            return True
        passing = {run.test: run for run in baseline if not run.failed}
        failed = [items[run.test].nodeid for run in baseline if run.failed]
        seconds = sum(run.seconds for run in baseline)
        self.tell({"baseline": {"tests": len(passing), "failed": failed, "seconds": seconds}})
        for mutant, tree in self.mutants:
            outcome = self._examine(items, passing, functions, mutant, tree)
            self.tell({"outcome": {**asdict(outcome), "fate": outcome.fate.value}})
        return True

    def _baseline(self, items: list[pytest.Item], functions: Functions) -> list[Run]:
        def prepare() -> None:
            self.reached = functions.watch(self.sources.values())

        runs, _ = self._fork(items, dict.fromkeys(range(len(items)), BASELINE), prepare, stop=False)
        return runs

    def _examine(
        self, items: list[pytest.Item], passing: dict[int, Run], functions: Functions, mutant: Mutant, tree: ast.Module
    ) -> Outcome:
        place = (mutant.module, mutant.statement)
        chosen = [run for run in passing.values() if place in run.reached]
        if not chosen:
            return Outcome(mutant.key, Fate.UNREACHED)
        # what is quick and has killed much comes first
        chosen.sort(key=lambda run: ((run.seconds + 0.1) / (1 + self.killers.get(run.test, 0)), run.test))
        started = time.perf_counter()

        def prepare() -> None:
            functions.exchange(self.sources[mutant.module], tree, mutant.function)

        limits = {run.test: PATIENCE * run.seconds + self.grace for run in chosen}
        runs, ended = self._fork(items, limits, prepare, stop=True)
        fate, last, error = Fate.SURVIVED, -1, ""
        rejected = [run for run in runs if len(run.rejections) > len(passing[run.test].rejections)]
        raised = any(len(run.raised) > len(passing[run.test].raised) for run in runs)
        if runs and runs[-1].failed:
            fate, last, error = Fate.KILLED, runs[-1].test, runs[-1].failed
        elif not ended:
            fate, last, error = Fate.TIMEOUT, chosen[len(runs)].test, "does not end, or ends the process"
        elif rejected:
            fate, last, error = Fate.REJECTED, rejected[0].test, rejected[0].rejections[-1]
        if last >= 0:
            self.killers[last] = self.killers.get(last, 0) + 1
        test = items[last].nodeid if last >= 0 else ""
        seconds = round(time.perf_counter() - started, 2)
        return Outcome(mutant.key, fate, test, error, bool(rejected), raised, seconds)

    # -- the fork -----------------------------------------------------------------------------------------------------

    def _fork(
        self, items: list[pytest.Item], limits: dict[int, float], prepare: Callable[[], None], stop: bool
    ) -> tuple[list[Run], bool]:
        """Run tests in a fork; the runs that came to an end, and whether the fork did.

        Args:
            items: all tests.
            limits: those to run, in order, and how many seconds each may take.
            prepare: called in the fork.
            stop: at the first failure.
        """
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            try:
                with os.fdopen(writing, "w") as out:
                    prepare()
                    self._run(items, limits, stop, out)
            finally:
                os._exit(0)
        os.close(writing)
        runs: list[Run] = []
        for line in _lines(reading, [60 + 10 * limit for limit in limits.values()]):
            if line == "end":
                break
            given = json.loads(line)
            runs.append(Run(**{**given, "reached": [(module, number) for module, number in given["reached"]]}))
        else:
            os.kill(child, signal.SIGKILL)
            line = ""
        os.close(reading)
        os.waitpid(child, 0)
        return runs, line == "end"

    def _run(self, items: list[pytest.Item], limits: dict[int, float], stop: bool, out: TextIO) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.RLIM_INFINITY))
        order = list(limits)
        for test, following in zip(order, [*order[1:], None], strict=True):
            self.current = Run(test)
            self.reached.clear()
            began = time.process_time()
            # the processor's time, because a loaded machine makes all of them slow
            resource.setrlimit(resource.RLIMIT_CPU, (int(began + limits[test]) + 1, resource.RLIM_INFINITY))
            item, after = items[test], None if following is None else items[following]
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            self.current.seconds = time.process_time() - began
            self.current.reached = sorted(self.reached)
            print(json.dumps(asdict(self.current)), file=out, flush=True)
            if stop and self.current.failed:
                break
        print("end", file=out, flush=True)


def _lines(descriptor: int, limits: Iterable[float]) -> Iterator[str]:
    """The lines that come through a pipe, as long as each comes in its time, and none after the last limit but one."""
    buffer = b""
    for limit in (*limits, 60.0):
        until = time.monotonic() + limit
        while b"\n" not in buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
            chunk = os.read(descriptor, 1 << 20) if ready else b""
            if not chunk:
                return
            buffer += chunk
        line, _, buffer = buffer.partition(b"\n")
        yield line.decode()


def _hear_rejections(loop: Loop) -> None:
    """Let every driver tell of what it does not accept."""
    from rewrite.driver import StepRun

    reject = StepRun.reject

    def heard(self: StepRun, rule: Any, node: Any, reason: str, *more: Any, **named: Any) -> None:
        fails = "raised" in reason.partition(":")[0]
        (loop.current.raised if fails else loop.current.rejections).append(reason[:300])
        reject(self, rule, node, reason, *more, **named)

    StepRun.reject = heard  # type: ignore[method-assign]


def main() -> None:
    """Read the job, collect, run, tell."""
    job = json.load(sys.stdin)
    with os.fdopen(int(sys.argv[1]), "w") as out:

        def tell(said: dict[str, Any]) -> None:
            print(json.dumps(said), file=out, flush=True)

        loop = Loop([Source(**source) for source in job["sources"]], job["mutants"], job["grace"], tell)
        options = [
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "--capture=sys",
            "-q",
            "--basetemp",
            job["scratch"],
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
        ]  # Hypothesis is imported already
        code = pytest.main([*options, *job["options"], *job["tests"]], plugins=[loop])
    sys.exit(code if code != pytest.ExitCode.NO_TESTS_COLLECTED else 0)


if __name__ == "__main__":
    main()
