"""What a GPU can do: the rates that bound a kernel, and the time that they leave it.

A kernel moves bytes through memory and through the first cache, and computes on plain units, on those for special
functions and on tensor cores; whichever takes longest bounds it (the roofline of Williams, Waterman and Patterson,
2009, with more than one ceiling).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True)
class Work:
    """What a kernel does, over all its programs.

    Attributes:
        bytes: read from memory and written to it, each element once.
        lines: accesses of 128 bytes or less to the first cache, by a warp each.
        plain: float32 instructions of one element: products with a sum, comparisons, choices.
        special: instructions of one element that compute exponentials, roots and quotients.
        tensor: floating-point operations on tensor cores, a product and its sum counted as two.
    """

    bytes: float = 0.0
    lines: float = 0.0
    plain: float = 0.0
    special: float = 0.0
    tensor: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.bytes + other.bytes, self.lines + other.lines, self.plain + other.plain,
            self.special + other.special, self.tensor + other.tensor,
        )  # fmt: skip


def total(works: Iterable[Work]) -> Work:
    """All of them, one after the other."""
    found = Work()
    for work in works:
        found = found + work
    return found


@dataclass(frozen=True)
class Device:
    """A GPU by its rates.

    Attributes:
        name: as people call it.
        architecture: as compilers call it.
        processors: streaming multiprocessors, or compute units.
        clock: cycles per second under load.
        copy: bytes per second that a plain copy reads and writes together.
        plain: float32 instructions of one element per cycle and processor.
        special: special instructions of one element per cycle and processor.
        tensor: floating-point operations per second on tensor cores by dtype, sums in float32.
        shared: bytes of shared memory that a program may have.
        registers: of a thread that a schedule may need by an estimate; compilers have a few more.
        triple: whether tensor cores multiply float32 numbers as three products of TF32 numbers.
        launch: seconds that a kernel takes at least.
        measured: whether the rates were measured, or are the maker's with the usual share of them.
    """

    name: str
    architecture: str
    processors: int
    clock: float
    copy: float
    plain: int
    special: int
    tensor: Mapping[torch.dtype, float] = field(hash=False)
    shared: int = 232448
    registers: int = 232
    triple: bool = True
    launch: float = 2.5e-6
    measured: bool = False

    def bounds(self, work: Work, dtype: torch.dtype) -> dict[str, float]:
        """Seconds that each resource is busy for, by its name.

        Args:
            work: of one kernel.
            dtype: of what tensor cores multiply.
        """
        cycles = self.processors * self.clock
        return {
            "bytes": work.bytes / self.copy,
            "cache": work.lines / cycles,
            "FMA": work.plain / (self.plain * cycles),
            "special": work.special / (self.special * cycles),
            "tensor cores": work.tensor / self.tensor.get(dtype, self.tensor[torch.float32]),
        }

    def seconds(self, work: Work, dtype: torch.dtype) -> float:
        """The time of one kernel: of its busiest resource, and of the launch."""
        return self.launch + max(self.bounds(work, dtype).values())

    def order(self, work: Work, dtype: torch.dtype) -> tuple[float, float]:
        """What sorts kernels by their time; those that take as long by what keeps resources busy together."""
        found = self.bounds(work, dtype).values()
        return self.launch + max(*found, self.launch), sum(found)

    def bound(self, work: Work, dtype: torch.dtype) -> str:
        """The resource that bounds a kernel, or ``"launch"`` where all of them together take less time than that."""
        found = self.bounds(work, dtype)
        name = max(found, key=found.__getitem__)
        return name if found[name] > self.launch else "launch"


def _tensor(half: float, single: float) -> dict[torch.dtype, float]:
    return {torch.float16: half, torch.bfloat16: half, torch.float32: single}


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        # float32 products take three TF32 products, at half of the rate of 16-bit numbers
        Device("A100", "sm_80", 108, 1.35e9, 1.55e12, 64, 16, _tensor(280e12, 46e12), 166912),
        Device("H100", "sm_90", 132, 1.755e9, 2.9e12, 128, 16, _tensor(740e12, 120e12)),
        Device("H200", "sm_90", 132, 1.755e9, 4.3e12, 128, 16, _tensor(790e12, 130e12)),
        Device("B200", "sm_100", 148, 1.85e9, 6.8e12, 128, 16, _tensor(1700e12, 280e12)),
        Device("MI300X", "gfx942", 304, 2.0e9, 4.2e12, 128, 32, _tensor(700e12, 110e12), 65536, 200, False),
    )
}
"""GPUs by name. Rates are what good kernels reach, not what data sheets say."""

REFERENCE = DEVICES["H200"]
"""What predictions are made for where no GPU is at hand."""


def named(text: str) -> Device | None:
    """The device of a name as drivers give it, such as ``"NVIDIA H200"``; None for one that is not known."""
    return next((device for name, device in DEVICES.items() if re.search(rf"\b{name}\b", text, re.IGNORECASE)), None)


def of(device: torch.device) -> Device | None:
    """The rates of a torch device: those that are known, in proportion to its processors; None for old GPUs."""
    if device.type != "cuda":
        return None
    name, facts = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device)
    like = named(name)
    if like is None and (torch.version.hip is not None or facts.major < 8):
        return None
    if like is None:
        like = DEVICES["A100" if facts.major == 8 else "H100" if facts.major == 9 else "B200"]
        plain = 64 if (facts.major, facts.minor) == (8, 0) else 128
        like = replace(like, name=name, architecture=f"sm_{facts.major}{facts.minor}", plain=plain)
    share = facts.multi_processor_count / like.processors  # less than one of a part of a GPU
    shared = int(getattr(facts, "shared_memory_per_block_optin", like.shared))
    tensor = {kind: rate * share for kind, rate in like.tensor.items()}
    return replace(like, copy=like.copy * share, tensor=tensor, processors=facts.multi_processor_count, shared=shared)
