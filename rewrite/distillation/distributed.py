"""The processes that train together, as torchrun starts them; one process alone is a world of one."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rewrite.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_numbers = itertools.count()


@dataclass(frozen=True)
class World:
    """This process among those that train together.

    Attributes:
        device: where the student is, and what is exchanged.
        rank: the number of this process.
        size: how many there are.
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, the same in each; ``values`` may be overwritten."""
        if self.size == 1:
            return values
        dist.all_reduce(values)
        return values / self.size

    def total(self, numbers: list[float]) -> list[float]:
        """The sums over the processes, the same in each."""
        if self.size == 1:
            return numbers
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return values.tolist()

    def share(self, value: Any) -> Any:
        """What the first process has."""
        if self.size == 1:
            return value
        box = [value if self.first else None]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """What each process has."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module whose gradients are the mean over the processes; the first one's weights are everybody's."""
        if self.size == 1:
            return module
        # in a stage over blocks some parameters have no part in the loss, and models may choose among their own
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)

    @staticmethod
    def release(module: nn.Module) -> None:
        """Undo :meth:`wrap`, also where a traceback still holds the wrapper.

        The end of a process group waits for its threads, and these for the interpreter, which whoever frees a wrapper
        holds: so wrappers let go of their group before it ends.
        """
        if isinstance(module, nn.parallel.DistributedDataParallel):
            for name in ("logger", "reducer"):
                vars(module).pop(name, None)

    def align(self, module: nn.Module) -> None:
        """Give every process the first one's buffers, which no gradient keeps equal."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes of ``torch.distributed``, or those that torchrun has started, for as long as it takes.

    Raises:
        InputError: a process that torchrun has started for one GPU has the student on another.
    """
    if dist.is_available() and dist.is_initialized():
        yield _world(device)
        return
    size = os.environ.get("WORLD_SIZE", "1") if all(name in os.environ for name in _VARIABLES) else "1"
    if size == "1" or not dist.is_available():
        yield World(device)
        return
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda" and device.index != local:
        raise InputError(
            f"the student is on {device} in the process with LOCAL_RANK={local}; call torch.cuda.set_device({local}), "
            "that is int(os.environ['LOCAL_RANK']), before anything is put on the GPU"
        )
    _join(device)
    try:
        world = _world(device)
        yield world
        world.total([0.0])  # nobody leaves while another one still reads
    finally:
        dist.destroy_process_group()


def _join(device: torch.device) -> None:
    from torch.distributed.distributed_c10d import PrefixStore  # not there where torch is built without

    store, rank, size = _meeting()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(f"torch_rewrite/{next(_numbers)}", store),
        rank=rank,
        world_size=size,
    )


@functools.cache
def _meeting() -> tuple[Any, int, int]:
    """Where the processes find each other, once, since a second one has the addresses of the first."""
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    return store, rank, size


def _world(device: torch.device) -> World:
    return World(device, dist.get_rank(), dist.get_world_size())
