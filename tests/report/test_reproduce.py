"""Scripts of single rewrites: they run without this project, and tell right rules from wrong ones.

The scripts run in another process that cannot import ``rewrite``, all in one because importing torch takes long.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import operator
import os
import re
import subprocess
import sys
import typing
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from passes import SeparateKernel, TrimKernel
from rewrite.driver import Commit, Driver, Rejection
from rewrite.errors import InputError
from rewrite.report import Report
from rewrite.rule import Fidelity
from rewrite.source import RESERVED
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests.corpus import randomize
from tests.golden import models
from tests.golden.run import report_of
from tests.programs import Program, aten
from tests.report.records import report as report_by_hand
from tests.verify.rules import FoldNorm, replacing

CHANNELS = {"ConvNet": 3, "RepVGG": 8, "MobileOne": 8, "FastViTMixer": 8}

RUNNER = """
import io, json, os, runpy, sys
from contextlib import redirect_stdout
sys.modules.update(rewrite=None, passes=None, codegen=None)  # importing them raises
for asked in sys.stdin:
    results = []
    for path in json.loads(asked):
        said = io.StringIO()
        os.chdir(os.path.dirname(path))
        with redirect_stdout(said):
            try:
                runpy.run_path(path, run_name="__main__")
                code = None
            except SystemExit as end:
                code = end.code
            except Exception as error:
                code = repr(error)
        results.append([code, said.getvalue()])
    print(json.dumps(results), flush=True)
"""


@functools.cache
def runner() -> subprocess.Popen[str]:
    """The process that runs all scripts; its errors are shown where they belong to a test."""
    command = [sys.executable, "-W", "error", "-c", RUNNER]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    """No process is left behind."""
    yield
    if runner.cache_info().currsize:
        runner().communicate()
        runner.cache_clear()


def run_all(folder: Path, scripts: list[str]) -> list[tuple[Any, str]]:
    """The exit status and the output of each script."""
    paths = []
    for i, text in enumerate(scripts):
        paths.append(folder / f"script_{i}.py")
        paths[-1].write_text(text)
    process = runner()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([*map(str, paths)]) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f"it ended with status {process.wait()}"
    return [(code, said) for code, said in json.loads(answer)]


def scripts_of(report: Report, each: bool = False) -> dict[str, str]:
    """A script for the first rewrite of each rule, or for each rewrite."""
    found: dict[str, str] = {}
    for record in report.records:
        for commit in record.commits:
            found.setdefault(f"{commit.rule}{commit.number if each else ''}", report.reproduce(commit.number))
    return found


def tried(graph: Any, rule: Any, verified: bool = False) -> Report:
    """What one rule does to a graph; without verification unless asked for."""
    records = Driver(graph, MatchVerifier() if verified else None).run([rule])
    return report_by_hand(records=records)


# -- right rules ------------------------------------------------------------------------------------------------------


def test_scripts_of_every_rule_that_rewrites_the_golden_models(tmp_path):
    scripts: dict[str, str] = {}
    for name, channels in CHANNELS.items():
        x = torch.randn(2, channels, 8, 8)
        report = report_of(randomize(getattr(models, name)().eval(), inputs=x), x)
        scripts.update((f"{name} {rule}", text) for rule, text in scripts_of(report, each=name == "RepVGG").items())
    assert {name.split()[1] for name in scripts} >= {"merge-branches", "fold-constants", "merge-duplicates"}
    for name, (code, said) in zip(scripts, run_all(tmp_path, list(scripts.values())), strict=True):
        assert code == 0, (name, said)
        assert "float64: largest difference" in said


class Mixed(nn.Module):
    """Sizes with the batch among them, a split, a table of indices, a mask, numbers, and a copy of a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.table = nn.Parameter(torch.randn(7, 4))
        self.register_buffer("index", torch.randint(0, 7, (6,)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x)).clone().clone()
        a, b = y.split(4, 1)
        bias = self.table[self.index].sum(0).reshape(1, 4, 1, 1).exp()
        return (a * bias + b).reshape(x.shape[0] * 2, 2, -1).reshape(-1, 4, x.shape[2], x.shape[3]) * 1 + 0


def test_dtypes_layouts_and_other_arguments(tmp_path):
    scripts: dict[str, str] = {}
    for dtype, layouts in {torch.float32: (torch.channels_last,), torch.bfloat16: (torch.contiguous_format,),
                           torch.float64: (torch.contiguous_format, torch.channels_last)}.items():  # fmt: skip
        for layout in layouts:
            model = randomize(Mixed().eval(), inputs=torch.randn(2, 4, 6, 8)).to(dtype).to(memory_format=layout)
            made = scripts_of(report_of(model, torch.randn(2, 4, 6, 8).to(dtype, memory_format=layout)), each=True)
            text = "\n".join(made.values())
            assert len(made) >= 6
            assert "N, 4, 6, 8" in text
            assert ("order=(0, 2, 3, 1)" in text) == (layout is torch.channels_last)
            assert (f"{str(dtype).removeprefix('torch.')} = {dtype}\n" in text) == (dtype is not torch.float64)
            scripts.update((f"{name} {dtype} {layout}", script) for name, script in made.items())
    for name, (code, said) in zip(scripts, run_all(tmp_path, list(scripts.values())), strict=True):
        assert code == 0, (name, said)


def test_whole_numbers_of_a_table_are_kept_and_indices_drawn_inside_their_bounds():
    program = Program()
    table, index = program.weight("table", torch.randn(5, 3)), program.weight("index", torch.tensor([4, 0, 2]))
    given = program.input(torch.randint(0, 5, (300,)))
    first = program(aten.index_select.default, table, 0, index)
    second = program(aten.index_select.default, table, 0, given)
    rule = replacing(aten.index_select.default, lambda g, node, *args: g(aten.index_select.default, *args))
    scripts = list(scripts_of(tried(program.graph(first, second), rule), each=True).values())
    assert "index = torch.tensor([4, 0, 2], dtype=torch.int64)  # index" in scripts[0]
    assert 'x0 = draw("index", (300,), torch.int64, 5)' in scripts[1]


def test_weights_whose_values_a_rule_reads_are_kept_while_they_are_small(tmp_path):
    """Without them a kernel that is trimmed would have no zeros."""
    small, large = nn.Conv2d(2, 2, (5, 3), groups=2), nn.Conv2d(8, 8, 5)
    with torch.no_grad():
        for layer in (small, large):
            layer.weight[:, :, 0] = 0
            layer.weight[:, :, :, 0] = -0.0
    scripts = []
    for layer in (small, large):
        graph = capture(layer.eval(), (torch.randn(2, layer.in_channels, 9, 9),)).graph
        scripts += scripts_of(tried(graph, TrimKernel())).values()
    assert "weight = torch.tensor([[[[-0.0, 0.0, 0.0], [-0.0," in scripts[0]
    assert "bias = torch.tensor([" in scripts[0]
    kept = "  # weight: the rule holds for its values in the model, which are not kept\n"
    assert f'weight = draw("kernel", (8, 8, 5, 5), float32, 200){kept}' in scripts[1]
    assert [code for code, _ in run_all(tmp_path, scripts)] == [0, 1]


@pytest.mark.parametrize("rounds", [True, False])
def test_roundings_of_weights_count_where_the_rule_says_so(tmp_path, rounds: bool):
    conv = nn.Conv2d(3, 3, 5, groups=3).eval()
    with torch.no_grad():
        conv.weight.copy_(torch.randn(3, 1, 5, 1) * torch.randn(3, 1, 1, 5))
    graph = capture(conv, (torch.randn(2, 3, 9, 9),)).graph
    report = tried(graph, SeparateKernel())
    if not rounds:
        [commit] = report.records[0].commits
        repro = dataclasses.replace(commit.repro, fidelity=Fidelity.NORMWISE.value)
        report.records[0].commits[0] = dataclasses.replace(commit, repro=repro)
    [(code, said)] = run_all(tmp_path, list(scripts_of(report).values()))
    assert code == (0 if rounds else 1), said


def test_classes_are_drawn_inside_their_number(tmp_path):
    program = Program()
    x = program.input(torch.randint(0, 3, (300,)))
    few = program(aten.one_hot.default, x, 3)
    many = program(aten.one_hot.default, program(aten.abs.default, x), 5)
    rule = replacing(aten.one_hot.default, lambda g, node, *args: g(aten.one_hot.default, *args))
    scripts = list(scripts_of(tried(program.graph(few, many), rule), each=True).values())
    assert 'x0 = draw("index", (300,), torch.int64, 3)' in scripts[0]
    assert 'draw("index", (300,), torch.int64, 5)' in scripts[1]
    assert [code for code, _ in run_all(tmp_path, scripts)] == [0, 0]


def test_values_with_names_that_mean_something(tmp_path):
    program = Program()
    x = program.input(torch.randn(3))
    x.name = x.target = "float32"
    y = program.weight("N", torch.randn(3))
    y.name = "draw"
    node = program(aten.mul.Tensor, program(aten.sin.default, x), y)
    rule = replacing(aten.mul.Tensor, lambda g, node, a, b: g(aten.mul.Tensor, b, a))
    sine = replacing(aten.sin.default, lambda g, node, a: g(aten.cos.default, g(aten.add.Tensor, a, -torch.pi / 2)))
    graph = program.graph(node)
    scripts = [*scripts_of(tried(graph.copy(), rule)).values(), *scripts_of(tried(graph, sine)).values()]
    assert "draw_ = draw(" in scripts[0]
    assert "float32_ = draw(" in scripts[1]
    assert {"float32", "draw", "N", "aten"} <= RESERVED
    assert [code for code, _ in run_all(tmp_path, scripts)] == [0, 0]


def test_operators_of_several_results_inside_and_at_the_boundary(tmp_path):
    program = Program(dynamic=True)
    parts = program(aten.split.Tensor, program.input(torch.randn(2, 5)), 3, 1)
    graph = program.graph(*(program(aten.sin.default, program(operator.getitem, parts, i)) for i in range(2)))
    again = replacing(aten.split.Tensor, lambda g, node, a, *_: g(aten.split_with_sizes.default, a, [3, 2], 1))
    twice = replacing(operator.getitem, lambda g, node, a, i: g(aten.mul.Tensor, g(operator.getitem, a, i), 2.0))
    scripts = [*scripts_of(tried(graph.copy(), again)).values(), *scripts_of(tried(graph, twice)).values()]
    assert 'x0 = draw("plain", (N, 5), float32)' in scripts[0]
    assert 'split_tensor = (draw("plain", (N, 3), float32), draw("plain", (N, 2), float32))' in scripts[1]
    (right, said), (wrong, _) = run_all(tmp_path, scripts)
    assert (right, wrong) == (0, 1)
    assert "split_tensor[0]\n" in said
    assert "split_tensor[1]\n" in said


def test_creation_constants_and_infinities(tmp_path):
    program = Program()
    x = program.input(torch.randn(4, 3))
    rule = replacing(
        aten.relu.default,
        lambda g, node, a: g(
            aten.maximum.default,
            g(aten.clamp.default, a, -float("inf"), float("inf")),
            g(aten.zeros.default, [3], dtype=torch.float32, device=torch.device("cpu")),
        ),
    )
    [text] = scripts_of(tried(program.graph(program(aten.relu.default, x)), rule)).values()
    assert "-inf, inf" in text
    [(code, said)] = run_all(tmp_path, [text])
    assert code == 0, said


# -- wrong rules ------------------------------------------------------------------------------------------------------

WRONG = {
    "shifted": (aten.relu.default, lambda g, node, a: g(aten.add.Tensor, g(aten.relu.default, a), 1e-6)),
    "mirrored": (aten.sin.default, lambda g, node, a: g(aten.sin.default, g(aten.neg.default, a))),
    "coarse": (aten.exp.default, lambda g, node, a: g(
        aten._to_copy.default, g(aten.exp.default, g(aten._to_copy.default, a, dtype=torch.bfloat16)),
        dtype=torch.float32)),
    "endless": (aten.tanh.default, lambda g, node, a: g(aten.div.Tensor, g(aten.mul.Tensor, a, 1e38), 1e38)),
    "not a number": (aten.cos.default, lambda g, node, a: g(aten.log.default, g(aten.cos.default, a))),
}  # fmt: skip


def test_scripts_of_wrong_rules_say_so(tmp_path):
    scripts = []
    for target, build in WRONG.values():
        program = Program(dynamic=True)
        graph = program.graph(program(target, program.input(torch.randn(3, 4))))
        scripts += scripts_of(tried(graph, replacing(target, build))).values()
    results = dict(zip(WRONG, run_all(tmp_path, scripts), strict=True))
    assert {name: code for name, (code, _) in results.items()} == dict.fromkeys(WRONG, 1)
    assert all("do NOT agree" in said for _, said in results.values())
    assert "float64: largest difference 1.00e-06" in results["shifted"][1]
    assert "largest difference inf" in results["not a number"][1]


def test_the_promise_of_the_rule_decides(tmp_path):
    """Sums in another order: equal in real arithmetic, not to the bit; an approximation may differ."""
    scripts = []
    for fidelity in (Fidelity.ELEMENTWISE, Fidelity.BITWISE, Fidelity.APPROXIMATE):
        program = Program()
        x = program.input(torch.randn(64, 3))
        rule = replacing(
            aten.sum.dim_IntList,
            lambda g, node, a, dims: g(
                aten.sum.dim_IntList,
                g(aten.flip.default, g(aten.cumsum.default, g(aten.flip.default, a, [0]), 0), [0]),
                dims,
            ),
            fidelity,
        )
        if fidelity is not Fidelity.APPROXIMATE:
            rule = replacing(aten.sum.dim_IntList, lambda g, node, a, dims: g(
                aten.select.int, g(aten.cumsum.default, a, 0), 0, 63), fidelity)  # fmt: skip
        scripts += scripts_of(tried(program.graph(program(aten.sum.dim_IntList, x, [0])), rule)).values()
    results = run_all(tmp_path, scripts)
    assert [code for code, _ in results] == [0, 1, 0]
    assert "allowed 0" in results[1][1]


def test_a_fold_of_the_wrong_value(tmp_path):
    """A rule that folds another value than it replaces: the value is computed from the graph, not kept."""
    program = Program()
    x, w = program.input(torch.randn(2, 3)), program.weight("w", torch.randn(3))
    other = program(aten.exp.default, program(aten.sin.default, w))
    scaled = program(aten.mul.Tensor, w, 2.0)
    node = program(aten.add.Tensor, program(aten.mul.Tensor, x, scaled), other)

    def fold(g, node, a, factor):
        if factor != 2.0:
            return g(aten.mul.Tensor, a, factor)
        sibling = next(each for each in g.graph.nodes if each.target is aten.exp.default)
        return g.fold(sibling, "folded")

    report = tried(program.graph(node), replacing(aten.mul.Tensor, fold))
    text = report.reproduce(1)
    assert "aten.exp.default(sin" in text
    [(code, _)] = run_all(tmp_path, [text])
    assert code == 1


def test_algebra_is_computed_in_float64_and_rounded_and_beside_a_fold_as_it_was():
    x = torch.randn(2, 3, 8, 8)
    report = report_of(randomize(models.ConvNet().eval(), inputs=x), x)
    merge, fold = (
        next(c for r in report.records for c in r.commits if c.rule.startswith(n)) for n in ("fold-b", "fold-c")
    )
    for lines, doubles, rounds in ((merge.repro.new, True, True), (fold.repro.old, False, False),
                                   (fold.repro.new, True, True)):  # fmt: skip
        text = "\n".join(lines)
        assert (".to(torch.float64)" in text) == doubles
        assert (".to(float32)" in text) == rounds


def test_a_rejected_match_is_reproduced_too(tmp_path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(x)

    from rewrite import optimize

    target, build = WRONG["shifted"]
    fast = optimize(Net().eval(), torch.randn(2, 3), pipeline=replacing(target, build, name="shift"), lower="eager")
    [rejection] = fast.report.rejections("shift")
    path = tmp_path / "here.py"
    text = fast.report.reproduce(rejection, path)
    assert path.read_text() == text
    assert text.startswith("# shift at test_reproduce.py:")
    assert "a match that was rejected: output 'relu' differs" in " ".join(text.replace("#", "").split())
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith("old and new do NOT agree\n")


# -- what is kept, and what is refused --------------------------------------------------------------------------------


def test_what_is_kept_is_plain_data_and_holds_no_tensor():
    x = torch.randn(2, 8, 8, 8)
    model = randomize(models.RepVGG().eval(), inputs=x)
    report = report_of(model, x)
    commits = [commit for record in report.records for commit in record.commits]
    watched = [weakref.ref(tensor) for tensor in (*model.parameters(), *model.buffers())]
    del model
    gc.collect()
    assert [watch() for watch in watched] == [None] * len(watched)
    for commit in commits:
        plain = json.loads(json.dumps(dataclasses.asdict(commit)))
        assert plain["repro"]["new"] == list(commit.repro.new)
        assert {*plain["nodes"]} == {line.split(":")[0] for line in commit.removed}
    assert typing.get_type_hints(Commit)["repro"] == typing.get_type_hints(Rejection)["repro"]


def test_a_value_that_both_sides_share_is_drawn_once():
    program = Program()
    x, w = program.input(torch.randn(2, 3, 5, 5)), program.weight("w", torch.randn(4, 3, 3, 3))
    conv = program(aten.conv2d.default, x, w)
    weights = [program.weight(name, torch.rand(4) + 0.5) for name in ("gamma", "beta", "mean", "var")]
    norm = program(aten._native_batch_norm_legit_no_training.default, conv, *weights, 0.1, 1e-5)
    [commit] = tried(program.graph(program(operator.getitem, norm, 0)), FoldNorm()).records[0].commits
    names = [line.partition(" = ")[0] for line in commit.repro.inputs]
    assert len(names) == len(set(names)) == 6
    drawn = {line.rpartition("# ")[2]: re.findall(r'"(\w+)"', line)[0] for line in commit.repro.inputs[1:]}
    assert drawn == {"w": "kernel", "gamma": "scale", "beta": "plain", "mean": "plain", "var": "positive"}
    assert 'draw("kernel", (4, 3, 3, 3), float32, 27)' in "\n".join(commit.repro.inputs)
    assert re.fullmatch(r"conv2d = aten.conv2d.default\(x0, \w+.to\(float32\)\)", commit.repro.new[-2])


def test_no_such_rewrite():
    with pytest.raises(InputError, match="no rewrite number 4; numbers 1 to 3 were made"):
        report_by_hand().reproduce(4)
    with pytest.raises(InputError, match="no rewrite was made"):
        report_by_hand(records=[]).reproduce(1)


@pytest.mark.parametrize("given", ["1", None, True, 1.0], ids=repr)
def test_what_is_no_rewrite(given: Any):
    with pytest.raises(
        InputError, match=f"^{given!r} is no rewrite; pass its number in the diff, or one of rejections"
    ):
        report_by_hand().reproduce(given)


def test_nothing_to_compare():
    from tests.toy_rules import Raises, chain, relu, run

    _, graph = chain(relu)
    [record] = run(graph, Raises())
    report = report_by_hand(records=[record])
    with pytest.raises(InputError, match=r"'raises' built no replacement \(raised ValueError: no idea\)"):
        report.reproduce(report.rejections()[0])
    with pytest.raises(InputError, match="did you mean 'raises'"):
        report.rejections("raise")
