"""`optimize` and `transform` as a user calls them, with good and with bad arguments."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import passes
import rewrite
from rewrite import (
    CaptureError,
    Fidelity,
    InputError,
    Pass,
    Pipeline,
    PipelineError,
    RewriteError,
    Rule,
    RuleError,
    VerificationError,
    optimize,
    transform,
)
from rewrite.pattern import Call, Var
from rewrite.verdict import Verdict

aten = torch.ops.aten


class Branches(nn.Module):
    """A RepVGG block with spread norms, then a linear layer."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.narrow = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)
        for parameter in self.norm.parameters():
            nn.init.uniform_(parameter, -1.5, 1.5)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.3, 2)

    def forward(self, x, scale=1.0, *, shift=None):
        y = torch.relu(self.norm(self.wide(x)) + self.narrow(x) + x) * scale
        y = self.head(y.mean((2, 3)))
        return y if shift is None else {"shifted": (y + shift, None), "plain": y}


@pytest.fixture
def model():
    return Branches().eval()


@pytest.fixture
def x():
    return torch.randn(2, 4, 9, 8)


def eager(model, *args, **kwargs):
    return optimize(model, *args, lower="eager", **kwargs)


# -- what works -------------------------------------------------------------------------------------------------------


def test_branches_become_one_convolution(model, x):
    fast = eager(model, x)
    kernels = [node for node in fast.graph_module.graph.nodes if node.target is aten.conv2d.default]
    assert len(kernels) == 1
    torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("example", [1, 2])
def test_any_batch_from_any_example(model, batch, example):
    fast = eager(model, torch.randn(example, 4, 6, 6))
    x = torch.randn(batch, 4, 6, 6)
    torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("example", [1, 4])
def test_a_branch_on_a_batch_of_one(example):
    class Special(nn.Module):
        def forward(self, x):
            return x * 2 if x.size(0) > 1 else x.relu()

    model = Special().eval()
    fast = eager(model, torch.randn(example, 3))
    for batch in (1, 2, 4):
        x = torch.randn(batch, 3)
        torch.testing.assert_close(fast(x), model(x))


def test_another_image_size(model, x):
    fast = eager(model, x)
    other = torch.randn(2, 4, 15, 7)
    torch.testing.assert_close(fast(other), model(other))


def test_first_call_captures(model, x):
    fast = eager(model)
    with pytest.raises(rewrite.RewriteError, match="not been captured"):
        str(fast.report)
    torch.testing.assert_close(fast(x), model(x))
    assert fast.report.records


def test_keywords_and_trees(model, x):
    kwargs = {"shift": torch.randn(5)}
    fast = eager(model, (x, 2.0), kwargs)
    torch.testing.assert_close(fast(x, 2.0, **kwargs), model(x, 2.0, **kwargs))


def test_an_optimized_model_is_returned(model, x):
    fast = eager(model, x)
    assert optimize(fast, x) is fast


def test_inductor(model, x):
    fast = optimize(model, x, lower="inductor")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
    assert fast.report.time["lowering"] > 0


def test_fuel_stops_anywhere(model, x):
    total = len(eager(model, x).report.diff())
    for fuel in range(total + 1):
        fast = eager(model, x, fuel=fuel)
        assert len(fast.report.diff()) == fuel
        torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("end", ["", ", fold-constants{floor=0, growth=0}"])
def test_algebra_that_runs_at_each_call_is_told(model, x, end):
    """What fold-constants itself leaves, it leaves for a reason."""
    notes = eager(model, x, pipeline="fold-batch-norm" + end).report.notes
    assert notes == (() if end else ("7 operators on weights run at each call; end the pipeline with fold-constants",))


def test_algebra_made_behind_fold_constants_is_told(model, x):
    [note] = eager(model, x, pipeline="fold-constants, fold-batch-norm").report.notes
    assert "fold-constants" in note
    for settings in ({}, {"exclude": "fold-constants"}, {"fuel": 1}):
        assert not eager(model, x, **settings).report.notes
    assert not transform(model, x).report.notes


def test_pipeline_text_objects_and_exclusion(model, x):
    text = "reparameterize{max_kernel=1}, fold-constants"
    fast = eager(model, x, pipeline=text)
    assert fast.report.pipeline == text
    assert len([node for node in fast.graph_module.graph.nodes if node.target is aten.conv2d.default]) == 2
    assert not eager(model, x, exclude=["reparameterize", "fold-constants"]).report.diff("reparameterize")
    kept = eager(model, x, exclude="norm")
    assert any("batch_norm" in str(node.target) for node in kept.graph_module.graph.nodes)
    torch.testing.assert_close(kept(x), model(x))


def test_the_default_and_more(model, x):
    default, live = passes.default_pipeline(), passes.live_pipeline()
    fast = eager(model, x, pipeline="default, split-support, fold-constants")
    assert fast.report.pipeline == f"{default}, split-support, fold-constants"
    assert len(fast.report.diff()) == len(eager(model, x).report.diff())
    fast = eager(model, x, pipeline=["default", Shifted(), "simplify, fold-constants"], fuel=0)
    assert fast.report.pipeline == f"{default}, shifted, simplify, fold-constants"
    assert eager(model, x, pipeline=[default, Shifted()], fuel=0).report.pipeline == f"{default}, shifted"
    # of transform the default is what it runs by itself, which keeps weights live
    assert transform(model, x, "default, simplify").report.pipeline == f"{live}, simplify"
    assert transform(model, x, ["default", Shifted()], fuel=0).report.pipeline == f"{live}, shifted"


def test_a_pass_within_a_pass_and_a_shared_module_are_excluded(x):
    layer = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    for name in ("fold-batch-norm", "0", "2"):
        fast = eager(model, x, exclude=name)
        norms = [node for node in fast.graph_module.graph.nodes if "batch_norm" in str(node.target)]
        assert len(norms) == 2, name
    assert not [node for node in eager(model, x).graph_module.graph.nodes if "batch_norm" in str(node.target)]


def test_a_fold_that_overflows_later_is_undone():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval().half()
    x = torch.randn(2, 3, 5, 5).half() * 1e-3
    fast = eager(model, x)
    with torch.no_grad():
        model[0].weight.fill_(500)
        model[1].running_var.zero_()
        want = model(x)
        assert want.isfinite().all()
        torch.testing.assert_close(fast(x), want, rtol=1e-2, atol=1e-2)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x):
        return self.conv(x) * self.gain


def test_a_fold_that_underflows_later_is_undone():
    model, x = Scaled().eval().half(), torch.randn(2, 3, 5, 5).half()
    fast = eager(model, x)
    assert "mul" not in str(fast.graph_module.graph)
    with torch.no_grad():
        model.gain.fill_(1e-5)
        assert torch.equal(fast(x), model(x))
        model.gain.fill_(0)  # zero needs no digits
        assert torch.equal(fast(x), model(x))


def test_a_product_of_weights_that_overflows_later_is_undone():
    model, x = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 2, bias=False)).eval(), torch.randn(2, 8)
    fast = eager(model, x)
    assert len(fast.report.diff("merge-linear")) == 1
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(1e25)
        x = x / 1e25
        torch.testing.assert_close(fast(x), model(x))


def test_a_conversion_in_which_a_fold_underflows_is_an_error():
    model, x = Scaled().eval(), torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        model.gain.fill_(1e-5)
    fast = eager(model, x).half()
    with pytest.raises(RewriteError, match="too small for float16 when it is folded"):
        fast(x.half())


def test_a_list_is_one_argument(x):
    class Total(nn.Module):
        def forward(self, parts):
            return parts[0] + parts[1]

    torch.testing.assert_close(eager(Total().eval(), [x, x])([x, x]), 2 * x)


def test_transform_trains_the_model(model, x):
    twin = copy.deepcopy(model).train()
    step = transform(model.train(), x)
    for net, call in ((model, step), (twin, twin)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            call(x).square().sum().backward()
            optimizer.step()
    for (name, mine), theirs in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)


def test_transform_keeps_merged_branches_live(model, x):
    step = transform(model, x)
    assert step.report.diff("merge-branches")
    loss = step(x).square().sum()
    got = torch.autograd.grad(loss, list(model.parameters()))
    want = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


# -- what is refused --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shifted(Rule):
    """Wrong by little: verification of a single match is off in the tests that use it."""

    fidelity = Fidelity.ELEMENTWISE
    pattern = Call(aten.relu.default, self=Var("x"))

    def rewrite(self, match, g):
        return g(aten.add.Tensor, g(aten.relu.default, match.x), 0.01)


def unchanged(model, state):
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"pipeline": "simplfy"}, PipelineError, "did you mean 'simplify'"),
        ({"pipeline": "reparameterize{max_kernl=3}"}, PipelineError, "did you mean 'max_kernel'"),
        ({"pipeline": "reparameterize{3}"}, PipelineError, "option=value"),
        ({"pipeline": 3}, PipelineError, "not a pipeline"),
        ({"pipeline": [Shifted]}, PipelineError, "parentheses"),
        ({"exclude": "reparametrize"}, InputError, "did you mean 'reparameterize'"),
        ({"exclude": "nrm"}, InputError, "did you mean 'norm'"),
        ({"verify": "always"}, InputError, "'thorough'"),
        ({"lower": "inducter"}, InputError, "did you mean 'inductor'"),
        ({"fuel": -1}, InputError, "whole number"),
    ],
)
def test_bad_options(model, x, arguments, kind, words):
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(kind, match=words):
        optimize(model, x, **arguments)
    unchanged(model, state)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda m: m.forward, InputError, "not an nn.Module"),
        (lambda m: Branches, InputError, "instance"),
        (lambda m: m.train(), InputError, "eval"),
        (lambda m: torch.jit.trace(m, torch.randn(1, 4, 9, 8)), CaptureError, "ScriptModule"),
        (lambda m: nn.Sequential(m, nn.Linear(2, 2, device="meta")).eval(), CaptureError, "meta"),
        (lambda m: nn.Sequential(nn.LazyConv2d(4, 1), m).eval(), CaptureError, "not initialized"),
    ],
)
@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")
def test_bad_models(model, x, change, kind, words):
    with pytest.raises(kind, match=words):
        optimize(change(model), x)


def test_inputs_that_do_not_fit(model):
    with pytest.raises(InputError, match=r"test_api\.py"):
        optimize(model, torch.randn(2, 3, 9, 8))


def test_training_mode_is_refused_without_an_example(model):
    with pytest.raises(InputError, match="eval"):
        optimize(model.train())


def test_a_rule_without_fidelity():
    with pytest.raises(RuleError, match="fidelity"):

        class Nameless(Rule):
            pass


def test_a_wrong_rule_is_rejected_and_the_model_works(model, x):
    fast = eager(model, x, pipeline=Shifted())
    assert not fast.report.diff()
    assert "allowed" in fast.report.records[0].rejections[0].reason
    torch.testing.assert_close(fast(x), model(x))


def test_the_whole_model_is_the_last_word(model, x, monkeypatch):
    monkeypatch.setattr("rewrite.verify.MatchVerifier.verify", lambda *args: Verdict(True))
    with pytest.raises(VerificationError, match="not equal to the model"):
        eager(model, x, pipeline=Shifted(), fuel=1)


def test_transform_refuses_to_freeze(model, x):
    with pytest.raises(PipelineError, match="trainable"):
        transform(model, x, "simplify, fold-constants")
    with pytest.raises(InputError, match="the model itself"):
        transform(eager(model, x), x)


def test_pipelines_add_up():
    pipeline = Pipeline((Shifted(),)) + Shifted()
    assert str(pipeline) == "shifted, shifted"
    assert issubclass(Pass, object)
