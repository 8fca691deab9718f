"""The rule that approximates layers by chains of low rank: its sites and refusals, its options, a whole model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passes
import rewrite
from passes.low_rank_approximation import LowRank, patches, rule
from rewrite.approximation.sites import find_sites
from rewrite.errors import PipelineError
from rewrite.pipeline import Pipeline
from rewrite.trace import capture
from tests.passes.approximating import offered, relative, smooth

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Called(nn.Module):
    """A function of the input and of parameters."""

    def __init__(self, function: Any, *shapes: tuple[int, ...]):
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape, dtype=DOUBLE)) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (lambda x, w: x @ w, [(24, 10)]),
        (lambda x, w: x.mm(w), [(24, 10)]),
        (lambda x, w, b: torch.addmm(b, x, w), [(24, 30), (30,)]),
        (lambda x, w, b: torch.addmm(b, x, w), [(24, 30), (1,)]),
        (lambda x, w: F.linear(x, w * 2), [(10, 24)]),
    ],
    ids=["matmul", "mm", "addmm", "addmm with one bias", "weight algebra"],
)
def test_products_with_a_matrix(function: Any, shapes: list[tuple[int, ...]]):
    model, x = Called(function, *shapes), torch.randn(80, 24, dtype=DOUBLE) + 1
    found = offered(model, LowRank(ranks=3), x)
    assert len(found) == 3
    for each in found:
        assert each.option.error == pytest.approx(relative(each(x), model(x)), rel=1e-6)


REFUSED: dict[str, tuple[nn.Module, Tensor, str]] = {
    "transposed": (nn.ConvTranspose2d(4, 6, 3), torch.randn(2, 4, 8, 8), "transposed"),
    "no batch": (nn.Conv2d(4, 6, 3), torch.randn(4, 8, 8), "no batch dimension"),
    "complex": (nn.Linear(8, 8, dtype=torch.complex64), torch.randn(3, 8, dtype=torch.complex64), "complex64"),
    "weights from the input": (Called(lambda x, w: F.linear(x, w * x.sum()), (8, 8)), torch.randn(3, 8, dtype=DOUBLE),
                               "depends on the input"),
    "no weights": (Called(lambda x, w: F.linear(x[:, :0], w), (8, 0)), torch.randn(3, 8, dtype=DOUBLE), "no weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str):
    model, x, reason = REFUSED[name]
    sites, [miss] = find_sites(capture(model.eval(), (x,)).graph, [LowRank()], frozenset())
    assert not sites
    assert reason in str(miss)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(bad: float):
    layer = nn.Linear(8, 8).eval()
    with torch.no_grad():
        layer.weight[2, 3] = bad
    sites, [miss] = find_sites(capture(layer, (torch.randn(3, 8),)).graph, [LowRank()], frozenset())
    assert not sites
    assert "infinite or NaN" in str(miss)


@pytest.mark.parametrize("outputs", [8, 16])
def test_depthwise_convolutions_are_left_out(outputs: int):
    layer = nn.Conv2d(8, outputs, 3, groups=8).eval()
    assert find_sites(capture(layer, (torch.randn(2, 8, 9, 9),)).graph, [LowRank()], frozenset()) == ([], [])


def test_what_reads_and_gives_too_much_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rule, "LARGEST", 30)
    graph = capture(nn.Conv2d(4, 31, 3).eval(), (torch.randn(2, 4, 9, 9),)).graph
    sites, [miss] = find_sites(graph, [LowRank()], frozenset())
    assert not sites
    assert "reads 36 values at once and gives 31" in str(miss)


@pytest.mark.parametrize("groups", [1, 2])
def test_large_layers_are_fitted_to_their_outputs(monkeypatch: pytest.MonkeyPatch, groups: int):
    """Only subspaces of the outputs are offered then, and these are the same."""
    layer = nn.Conv2d(8, 10, 3, groups=groups, dtype=DOUBLE)
    x = [smooth(8, 8, 12, 12) + 1 for _ in range(2)]
    known = offered(layer, LowRank(forms="channel tucker", ranks=3), *x)
    known = [each for each in known if each.form == "channel"]
    monkeypatch.setattr(rule, "LARGEST", 20)
    found = offered(layer, LowRank(ranks=3), *x)
    assert [each.option.text for each in found] == [each.option.text for each in known]
    assert "outputs" in found[0].match.rule.watch(found[0].graph, found[0].match)
    both = torch.cat(x)
    for each, other in zip(found, known, strict=True):
        assert each.option.error == pytest.approx(relative(each(both), layer(both)), rel=1e-6)
        assert each.option.error == pytest.approx(other.option.error, rel=1e-3)
    assert not offered(layer, LowRank(forms="spatial"), *x)


def test_products_in_single_precision(monkeypatch: pytest.MonkeyPatch):
    """Many values are kept in float32, about their mean, which costs few digits."""
    layer, x = nn.Conv2d(8, 10, 3, dtype=DOUBLE), smooth(8, 8, 12, 12)
    x = x / x.std() + 20
    expected = [each.option.error for each in offered(layer, LowRank(ranks=3), x)]
    monkeypatch.setattr(patches, "DOUBLE", 20)
    found = offered(layer, LowRank(ranks=3), x)
    for each, error in zip(found, expected, strict=True):
        assert each.option.error == pytest.approx(relative(each(x), layer(x)), rel=1e-3)
        assert each.form == "cp" or each.option.error == pytest.approx(error, rel=1e-3)


def test_only_what_saves_products_is_offered():
    """A stride leaves less to save for what reads all of the input."""
    for stride in (1, 2):
        layer, x = nn.Conv2d(16, 16, 3, stride=stride, padding=1), torch.randn(2, 16, 12, 12)
        size = 12 // stride
        given = 16 * 16 * 9 * size**2
        found = offered(layer, LowRank(ranks=1000, least=1e-9), x)
        for each in found:
            total, sizes = 0, [12, 12]
            for weight in each.weights:
                sizes = [size if k > 1 or each.form == "channel" else n
                         for n, k in zip(sizes, weight.shape[2:], strict=True)]  # fmt: skip
                total += weight.numel() * sizes[0] * sizes[1]
            assert total < given, each.option.text
        highest = {each.form: each.option.text for each in found}
        assert highest == ({"channel": "channel 14", "spatial": "spatial 23", "tucker": highest["tucker"],
                            "cp": "cp 16"} if stride == 1 else
                           {"channel": "channel 14", "spatial": "spatial 15", "tucker": highest["tucker"],
                            "cp": "cp 16"})  # fmt: skip


def test_ranks_are_in_geometric_progression():
    found = offered(nn.Linear(256, 256), LowRank(ranks=4, least=1 / 8), torch.randn(4, 256))
    assert [each.option.text for each in found] == ["channel 16", "channel 31", "channel 56", "channel 120"]


def test_options_print_and_parse():
    registry = passes.approximations()
    assert registry.parse("low-rank").steps == (LowRank(),)
    for text in ("low-rank{forms=channel tucker, ranks=3}", "low-rank{forms='channel tucker', ranks=3}"):
        [step] = registry.parse(text).steps
        assert step == LowRank(forms="channel tucker", ranks=3)
        assert registry.parse(str(Pipeline((step,)))).steps == (step,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("forms=chanel", "did you mean 'channel'"),
        ("forms=''", "forms is empty"),
        ("ranks=0", "ranks is 0"),
        ("least=0", "least is 0"),
        ("least=1.5", "least is 1.5"),
        ("forms=3", "write a value of type str"),
    ],
)
def test_options_that_mean_nothing(options: str, said: str):
    with pytest.raises(PipelineError, match=said):
        passes.approximations().parse(f"low-rank{{{options}}}")


class Net(nn.Module):
    """Layers of several kinds, whose inputs are correlated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 5, padding=2)
        self.norm = nn.BatchNorm2d(24)
        self.body = nn.Conv2d(24, 24, 3, padding=1)
        self.down = nn.Conv2d(24, 32, 3, stride=2, padding=1, groups=2)
        self.head = nn.Linear(32, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.down((x + self.body(x)).relu()).relu()
        return self.head(x.mean((2, 3)))


def test_a_model_within_its_budget():
    """The budget holds on other data, and the rewritten student is optimized as any model is."""
    model = Net().eval()
    data = smooth(96, 3, 20, 20).float()
    batches, fresh = list(data[:64].split(16)), data[64:]
    student = rewrite.approximate(model, batches, "low-rank{ranks=5}", max_error=0.1)
    assert len(student.ledger.taken) >= 2
    assert student.ledger.drift <= 0.1
    assert relative(student(fresh), model(fresh)) <= 0.15
    assert student.ledger.after.flops < 0.8 * student.ledger.before.flops
    assert "low_rank" in " ".join(name for name, _ in student.named_parameters())
    fast = rewrite.optimize(student, fresh, lower="eager")
    assert relative(fast(fresh), student(fresh)) < 1e-5
    student.undo()
    assert relative(student(fresh), model(fresh)) < 1e-5


def test_what_is_predicted_is_measured_where_data_is_the_same():
    """Batches that are alike are held out and fitted to."""
    model, x = nn.Conv2d(12, 12, 3, padding=1, dtype=DOUBLE).eval(), smooth(6, 12, 12, 12)
    for form in rule.FORMS:
        student = rewrite.approximate(model, [x, x], f"low-rank{{forms={form}}}", max_error=0.6)
        [entry] = student.ledger.taken
        assert entry.option.startswith(form)
        assert entry.measured == pytest.approx(entry.predicted, rel=1e-6)
        assert entry.predicted == pytest.approx(relative(student(x), model(x)), rel=1e-6)
