"""One of two processes that train together, started as torchrun starts them; it fails where anything differs.

Run with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import copy
import os
import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rewrite import InputError, optimize, transform

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
ROWS = 4


class Branches(nn.Module):
    """Two branches that are one convolution after rewriting, a norm, and a layer that forward does not use."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.norm, self.fc = norm, nn.Linear(6, 4)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.wide(x) + self.narrow(x)).relu().mean((2, 3)))


def model(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return Branches(norm).double().train()


def batches() -> list[Tensor]:
    """For each process its rows of a batch."""
    torch.manual_seed(1)
    return list(torch.randn(WORLD * ROWS, 3, 7, 7, dtype=torch.float64).split(ROWS))


def step(network: nn.Module, x: Tensor) -> None:
    network(x).square().mean().backward()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad for name, value in network.named_parameters() if value.grad is not None}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected), (list(found), list(expected))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_gradients_are_those_of_one_process(x: list[Tensor]) -> None:
    alone, shared = model(nn.GroupNorm(2, 6)), model(nn.GroupNorm(2, 6))
    step(alone, torch.cat(x))
    trained = transform(shared, x[RANK])
    layers = [node for node in trained.graph_module.graph.nodes if "conv" in str(node.target)]
    assert len(layers) == 1, "the branches are one convolution"
    wrapped = DistributedDataParallel(trained, find_unused_parameters=True)
    for _ in range(2):
        wrapped.zero_grad()
        step(wrapped, x[RANK])
    same(gradients(shared), gradients(alone))
    assert list(wrapped.state_dict()) == [f"module.{name}" for name in shared.state_dict()]
    wrapped.module.load_state_dict({key.removeprefix("module."): value for key, value in wrapped.state_dict().items()})


def test_training_is_that_of_the_wrapped_model(x: list[Tensor]) -> None:
    networks = [model(nn.BatchNorm2d(6)) for _ in range(2)]
    for network in networks:
        network.unused = nn.Identity()
        if RANK:  # what the wrapper has to make equal
            network.norm.running_mean.add_(1)
    wrapped = [DistributedDataParallel(networks[0]), DistributedDataParallel(transform(networks[1], x[RANK]))]
    optimizers = [torch.optim.SGD(network.parameters(), 0.1, momentum=0.9) for network in networks]
    for _ in range(3):
        for network, optimizer in zip(wrapped, optimizers, strict=True):
            optimizer.zero_grad()
            step(network, x[RANK])
            optimizer.step()
    same(dict(networks[1].named_parameters()), dict(networks[0].named_parameters()))
    same(dict(networks[1].named_buffers()), dict(networks[0].named_buffers()))
    for name, value in networks[1].named_parameters():
        gathered = [torch.empty_like(value) for _ in range(WORLD)]
        dist.all_gather(gathered, value.detach())
        assert torch.equal(gathered[0], gathered[1]), name


def test_wrapped_models_for_inference_and_training(x: list[Tensor]) -> None:
    wrapped = DistributedDataParallel(model(nn.BatchNorm2d(6)))
    with pytest.raises(InputError, match="wrap what transform returns"):
        transform(wrapped, x[RANK])
    fast = optimize(copy.deepcopy(wrapped).eval(), x[RANK], lower="eager")
    torch.testing.assert_close(fast(x[RANK]), wrapped.eval()(x[RANK]))


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=100))
    x = batches()
    test_gradients_are_those_of_one_process(x)
    test_training_is_that_of_the_wrapped_model(x)
    test_wrapped_models_for_inference_and_training(x)
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    main()
