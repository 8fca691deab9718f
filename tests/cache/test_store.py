"""The cache as `optimize` uses it: hits are right, changes are misses, and nothing that goes wrong is an error."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
import rewrite
from rewrite import load, optimize
from rewrite.cache import ProgramCache, default_cache
from rewrite.cache.keys import Key
from rewrite.compiler import Compiler
from rewrite.recipe import Recipe
from rewrite.result import OptimizedModule
from tests.cache import nets
from tests.cache.nets import small
from tests.result.programs import close

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own for each test, where the cache is on."""
    monkeypatch.setenv("TORCH_REWRITE_CACHE", "1")
    monkeypatch.setenv("TORCH_REWRITE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def eager(model: nn.Module, *args: Any, **kwargs: Any) -> OptimizedModule:
    return optimize(model, *(args or (X,)), lower="eager", **kwargs)


def entries(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.rewrite"))


def is_hit(result: OptimizedModule) -> bool:
    assert ("cache" in result.report.time) != ("capture" in result.report.time)
    assert ("cache" in result.report.time) == any("restored from the cache" in note for note in result.report.notes)
    return "cache" in result.report.time


def reasons_of(event: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as the reason of events of a name."""
    return [record.__dict__["data"]["reason"] for record in caplog.records if record.__dict__.get("event") == event]


# -- hits -------------------------------------------------------------------------------------------------------------


def test_the_second_time_is_a_hit(cache: Path) -> None:
    first, second = eager(small()), eager(small())
    assert (is_hit(first), is_hit(second)) == (False, True)
    assert len(entries(cache)) == 1
    assert gc.isenabled()
    for x in (X, torch.randn(5, 3, 6, 6)):
        assert torch.equal(first(x), second(x))
    assert str(first.graph_module.code) == str(second.graph_module.code)
    assert str(first.report.diff()) == str(second.report.diff())
    assert first.report.diff()
    assert first.plan == second.plan
    assert second.report.model_verdict.accepted


def test_other_weights_are_a_hit_and_right(cache: Path) -> None:
    eager(small(0))
    model = small(5)
    fast = eager(model)
    assert is_hit(fast)
    assert close(fast(X), model(X))
    with torch.no_grad():
        model.norm.weight.mul_(2)
    assert close(fast(X), model(X))
    assert list(fast.state_dict()) == list(model.state_dict())


def test_other_calls_have_entries_of_their_own(cache: Path) -> None:
    model = small()
    fast = eager(model)
    calls: list[tuple[Any, ...]] = [(torch.randn(2, 3, 9, 9),), (X, 2.0)]
    for args in calls:
        fast(*args)
    assert len(entries(cache)) == 3
    again = eager(small())
    for args in calls:
        assert torch.equal(again(*args), fast(*args))
    assert all("cache" in special.program.time for special in again._engine._snapshot.weights)


def test_one_row_is_looked_at_again(cache: Path) -> None:
    eager(small())
    fast = eager(small())
    assert is_hit(fast)
    assert torch.equal(fast(X[:1]), eager(small(), cache=False)(X[:1]))


def test_a_restored_program_can_be_saved_and_released(tmp_path: Path) -> None:
    model = small()
    eager(model)
    fast = eager(model)
    assert is_hit(fast)
    fast.save(tmp_path / "net")
    assert torch.equal(load(tmp_path / "net", lower="eager")(X), fast(X))
    assert torch.equal(load(tmp_path / "net", model, lower="eager")(X), fast(X))
    free = eager(model, release=True)
    assert is_hit(free)
    assert torch.equal(free(X), fast(X))


def test_methods_and_unverified_runs(cache: Path) -> None:
    for options in ({"method": "features"}, {"verify": "off"}):
        model = small()
        first, second = eager(model, **options), eager(model, **options)
        assert (is_hit(first), is_hit(second)) == (False, True)
        assert torch.equal(first(X), second(X))
    assert second.report.model_verdict is None


# -- misses -----------------------------------------------------------------------------------------------------------


def test_another_run_is_a_miss() -> None:
    eager(small())
    assert not is_hit(eager(small(), exclude="norm"))


def test_another_attribute_is_a_miss() -> None:
    eager(small())
    model = small()
    model.eps = 0.75
    fast = eager(model)
    assert not is_hit(fast)
    assert close(fast(X), model(X))


def test_an_edited_source_is_a_miss(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "edited_net.py"
    source.write_text("from tests.cache.nets import Small\nclass Net(Small):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import edited_net  # type: ignore[import-not-found]

    monkeypatch.delitem(sys.modules, "edited_net")
    monkeypatch.setitem(sys.modules, "edited_net", edited_net)
    eager(small(kind=edited_net.Net))
    assert is_hit(eager(small(kind=edited_net.Net)))
    source.write_text(source.read_text() + "# a comment\n")
    assert not is_hit(eager(small(kind=edited_net.Net)))
    assert is_hit(eager(small(kind=edited_net.Net))), "and the entry is that of the new source"
    assert len(entries(cache)) == 1


class Noisy(nets.Small):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + torch.rand(())


class Tabled(nets.Small):
    """A table of vectors that no module registers."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = [nn.Embedding(10, 4)]

    def forward(self, i: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.tables[0](i)).relu()


def test_tensors_that_are_no_weights_of_the_model() -> None:
    model, rows = small(kind=Tabled), torch.tensor([[0, 1, 2], [0, 1, 2]])
    eager(model, rows)
    assert is_hit(eager(small(kind=Tabled), rows))
    with torch.no_grad():
        model.tables[0].weight[5:] += 10  # type: ignore[index, union-attr]
    fast = eager(model, rows)
    assert not is_hit(fast)
    assert close(fast(rows + 7), model(rows + 7))


def test_what_is_switched_off_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eager(small(), cache=False)
    monkeypatch.setenv("TORCH_REWRITE_CACHE", "0")
    eager(small())
    assert not cache.exists()


def test_what_is_not_kept(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    from rewrite.listener import Listener

    with caplog.at_level(logging.INFO, "rewrite"):
        plan = eager(small(), listeners=[Listener()]).plan
        eager(small(), plan=plan)
        eager(small(), pipeline=nets.MaximumOfValues())
        hooked = small()
        hooked.register_forward_hook(lambda *_: None)
        eager(hooked)
        eager(small(kind=Noisy))
    assert not entries(cache)
    reasons = reasons_of("cache-off", caplog)
    assert len(reasons) == 5
    assert "listeners" in reasons[0]
    assert "a plan decides what is done" in reasons[1]
    assert "'maximum-of-values' holds for the present weights only" in reasons[2]
    assert "has hooks" in reasons[3]
    assert "draws random numbers" in reasons[4]


class Twice(nets.Small):
    """The same tensors as `Small`, and another function."""

    def forward(self, x: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, scale, shift=shift)


class Wide(nets.Small):
    def __init__(self) -> None:
        super().__init__(channels=6)


class Clamped(nets.Small):
    """The same as `Small` on inputs of the size of the example."""

    def forward(self, x: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Tensor:
        return super().forward(x, scale, shift=shift).clamp(-9, 9)


class Fewer(nets.Small):
    def __init__(self) -> None:
        super().__init__()
        del self.offset

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def one_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """One key for whatever there is."""
    monkeypatch.setattr("rewrite.cache.store.key_of", lambda *args: Key("same", "same", ("tests.cache.nets",)))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Twice, "CaptureError: the graph of Twice is not what the first call computes"),
        (Wide, r"ArtifactError: 'conv.weight' is float32\[6, 3, 3, 3\] in the model"),
        (Fewer, "ArtifactError: 'offset' is nothing in the model"),
        (Clamped, "CaptureError: the graph is not what Clamped computes for inputs 64 times as large"),
    ],
    ids=["twice", "wide", "fewer", "clamped"],
)
def test_an_entry_of_another_model_is_found_out(
    kind: type[nn.Module], words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a key may not see: the checks of a fresh capture have the last word."""
    one_key(monkeypatch)
    eager(small())
    model = small(kind=kind)
    assert close(small(kind=Clamped)(X), small()(X)), "the example alone does not tell"
    with caplog.at_level(logging.INFO, "rewrite"):
        fast = eager(model)
    assert not is_hit(fast)
    assert close(fast(X), model(X))
    (reason,) = reasons_of("cache-miss", caplog)
    assert re.search(words, reason), reason
    assert is_hit(eager(small(kind=kind))), "the entry was replaced"


class RowByRow(nets.Small):
    """The same as `Small` on a batch of more than one."""

    def forward(self, x: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Tensor:
        y = super().forward(x, scale, shift=shift)
        return y + 1 if x.shape[0] == 1 else y


def test_an_entry_that_is_wrong_for_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    one_key(monkeypatch)
    eager(small())
    model = small(kind=RowByRow)
    fast = eager(model)
    assert is_hit(fast)
    monkeypatch.undo()
    assert close(fast(X), model(X))
    assert close(fast(X[:1]), model(X[:1]))


class Picky(nets.Small):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        torch._assert(bool((x.abs() < 9).all()) if not torch.compiler.is_compiling() else True, "too large")
        return super().forward(x)


def test_a_model_that_takes_no_large_inputs() -> None:
    eager(small(kind=Picky))
    assert is_hit(eager(small(kind=Picky)))


def test_a_rewrite_that_is_wrong_for_the_model_is_found_out(cache: Path) -> None:
    from rewrite.artifact.container import packed, unpacked

    eager(small())
    (path,) = entries(cache)
    members = unpacked(path.read_bytes(), "it")
    data = json.loads(members["programs.json"])
    nodes = data["programs"][0]["graphs"]["graphs"]["rewritten"]["nodes"]
    next(node for node in nodes if node["target"] == "aten.leaky_relu.default")["args"][1] = 0.5
    path.write_bytes(packed({**members, "programs.json": json.dumps(data).encode()}, {}))
    model = small()
    fast = eager(model)
    assert not is_hit(fast)
    assert close(fast(X), model(X))


# -- what goes wrong --------------------------------------------------------------------------------------------------


DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda data: b"",
    lambda data: data[: len(data) // 2],
    lambda data: data[:500] + b"x" + data[501:],
    lambda data: b"something else",
    lambda data: data.replace(b'"format": 1', b'"format": 7'),
]


def test_a_damaged_entry_is_a_miss(cache: Path) -> None:
    eager(small())
    (path,) = entries(cache)
    good = path.read_bytes()
    for damage in DAMAGES:
        path.write_bytes(damage(good))
        assert ProgramCache(cache).entry(small(), Recipe(passes.default_pipeline()), (X,), {}).read() is None
    assert not is_hit(eager(small()))
    assert is_hit(eager(small()))


def test_a_directory_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file")
    model = small()
    assert close(eager(model)(X), model(X))


def test_the_oldest_entries_are_dropped(cache: Path) -> None:
    recipe = Recipe(passes.default_pipeline())
    model = small()
    program = Compiler(model, recipe).compile((X,), {})
    probe = ProgramCache(cache / "probe").entry(model, recipe, (X,), {})
    probe.store(model, program)
    size = probe.path.stat().st_size
    bounded = ProgramCache(cache, limit=int(3.5 * size))
    made = [bounded.entry(model, recipe, (X[:, :, :rows],), {}) for rows in (3, 4, 5, 6)]
    for age, entry in enumerate(made[:3]):
        entry.store(model, program)
        os.utime(entry.path, ns=(age + 1, age + 1))
    assert made[0].read() is not None, "used once more"
    made[3].store(model, program)
    assert [entry.path.exists() for entry in made] == [True, False, True, True]
    older = cache / "programs-0" / "a.rewrite"
    foreign = [cache / "programs-0" / "a.txt", cache / "b.rewrite"]
    older.parent.mkdir()
    for path in (older, *foreign):
        path.write_bytes(b"")
    os.utime(older, ns=(1, 1))
    ProgramCache(cache, limit=0).entry(model, recipe, (X,), {}).store(model, program)
    assert not any(entry.path.exists() for entry in made)
    assert not older.exists(), "of another format"
    assert all(path.exists() for path in foreign)


def test_writers_and_readers_at_once(cache: Path) -> None:
    recipe, model = Recipe(passes.default_pipeline()), small()
    program = Compiler(model, recipe).compile((X,), {})
    entry = ProgramCache(cache).entry(model, recipe, (X,), {})
    found: list[Any] = []
    start = threading.Barrier(4)

    def work(write: bool) -> None:
        start.wait()
        for _ in range(10):
            if write:
                entry.store(model, program)
            else:
                found.append(entry.read())

    threads = [threading.Thread(target=work, args=(index < 2,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert entry.read() is not None
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [entry.path.name], "nothing is left over"


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_REWRITE_CACHE_DIR")
    found = default_cache()
    assert found is not None
    assert found.directory.parts[-1] == "torch_rewrite"


# -- processes --------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
from rewrite import optimize
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    def forward(self, x):
        return self.norm(self.conv(x)).relu()
torch.manual_seed(int(sys.argv[1]))
model, x = Net().eval(), torch.randn(2, 3, 6, 6)
with torch.no_grad():
    model.norm.running_var.uniform_(0.5, 2)
    model.norm.running_mean.normal_()
    fast = optimize(model, x, lower="eager")
    torch.testing.assert_close(fast(x), model(x))
print(sys.argv[1], "hit" if "cache" in fast.report.time else "miss", flush=True)
"""

AT_ONCE = """
import os, runpy, sys
import rewrite  # once for all
children = []
for path, seed in zip(sys.argv[1::2], sys.argv[2::2]):
    children.append(os.fork())
    if not children[-1]:
        sys.argv = [path, seed]
        runpy.run_path(path, run_name="__main__")
        os._exit(0)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def test_processes_share_programs(cache: Path, tmp_path: Path) -> None:
    """Two that begin at once, then a third, and beside it one whose script has another class of that name."""
    script, other = tmp_path / "script.py", tmp_path / "other.py"
    script.write_text(SCRIPT)
    other.write_text(SCRIPT.replace(".relu()", ".tanh()"))
    root = Path(rewrite.__file__).parent.parent

    def said(*runs: tuple[Path, int]) -> list[str]:
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", AT_ONCE, *(str(each) for run in runs for each in run)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return sorted(done.stdout.splitlines())

    assert {"1 miss", "2 miss"} & {*said((script, 1), (script, 2))}
    assert len(entries(cache)) == 1
    assert said((script, 3), (other, 4)) == ["3 hit", "4 miss"]
