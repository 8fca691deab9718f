"""The module that comes out: trained, observed, copied, and undone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from rewrite import approximate, optimize
from rewrite.approximation import ApproximatedModule
from rewrite.errors import InputError, RewriteError
from tests.approximation.networks import Net, batches, net, smooth


@pytest.fixture(scope="module")
def model() -> Net:
    return net(5, 7, 9)


@pytest.fixture(scope="module")
def made(model: Net) -> ApproximatedModule:
    return approximate(model, batches(), "inception", saving=0.3)


@pytest.fixture
def student(made: ApproximatedModule) -> ApproximatedModule:
    return copy.deepcopy(made)


def test_undoing_all_gives_the_model_back(model: Net, student: ApproximatedModule) -> None:
    x = smooth(2, 9)
    sites = [entry.site for entry in student.ledger.taken]
    assert len(sites) > 1
    student.undo(sites[0])
    assert [entry.state for entry in student.ledger if entry.site == sites[0]] == ["undone"]
    assert student.boundaries == tuple(sites[1:])
    student.undo()
    assert student.boundaries == ()
    with torch.no_grad():
        torch.testing.assert_close(student(x), model(x))


def test_what_was_trained_stays_but_at_the_site_that_is_undone(student: ApproximatedModule) -> None:
    first, second = student.ledger.taken[:2]
    before = dict(student.named_parameters())
    with torch.no_grad():
        for parameter in before.values():
            parameter.add_(0.125)
    student.undo(first.site)
    after = dict(student.named_parameters())
    assert any(name.startswith(f"program.{second.module}.{second.site}.inception") for name in after)
    assert not any(name.startswith(f"program.{first.module}.{first.site}.inception") for name in after)
    for name, parameter in after.items():
        assert parameter is before.get(name) or name.startswith(f"program.{first.module}")
    original = student.source.program.state_dict()[f"{first.module}.weight"]
    assert torch.equal(after[f"program.{first.module}.weight"], original)


def test_the_original_weights_are_never_lost(model: Net, student: ApproximatedModule) -> None:
    x = smooth(2, 9)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
        torch.testing.assert_close(student.source(x), model(x))


def test_sites_that_are_not_approximated(student: ApproximatedModule) -> None:
    with pytest.raises(InputError, match=r"site 'conv2d_99' is not approximated"):
        student.undo("conv2d_99")


def test_inner_values_and_their_gradients(student: ApproximatedModule) -> None:
    x = smooth(2, 9)
    names = list(student.boundaries)
    y, seen = student.observe(names, x)
    torch.testing.assert_close(y, student(x))
    assert list(seen) == names
    with torch.no_grad():
        _, theirs = student.source.observe(names, x)
    assert all(seen[name].shape == theirs[name].shape for name in names)
    seen[names[-1]].square().sum().backward()
    touched = [name for name, parameter in student.named_parameters() if parameter.grad is not None]
    assert touched
    assert not any(name.startswith("program.head") for name in touched)
    with pytest.raises(InputError, match="no boundary 'nothing'"):
        student.observe(["nothing"], x)
    with pytest.raises(InputError, match="not like that which the program was made for"):
        student.observe(names, x, x)


def test_copies_are_independent(student: ApproximatedModule) -> None:
    x = smooth(2, 9)
    twin = copy.deepcopy(student)
    wanted = student(x).detach()
    torch.testing.assert_close(twin(x).detach(), wanted)
    with torch.no_grad():
        next(iter(twin.parameters())).add_(1.0)
    twin.undo(student.ledger.taken[0].site)
    torch.testing.assert_close(student(x).detach(), wanted)
    assert len(student.ledger.taken) == len(twin.ledger.taken) + 1


def test_state_dicts_go_from_one_to_another(model: Net, student: ApproximatedModule) -> None:
    other = approximate(model, batches(), "inception", saving=0.3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    student.load_state_dict(other.state_dict())
    x = smooth(2, 9)
    torch.testing.assert_close(student(x), other(x))


def test_any_batch_size(model: Net, student: ApproximatedModule) -> None:
    for samples in (1, 3):
        assert student(smooth(samples, 1)).shape == (samples, 5)


def test_it_trains(student: ApproximatedModule) -> None:
    x = smooth(8, 3)
    with torch.no_grad():
        wanted = student.source(x)
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss = (student(x) - wanted).square().mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


class Twice(nn.Module):
    """One convolution that is called twice, so that two sites have one module."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(6, 6, 7, padding=3, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.relu(self.mix(x)))


def test_sites_of_one_module_keep_their_own_weights() -> None:
    torch.manual_seed(0)
    data = [torch.nn.functional.avg_pool2d(torch.randn(4, 6, 14, 14), 3, 1, 1) * 2 for _ in range(3)]
    student = approximate(Twice().eval(), data, "inception", max_error=0.9)
    first, second = student.ledger.taken
    with pytest.raises(InputError, match="there are several sites in 'mix'"):
        student.undo("mix")
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.5)
        x = data[0]
        _, before = student.observe([first.site], x)
        kept = copy.deepcopy(student)
        kept.undo(second.site)
        _, after = kept.observe([first.site], x)
    torch.testing.assert_close(after[first.site], before[first.site])


def test_after_an_undo_it_is_optimized_as_before(student: ApproximatedModule) -> None:
    x = smooth(2, 9)
    student.undo(student.ledger.taken[0].module)
    assert student.ledger.drift is None
    assert "not measured since" in str(student.ledger)
    fast = optimize(student, x, lower="eager", tune="off")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), student(x))


def test_restored_weights_are_like_the_others(student: ApproximatedModule) -> None:
    student.double().requires_grad_(False)
    twin = copy.deepcopy(student)
    for each in (student, twin):
        each.undo(each.ledger.taken[0].site)
        assert {x.dtype for x in each.parameters()} == {torch.float64}
        assert not any(x.requires_grad for x in each.parameters())
        x = smooth(2, 9).double()
        with torch.no_grad():
            assert each(x).dtype == each.source(x).dtype == torch.float64


def test_other_calls_are_refused(student: ApproximatedModule) -> None:
    """Sizes are part of the program: means over so many places are products with a number."""
    with pytest.raises(InputError, match=r"was made for other calls.*shape \[2, 3, 24, 24\], not \[any, 3, 20, 20\]"):
        student(smooth(2, 9, size=24))
    with pytest.raises(RewriteError, match="cannot be pickled"):
        pickle.dumps(student)
