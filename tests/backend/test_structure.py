"""What a user meets: the name, options, graph breaks, what is declined and why, and the compiler behind it."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

from rewrite import Fidelity, Rule, backend, compat
from rewrite.pattern import Call, Var
from rewrite.pipeline import rules_of
from rewrite.verdict import Verdict
from tests.backend.compiling import Log, compiled
from tests.backend.models import EACH, MODELS, distance, images

aten = torch.ops.aten


class Breaking(nn.Module):
    """A model that Dynamo traces in pieces."""

    def __init__(self, name):
        super().__init__()
        self.first, self.norm, self.inner = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), MODELS[name]()
        nn.init.normal_(self.norm.running_mean)

    def forward(self, x):
        y = self.norm(self.first(x)) if x.dim() == 4 else x
        torch._dynamo.graph_break()
        y = self.inner(y)
        torch._dynamo.graph_break()
        return torch.relu(y)


@pytest.mark.parametrize("name", EACH)
@torch.no_grad()
def test_graph_breaks(name):
    model, log = Breaking(name).eval(), Log()
    x = images(name, 2, seed=7)
    assert distance(model, compiled(model)(x), x) < 8
    assert len(log.rewritten()) == (2 if name == "sequence" else 3)
    assert "fold-constants" in log.rewrites()


def test_the_name_is_known_to_torch_compile(tmp_path):
    code = """
import torch
from torch import nn
assert {"torch_rewrite", "rewrite"} <= set(torch.compiler.list_backends())
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
x = torch.randn(2, 3, 8, 8)
with torch.no_grad():
    for name in ("torch_rewrite", "rewrite"):
        torch._dynamo.reset()
        fast = torch.compile(model, backend=name, options={"lower": "eager"})
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
from rewrite.backend import reports
print([len(graph.report.diff()) for graph in reports()])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["[3,", "3]"]


@torch.no_grad()
def test_inductor_compiles_what_was_rewritten():
    model, other, log = MODELS["repvgg_a0"](), MODELS["repvgg_a0"](1), Log()
    for net in (model, other):
        for stage in net.stages:
            del stage[1:]
    fast = compiled(model, lower="inductor")
    x = images("repvgg_a0", 2)
    for _ in range(2):
        assert distance(model, fast(x), x) < 8
    model.load_state_dict(other.state_dict())
    assert distance(model, fast(x), x) < 8
    assert fast(x).stride() == model(x).stride()
    assert log.rewrites().count("merge-branches") == 5


@torch.no_grad()
def test_strides_of_results_are_those_of_the_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    for lower in ("eager", "inductor"):
        torch._dynamo.reset()
        fast = compiled(model, lower=lower)
        for x in (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)):
            assert fast(x).stride() == model(x).stride()


@torch.no_grad()
def test_views_of_results_stay_views_and_keep_their_strides():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 8, 8)

    def last(x):
        return model(x).permute(0, 2, 3, 1)

    def parts(x):
        y = model(x)
        return y, y[:, 1:], y.flatten(1)

    for lower in ("eager", "inductor"):
        torch._dynamo.reset()
        log = Log()
        assert compiled(last, lower=lower)(x).stride() == last(x).stride()
        whole, tail, flat = compiled(parts, lower=lower)(x)
        torch.testing.assert_close((whole, tail, flat), parts(x), rtol=1e-4, atol=1e-5)
        tail.zero_()
        assert not whole[:, 1:].any()
        assert not flat[:, 36:].any()
        assert "fold-batch-norm-after" in log.rewrites()


def test_a_mode_and_options_of_inductor(monkeypatch):
    patches = []
    compile_traced = compat.inductor_compile_traced

    def spy(module, examples, options):
        patches.append(options)
        return compile_traced(module, examples, options)

    monkeypatch.setattr(compat, "inductor_compile_traced", spy)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for arguments in ({"mode": "max-autotune-no-cudagraphs"}, {"options": {"epilogue_fusion": False}}):
            torch._dynamo.reset()
            fast = torch.compile(model, backend=backend.torch_rewrite, **arguments)
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert patches == [torch._inductor.list_mode_options("max-autotune-no-cudagraphs"), {"epilogue_fusion": False}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pipelin": "simplify"}, "did you mean 'pipeline'"),
        ({"max_autotun": True}, "did you mean 'max_autotune'"),
        ({"pipeline": "simplfy"}, "did you mean 'simplify'"),
        ({"lower": "inducter"}, "did you mean 'inductor'"),
        ({"verify": "always"}, "'thorough'"),
        ({"freezing": True}, "use rewrite.optimize"),
    ],
)
def test_bad_options(options, words):
    model = torch.compile(nn.Linear(2, 2), backend=backend.torch_rewrite, options=options)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=words):
        model(torch.randn(1, 2))


@torch.no_grad()
def test_options_of_optimize():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 8, 8)
    for options, rewrites in (
        ({"pipeline": "simplify"}, 0), ({"exclude": "fold-constants"}, 2), ({"exclude": ["1", "fold-constants"]}, 1),
        ({"fuel": 1}, 1), ({"verify": "off", "exclude": "fold-constants"}, 2),
    ):  # fmt: skip
        torch._dynamo.reset()
        log = Log()
        torch.testing.assert_close(compiled(model, **options)(x), model(x), rtol=1e-4, atol=1e-5)
        assert len(log.rewrites()) == rewrites, options


def test_the_default_by_name_serves_every_instance_too():
    by_name, by_default = (backend._recipe(backend.Options(pipeline=text)).pipeline for text in ("default", None))
    assert by_name == by_default
    assert not [rule.name for step in by_name for rule in rules_of(step) if rule.reads_values]


@torch.no_grad()
def test_an_unknown_exclusion_is_worth_a_word(caplog):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with caplog.at_level(logging.WARNING, logger="rewrite"):
        compiled(model, exclude=("fold-batchnorm", "1"))(torch.randn(2, 3, 8, 8))
    said = [record.data["name"] for record in caplog.records if record.event == "unknown-exclusion"]
    assert said == ["fold-batchnorm"]


# -- what is left as it was -------------------------------------------------------------------------------------------


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 7 * gradient


def branch(x):
    return torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x,))


def asserting(x):
    torch._assert_async(x.sum() < 1e3, "too large")
    return x.relu()


def view_of_written(x):
    x.mul_(2)
    return x[0]


def same_view_of_written(x):
    x.mul_(2)
    return x.view_as(x)


def negated_view_of_written(x):
    x.mul_(2)
    return torch._neg_view(x)


def inverse(x):
    return torch.linalg.inv(x @ x.mT + 1)


def transformed(x):
    return torch.func.vmap(torch.sin)(x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (branch, "calls graphs of its own"),
        (asserting, "asserts something"),
        (view_of_written, "view of an argument that the call writes"),
        (same_view_of_written, "view of an argument that the call writes"),
        (negated_view_of_written, "view of an argument that the call writes"),
        (inverse, "has an effect"),
        (transformed, "a transform of torch.func"),
    ],
)
def test_declined_graphs_run_as_they_are(call, words):
    log = Log()
    x = torch.randn(3, 4)
    y = x.clone()
    found, expected = compiled(call)(x), call(y)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(x, y)
    assert found is not x
    assert words in log.graphs[0].reason
    assert log.graphs[0].report is None
    assert "not rewritten" in str(log.graphs[0])


def test_numbers_that_change_are_not_compiled_again_and_again():
    log, fast = Log(), compiled(lambda x, factor: x * factor + 1, settings={"fullgraph": True})
    for i in range(12):
        x = torch.randn(3)
        torch.testing.assert_close(fast(x, 0.37 * i), x * (0.37 * i) + 1)
    assert [bool(graph.reason) for graph in log.graphs] == [False, True]
    assert "is an argument that changes" in log.graphs[1].reason


def test_a_compiled_optimizer():
    parameters = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.full((3,), 2.0)
    log, steps = Log(), torch.optim.SGD(parameters[:1], lr=0.1, momentum=0.9)
    compiled(lambda: steps.step())()
    torch.optim.SGD(parameters[1:], lr=0.1, momentum=0.9).step()
    torch.testing.assert_close(parameters[0], parameters[1])
    assert "writes to the constant" in log.graphs[0].reason


class Tagged(torch.Tensor):
    """A subclass that wraps nothing."""


@torch.no_grad()
def test_subclasses_of_tensors():
    model, log = nn.Linear(3, 2), Log()
    x = torch.randn(2, 3).as_subclass(Tagged)
    found = compiled(model)(x)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), model(x).as_subclass(torch.Tensor))
    assert "is a Tagged, which no rule understands" in log.graphs[0].reason


@torch.no_grad()
def test_constants_that_code_writes_down():
    model, log = nn.Linear(3, 3), Log()
    x = torch.randn(2, 3)

    def shifted(x):
        return model(x) + torch.linspace(0, 1, 3) * torch.tensor(0.1)

    torch.testing.assert_close(compiled(shifted)(x), shifted(x))
    log.rewritten()


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
def test_a_backward_of_the_users_own_is_kept():
    x, log = torch.randn(3, 4, requires_grad=True), Log()
    (gradient,) = torch.autograd.grad(compiled(Doubling.apply)(x).sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 7))
    assert "calls graphs of its own" in log.graphs[0].reason


def test_written_arguments_and_buffers():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            self.calls += 1
            x.add_(1)
            return self.norm(self.conv(x)) * self.calls, self.calls

    model, log = Counter().eval(), Log()
    fast = compiled(model)
    x = torch.randn(2, 3, 4, 4)
    expected = model(x.clone())[0]
    model.calls.zero_()
    counter = model.calls
    with torch.no_grad():
        for call in (1, 2):
            y = x.clone()
            found, counted = fast(y)
            torch.testing.assert_close(found, call * expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(y, x + 1)
            assert counted is model.calls is counter
            assert float(counter) == call
            counter.data = counter.data.clone()  # memory that no fold has seen
    assert "fold-batch-norm-after" in log.rewrites()


class Shifted(Rule):
    """Wrong by little."""

    fidelity = Fidelity.ELEMENTWISE
    pattern = Call(aten.relu.default, self=Var("x"))

    def rewrite(self, match, g):
        return g(aten.add.Tensor, g(aten.relu.default, match.x), 0.01)


@torch.no_grad()
def test_the_whole_graph_is_the_last_word(monkeypatch, caplog):
    monkeypatch.setattr("rewrite.verify.MatchVerifier.verify", lambda *args: Verdict(True))
    model, log = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), Log()
    x = torch.randn(2, 3)
    with caplog.at_level(logging.WARNING, logger="rewrite"):
        torch.testing.assert_close(compiled(model, pipeline=Shifted(), fuel=1)(x), model(x))
    assert "not equal to Dynamo's" in log.graphs[0].reason
    assert any(record.levelno == logging.WARNING for record in caplog.records if record.name == "rewrite")


@torch.no_grad()
def test_weights_that_change_at_every_call_are_worth_a_word(caplog):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    fast, x = compiled(model), torch.randn(2, 3, 4, 4)
    with caplog.at_level(logging.WARNING, logger="rewrite"):
        for _ in range(10):
            model[0].weight.mul_(1.1)
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    said = [record for record in caplog.records if getattr(record, "event", "") == "folding-in-vain"]
    assert len(said) == 1
