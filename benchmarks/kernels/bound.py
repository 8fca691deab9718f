"""Layers whose depthwise part runs as a kernel: the kernels that they may have, and programs that call one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from codegen.triton.binding import bind
from codegen.triton.depthwise import Depthwise
from codegen.triton.device import REFERENCE, Device
from codegen.triton.family import Candidate
from codegen.triton.launching import Launch, interpreted
from codegen.triton.region import Region, is_view
from rewrite.ops import value

if TYPE_CHECKING:
    from benchmarks.kernels.layers import Layer
    from codegen.triton.kernel import Kernel, Launchable
    from codegen.triton.operators import Run

FAMILY = Depthwise()

Call = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """What a layer is compiled for.

    Attributes:
        layer: which one.
        dtype: of inputs and weights.
        last: whether images have their channels last.
        batch: how many samples.
        device: of tensors: ``"cpu"`` for the interpreter.
        rates: of the GPU that kernels are planned for.
    """

    layer: Layer
    dtype: torch.dtype
    last: bool
    batch: int
    device: str = "cuda"
    rates: Device = REFERENCE

    def plan(self) -> Planned:
        """The largest region around the layer's convolution that there are kernels for.

        Raises:
            ValueError: there is none.
        """
        module = self.layer.flat(self.dtype, self.last, self.batch, self.device)
        main = next(iter(FAMILY.mains(module.graph)), None)
        found = [] if main is None else list(FAMILY.regions(main))
        for region in sorted(found, key=lambda each: -len(each.nodes)):
            candidates = FAMILY.candidates(region, self.rates)
            if candidates:
                return Planned(self, module, region, candidates)
        raise ValueError("there is no kernel for the layer")

    def inputs(self, seed: int = 0) -> list[Tensor]:
        """Normal inputs on the device."""
        return self.layer.draw(self.dtype, self.last, self.batch, self.device, seed)


@dataclass(frozen=True)
class Planned:
    """The region of a layer, and the kernels that it may have.

    Attributes:
        setting: what for.
        module: the flat program.
        region: of its graph.
        candidates: the one that should be fastest first.
    """

    setting: Setting
    module: GraphModule
    region: Region
    candidates: Sequence[Candidate]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left beside the kernel that takes time."""
        inside = set(self.region.nodes)
        others = [node for node in self.module.graph.nodes if node.op == "call_function" and node not in inside]
        return not self.region.totals and all(is_view(node) for node in others if isinstance(value(node), Tensor))

    def seconds(self, number: int) -> float:
        """What a candidate should take."""
        return self.setting.rates.seconds(self.candidates[number].work, self.setting.dtype)

    @property
    def bytes(self) -> float:
        """What the kernel has to read and to write, each element once."""
        return self.candidates[0].work.bytes

    @property
    def operations(self) -> float:
        """Products and sums of the convolution."""
        result = value(self.region.main.node)
        branches = self.region.main.branches  # type: ignore[attr-defined]
        each = [math.prod(b.window.kernel) * b.channels for b in branches if b.weight is not None]
        return 2.0 * result.numel() / int(result.shape[1]) * sum(each)


@dataclass(frozen=True)
class Bound:
    """A layer whose program calls a kernel.

    Attributes:
        module: the program, which takes the layer's inputs and gives a tuple.
        kernel: what it calls.
        launch: runs it; None in the interpreter, and where the same kernel was bound earlier in this process.
    """

    module: GraphModule
    kernel: Kernel
    launch: Launch | None

    def used(self) -> dict[str, int]:
        """Registers and spilled registers of the compiled kernel, as far as the driver has told."""
        compiled = list(self.launch._compiled.values()) if self.launch is not None else []
        facts = {"registers": "n_regs", "spills": "n_spills"}
        return {name: int(number) for name, key in facts.items() for each in compiled[:1]
                if isinstance(number := getattr(each, key, None), int)}  # fmt: skip


_LAUNCHES: dict[str, Launch] = {}


def bound(setting: Setting, number: int) -> Bound:
    """A layer with one of its candidates, which is the only thing that can compute the region.

    Raises:
        IndexError: there are fewer candidates.
    """
    planned = setting.plan()
    kernel = planned.candidates[number].emit()

    def on_gpu(launchable: Launchable, reference: Run) -> Run:
        launch = _LAUNCHES[kernel.operator] = Launch(launchable, refused)
        return launch

    if setting.device == "cpu":
        bind(planned.module, [kernel], lambda launchable, _: interpreted(launchable, refused), "CPU")
    else:
        bind(planned.module, [kernel], on_gpu, "CUDA")
    return Bound(planned.module, kernel, _LAUNCHES.get(kernel.operator))


def refused(operands: Sequence[Tensor]) -> Sequence[Tensor]:
    """In place of a kernel's reference.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("the kernel does not run; the warning before this tells why")
