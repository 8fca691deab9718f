"""`bisect`: planted rewrites are found, by any check, in few runs of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Node

from passes import FoldConstants, Reparameterize, Simplify
from rewrite import (
    Bisection,
    BisectionError,
    Fidelity,
    InputError,
    Match,
    Miss,
    RewriteError,
    Rule,
    VerificationError,
    bisect,
    optimize,
    trace,
    transform,
)
from rewrite.api import bisecting
from rewrite.verdict import Verdict
from tests.corpus import randomize
from tests.golden import models

aten = torch.ops.aten


class Net(nn.Module):
    """Blocks to merge, and activations between them that planted rules find."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(models.RepVGG(4) for _ in range(3))
        self.gate = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.gate(x)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](x).clone() * 1


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model(x) -> nn.Module:
    torch.manual_seed(0)
    return randomize(Net().eval(), inputs=x)


@pytest.fixture(scope="module")
def captures() -> dict[Any, Any]:
    return {}


@pytest.fixture(autouse=True)
def captured_once(monkeypatch, captures) -> None:
    """Capture takes longest, and a bisection leaves what was captured as it is."""

    def capture(model: nn.Module, args: Any, kwargs: Any) -> Any:
        key = type(model), id(args[0])
        if key not in captures:
            captures[key] = trace.capture(model, args, kwargs), args
        return captures[key][0]

    monkeypatch.setattr(bisecting, "capture", capture)


@dataclass(frozen=True)
class Planted(Rule):
    """Replaces each sigmoid by another function, or the right one in a way that takes many operators."""

    fidelity = Fidelity.ELEMENTWISE

    wrong: float = 0.0
    turns: int = 0

    def find(self, graph: Any, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        for node in dirty:
            if node.target is aten.sigmoid.default:
                yield Match(self, (node,), (node,))

    def rewrite(self, match: Match, g: Any) -> Node:
        value = match.inputs[0]
        for _ in range(self.turns):
            value = g(aten.neg.default, g(aten.neg.default, value))
        return g(aten.reciprocal.default, g(aten.add.Tensor, g(aten.exp.default, g(aten.neg.default, value)),
                                            1.0 + self.wrong))  # fmt: skip


def pipeline(rule: Rule, before: bool = False) -> tuple[Any, ...]:
    return (Simplify(), *([rule] if before else []), Reparameterize(), *([] if before else [rule]), FoldConstants())


def bound(total: int) -> int:
    return math.ceil(math.log2(total)) + 2


# -- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
def test_a_wrong_rule_is_found_by_comparing_the_whole_model(model, x, before):
    steps = pipeline(Planted(wrong=0.01), before)
    found = bisect(model, x, pipeline=steps)
    assert found.commit.rule == "planted"
    assert found.commit.number == (1 if before else 4)
    assert found.total == 10
    assert found.runs <= bound(found.total)
    assert found.reason.startswith("output 0 is wrong in 4 of 4 channels")
    made = optimize(model, x, pipeline=steps, verify="off", lower="eager", fuel=found.commit.number).report
    assert str(made.diff()) == str(found.report.diff())
    for fuel, good in ((found.commit.number - 1, True), (found.commit.number, False)):
        fast = optimize(model, x, pipeline=steps, verify="off", lower="eager", fuel=fuel)
        with torch.no_grad():
            assert torch.allclose(fast(x), model(x), atol=1e-4) == good


def test_a_rewrite_that_costs_much_is_found(model, x):
    """A check may measure; here the number of operators stands for time, which a test cannot rely on."""
    seen = []

    def check(fast: nn.Module) -> bool:
        assert isinstance(fast(x), torch.Tensor)
        seen.append(len(list(fast.graph_module.graph.nodes)))
        return seen[-1] < 200

    found = bisect(model, x, check, pipeline=pipeline(Planted(turns=100)))
    assert (found.commit.rule, found.runs) == ("planted", len(seen))
    assert found.runs <= bound(found.total)
    assert found.reason == ""


@pytest.mark.parametrize(
    "target", [pytest.param(n, marks=[] if n in (1, 2, 5, 9, 10) else [pytest.mark.slow]) for n in range(1, 11)]
)
def test_every_rewrite_can_be_found(model, x, target):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trials = []
    found = bisect(model, x, lambda fast: commits(fast) < target, pipeline=pipeline(Planted()), progress=trials.append)
    assert found.commit.number == target
    assert [trial.number for trial in trials] == list(range(1, found.runs + 1))
    assert tuple(trials) == found.trials
    assert (trials[-1].low, trials[-1].high) == (target - 1, target)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def commits(fast: Any) -> int:
    return sum(len(record.commits) for record in fast.report.records)


@pytest.mark.parametrize("good", [{0, 1, 5, 6, 9}, {0, 2, 4, 6, 8}, {0, 9}])
def test_a_check_that_comes_and_goes(model, x, good):
    found = bisect(model, x, lambda fast: commits(fast) in good, pipeline=pipeline(Planted()))
    assert found.commit.number - 1 in good
    assert found.commit.number not in good
    assert found.runs <= bound(10)


def test_a_check_that_returns_a_tensor_of_one_element(model, x):
    found = bisect(model, x, lambda fast: torch.tensor([[commits(fast) < 4]]), pipeline=pipeline(Planted()))
    assert found.commit.number == 4


def test_a_check_that_asserts(model, x):
    want = model(x)

    def check(fast: nn.Module) -> None:
        torch.testing.assert_close(fast(x), want)

    found = bisect(model, x, check, pipeline=pipeline(Planted(wrong=0.1)))
    assert found.commit.rule == "planted"
    assert found.reason == "Tensor-likes are not close!"

    def silent(fast: nn.Module) -> None:
        assert commits(fast) < 2

    assert bisect(model, x, silent).commit.number == 2


def test_other_exceptions_of_a_check_end_the_bisection(model, x):
    def check(fast: nn.Module) -> bool:
        raise KeyError("no such metric")

    with pytest.raises(KeyError, match="no such metric"):
        bisect(model, x, check)


def test_what_verification_rejects_is_made_unless_it_is_asked(model, x):
    steps = pipeline(Planted(wrong=0.01))
    assert bisect(model, x, pipeline=steps).commit.rule == "planted"
    with pytest.raises(BisectionError, match="check passes on all 9 rewrites"):
        bisect(model, x, pipeline=steps, verify="default")


def test_one_method_of_a_model(model, x):
    found = bisect(model, x, lambda fast: commits(fast) < 1, method="forward_features", pipeline="simplify")
    assert found.commit.rule in ("remove-copy", "remove-neutral")
    assert found.total == 2


# -- what is shown ----------------------------------------------------------------------------------------------------


def test_the_text(model, x, tmp_path):
    found = bisect(model, x, pipeline=pipeline(Planted(wrong=0.01)))
    text = str(found)
    assert repr(found) == text
    assert text.startswith("rewrite 4 of 10 makes the check fail: planted in gate (test_bisect.py:")
    for part in (
        "\nbecause output 0 is wrong", "@@ planted #4  gate (test_bisect.py:", "- sigmoid: f32[", "+ reciprocal: f32[",
        f"found in {found.runs} runs of the check", 'exclude="planted", or exclude="gate" for the module alone',
        '.reproduce("rewrite_4.py")', "fuel=3 stops right before it, fuel=4 right after it",
    ):  # fmt: skip
        assert part in text
    assert found.reproduce(tmp_path / "rewrite_4.py") == found.report.reproduce(4)
    assert (tmp_path / "rewrite_4.py").exists()
    assert str(found.trials[0]) == "run 1: fails after 10 rewrites"
    assert str(found.trials[1]) == "run 2: passes after 0 rewrites; 0 pass, 10 fail"
    assert isinstance(found, Bisection)


def test_the_error_of_optimize_names_it(model, x, monkeypatch):
    monkeypatch.setattr("rewrite.verify.MatchVerifier.verify", lambda *args: Verdict(True))
    with pytest.raises(VerificationError, match=r"find the rewrite with rewrite\.bisect"):
        optimize(model, x, pipeline=Planted(wrong=0.01), lower="eager")


# -- what is refused --------------------------------------------------------------------------------------------------


def test_nothing_to_be_found(model, x):
    with pytest.raises(BisectionError, match="check passes on all 9 rewrites, so there is none to be found"):
        bisect(model, x)
    with pytest.raises(BisectionError, match="the pipeline makes no rewrite of this model"):
        bisect(model, x, pipeline="fold-layer-scale")

    def check(fast: nn.Module) -> None:
        raise AssertionError("too bad\nfor words")

    with pytest.raises(BisectionError, match=r"fails on the unrewritten program already \(too bad\), so no rewrite is"):
        bisect(model, x, check)


class Unreached(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("what is wrong with the arguments is said before the model is called")


def test_arguments(model, x):
    fast, step = optimize(model, x, lower="eager", pipeline="simplify"), transform(model, x, "simplify")
    for made in (fast, optimize(fast, release=True), step):
        for function in (bisect, transform):
            with pytest.raises(InputError, match=f"^{function.__name__} needs the model itself, not a rewritten one; "):
                function(made, x)
    with pytest.raises(InputError, match="did you mean 'inductor'"):
        bisect(model, x, lower="inducter")
    with pytest.raises(InputError, match="eval"):
        bisect(Net().train(), x)
    with pytest.raises(InputError, match="check='eq' cannot be called; pass a function that takes the module"):
        bisect(Unreached().eval(), x, "eq")  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"returned a Tensor of shape \[2, 4, 6, 6\], which is neither true nor false; "
    ):
        bisect(model, x, lambda fast: fast(x) == 0)
    with pytest.raises(InputError, match="takes the sizes of its example only"):
        bisect(model, x, lambda fast: fast(torch.randn(2, 4, 7, 7)) is None)


@dataclass(frozen=True)
class Moody(Rule):
    """Makes something else each time it is asked."""

    fidelity = Fidelity.STRUCTURAL
    pattern = None

    def find(self, graph: Any, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        for node in dirty:
            if node.target is aten.relu.default:
                yield Match(self, (node,), (node,))

    def rewrite(self, match: Match, g: Any) -> Node:
        return g(aten.mul.Tensor, match.inputs[0], float(torch.rand(())))


def test_rules_that_do_not_decide_by_the_graph_alone(model, x):
    with pytest.raises(RewriteError, match=r"do not make the same rewrites \(the programs after 1 rewrites differ\)"):
        bisect(model, x, lambda fast: commits(fast) < 1, pipeline=Moody())
