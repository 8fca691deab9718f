"""``kernel_plan``, and lowerings of one's own in ``optimize``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from codegen import Eager
from rewrite import InputError, kernel_plan, optimize


class Net(nn.Module):
    """A stem, and a wide depthwise convolution with what follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 16, 4, stride=4), nn.Conv2d(16, 16, 13, padding=6, groups=16)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.mix(self.stem(x))))


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


def test_plan_tells_what_is_fused_and_why(net: nn.Module) -> None:
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    plan = kernel_plan(net, torch.randn(2, 3, 64, 64))
    (planned,) = plan.regions
    text = str(plan)
    assert text.startswith("1 kernels on H200, ")
    assert "depthwise [16 13x13] -> relu" in text
    assert f"bound by {planned.bound}" in text
    assert planned.gain == pytest.approx(planned.parts - planned.seconds)
    assert plan.gain > 0
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("last", [False, True])
def test_other_batches_need_no_memory(net: nn.Module, last: bool) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=layout)
    plans = [kernel_plan(net.to(memory_format=layout), x, batch=batch) for batch in (2, 1 << 16)]
    assert [plan.regions[0].region.sizes["n"] for plan in plans] == [2, 1 << 16]
    assert [("channels" in str(plan) or "Toeplitz" in str(plan)) for plan in plans]
    assert plans[1].regions[0].seconds > 100 * plans[0].regions[0].seconds


def test_devices_differ(net: nn.Module) -> None:
    x = torch.randn(2, 3, 64, 64)
    old, new = (kernel_plan(net, x, device, batch=4096) for device in ("A100", "B200"))
    assert old.device.name == "A100"
    assert old.regions[0].seconds > new.regions[0].seconds


def test_elementwise_numerics_leave_zeros_out(net: nn.Module) -> None:
    x = torch.randn(2, 3, 64, 64)
    assert "Toeplitz" in str(kernel_plan(net, x, batch=64))
    assert "Toeplitz" not in str(kernel_plan(net, x, batch=64, numerics="elementwise"))


def test_wrong_arguments_are_named(net: nn.Module) -> None:
    x = torch.randn(2, 3, 64, 64)
    with pytest.raises(InputError, match=r"device='H20' is unknown.*H200"):
        kernel_plan(net, x, device="H20")

    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a.sum() + b

    with pytest.raises(InputError, match=r"batch=4 needs inputs of one batch, and theirs are \[2, 3\]"):
        kernel_plan(Two().eval(), (torch.randn(2, 3), torch.randn(3, 2)), batch=4)


def test_grouped_and_transposed_convolutions_are_declined() -> None:
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped = nn.Conv2d(8, 8, 3, groups=4)
            self.up = nn.ConvTranspose2d(8, 8, 3, groups=8)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.grouped(x))

    plan = kernel_plan(Others().eval(), torch.randn(1, 8, 12, 12))
    assert plan.regions == ()
    assert sorted(each.reason for each in plan.declined) == [
        "it is transposed", "its 4 groups are not its 8 input and 8 output channels",
    ]  # fmt: skip
    assert "not " in str(plan)


def test_a_lowering_of_ones_own(net: nn.Module) -> None:
    class Mine(Eager):
        name = "mine"

    x = torch.randn(2, 3, 64, 64)
    fast = optimize(net, x, lower=Mine())
    torch.testing.assert_close(fast(x), net(x))
    assert [each.lowering for each in fast.lowerings] == ["mine"]
    assert fast.kernels == ()


def test_what_is_no_lowering_is_refused(net: nn.Module) -> None:
    with pytest.raises(InputError, match="lower=3 is unknown"):
        optimize(net, torch.randn(2, 3, 64, 64), lower=3)  # type: ignore[arg-type]
