"""The whole program against the user's module."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from rewrite.errors import VerificationError
from rewrite.trace import capture
from rewrite.verify import verify_model, verify_whole


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        y = self.norm(self.conv(x)).relu()
        return y, self.head(y.mean((2, 3)))


class Rearranged(nn.Module):
    """The same network in another order of operations, with an error where a test puts one."""

    def __init__(self, net, error=lambda y, z: (y, z)):
        super().__init__()
        self.net, self.error = net, error

    def forward(self, x):
        net = self.net
        scale = net.norm.weight.double() / (net.norm.running_var.double() + net.norm.eps).sqrt()
        weight = (net.conv.weight.double() * scale[:, None, None, None]).to(x.dtype)
        shift = (net.conv.bias.double() - net.norm.running_mean.double()) * scale + net.norm.bias.double()
        y = torch.conv2d(x, weight, shift.to(x.dtype), padding=1).relu()
        return self.error(y, net.head(y.mean((2, 3))))


def network(dtype=torch.float32):
    net = Net().eval().to(dtype)
    with torch.no_grad():
        net.norm.running_mean.normal_()
        net.norm.running_var.uniform_(0.5, 2)
        net.norm.weight.uniform_(-1.5, 1.5)
    return net


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16, torch.float64], ids=str)
def example(request):
    torch.manual_seed(0)
    net, x = network(request.param), torch.randn(3, 3, 17, 15, dtype=request.param)
    return net, x, capture(net, (x,)).graph


def one_channel(y, z):
    return y, torch.cat([z[:, :4], z[:, 4:] * 2], 1)


def one_pixel(y, z):
    y = y.clone()
    y[1, 3, 0, 0] += 1
    return y, z


def second_row(y, z):
    return y, torch.cat([z[:1], z[:1]])


def not_a_number(y, z):
    return y, torch.where(z == z.max(), torch.nan, z)


def another_dtype(y, z):
    return y, z.to(torch.float16)


def another_shape(y, z):
    return y[:, :, 1:], z


def another_structure(y, z):
    return [y, z]


def shared(y, z):
    return y, y.flatten()[: z.numel()].reshape(z.shape)


def test_another_order_of_operations_is_accepted(example):
    net, x, graph = example
    verdict = verify_model(net, Rearranged(net), graph, (x,))
    assert verdict.accepted, verdict.reason
    assert verdict.error < 1
    assert not verdict.note


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (one_channel, "output 1 is wrong in 1 of 5 channels, most in channel 4"),
        (one_pixel, "output 0 is wrong in 1 of 16 channels, most in channel 3"),
        (second_row, "output 1 is wrong"),
        (not_a_number, "infinite or NaN in 1 places"),
        (another_dtype, "output '1' is float16"),
        (another_shape, r"output '0' is .*\[2, 16, 16, 15\], not .*\[2, 16, 17, 15\]"),
        (another_structure, "another structure"),
        (shared, "output 1 shares memory with output 0"),
    ],
)
def test_a_wrong_program_is_rejected(example, error, reason):
    net, x, graph = example
    verdict = verify_model(net, Rearranged(net, error), graph, (x,))
    assert not verdict.accepted
    assert re.search(reason, verdict.reason), verdict.reason


def test_the_inputs_and_the_model_stay_as_they_are():
    class InPlace(Net):
        def forward(self, x):
            return super().forward(x.mul_(2))

    net, x = InPlace().eval(), torch.randn(2, 3, 8, 8)
    before = x.clone()
    verdict = verify_model(net, net, capture(Net().eval(), (x,)).graph, (x,))
    assert torch.equal(x, before)
    assert "another in float64" in verdict.note


class Chaotic(nn.Module):
    """Doubles a difference at each step, so that what is usual for roundings says nothing."""

    def forward(self, x):
        for _ in range(7):
            x = 4 * x * (1 - x)
        return x


def test_noise_of_the_model_itself_is_no_error():
    net = Chaotic().eval()
    graph = capture(net, (torch.rand(2, 1),)).graph

    def reordered(x):
        for _ in range(7):
            x = 4 * x - 4 * x * x
        return x

    for seed in range(40):
        x = torch.rand(2, 1, generator=torch.Generator().manual_seed(seed))
        assert verify_model(net, reordered, graph, (x,)).accepted
        assert not verify_model(net, lambda x: reordered(x) * 1.1, graph, (x,)).accepted


class Decision(nn.Module):
    def forward(self, x):
        return x.argmax(1), x > 0.5


def test_whole_numbers_are_equal_but_for_near_ties():
    net = Decision().eval()
    x = torch.tensor([[0.5, 0.5, 0.1], [1.0, 2.0, 3.0]])
    graph = capture(net, (x,)).graph

    def decided(first, second):
        return lambda x: (torch.tensor([first, second]), net(x)[1])

    assert not verify_model(net, decided(0, 2), graph, (x,)).note
    tied = verify_model(net, decided(1, 2), graph, (x,))
    assert tied.accepted
    assert tied.note == "output 0 differs in 1 near ties"
    wrong = verify_model(net, decided(0, 1), graph, (x,))
    assert "output 0, of torch.int64, differs in 1 of 2 values that are no near ties" in wrong.reason


def test_random_programs_are_compared_in_shape():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    net, x = Noisy().eval(), torch.randn(2, 3)
    graph = capture(net, (x,)).graph
    verdict = verify_model(net, net, graph, (x,))
    assert verdict.accepted
    assert "only shapes and dtypes" in verdict.note
    assert not verify_model(net, lambda x: net(x)[:, :2], graph, (x,)).accepted


def test_an_example_without_a_finite_result_shows_nothing():
    class Infinite(nn.Module):
        def forward(self, x):
            return x / 0.0

    net, x = Infinite().eval(), torch.randn(2, 3)
    graph = capture(net, (x,)).graph
    assert "pass one with finite results" in verify_model(net, net, graph, (x,)).reason
    with pytest.raises(VerificationError) as caught:
        verify_whole(net, graph, graph.copy(), (x,), {})
    assert str(caught.value) == (
        "Infinite cannot be compared with what it was rewritten to: every output of the model is infinite or NaN on "
        "the example; pass one with finite results"
    )


class Kept(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("anchors", torch.randn(4))

    def forward(self, x):
        return x, x.reshape(-1), self.anchors, x + 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a, b, c, d: (a, b, c, d), ""),
        (lambda a, b, c, d: (a.clone(), b, c, d), "output 0 does not share memory with input 0"),
        (lambda a, b, c, d: (a, b, c.clone(), d), "output 2 does not share memory with a weight"),
    ],
)
def test_what_the_model_returns_of_its_own_is_returned(change, reason):
    net, x = Kept().eval(), torch.randn(2, 3)
    graph = capture(net, (x,)).graph
    verdict = verify_model(net, lambda x: change(*net(x)), graph, (x,))
    assert verdict.accepted == (not reason)
    assert reason in verdict.reason


def test_a_result_that_stays_in_the_program_is_rejected():
    net, x = Kept().eval(), torch.randn(2, 3)
    graph = capture(net, (x,)).graph
    held = x + 1
    verdict = verify_model(net, lambda x: (*net(x)[:3], held), graph, (x,), weights=[held])
    assert "output 3 shares memory with a weight" in verdict.reason
