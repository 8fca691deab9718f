"""Layers of every kind that the depthwise family computes, and how far a kernel's results may be off."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.kernels.bound import Setting, bound
from benchmarks.kernels.comparing import flat
from benchmarks.kernels.layers import Layer, image, inception, laid_out, mixed, mixer, sequence
from codegen.triton.device import REFERENCE, Device

CANDIDATES = 3
"""Kernels of a layer that are run: not only the one that should be fastest."""

DTYPES = (torch.bfloat16, torch.float32, torch.float16)
BOTH = (True, False)

BOUNDS = {torch.float32: 32, torch.float16: 2, torch.bfloat16: 2}
"""How far results may be off, in units of the dtype's rounding of the largest one."""


@dataclass(frozen=True)
class Case:
    """A layer at one batch.

    Attributes:
        layer: which one.
        batch: how many samples.
        layouts: whether channels are last.
    """

    layer: Layer
    batch: int = 2
    layouts: tuple[bool, ...] = BOTH


def _alone() -> dict[str, Case]:
    """Convolutions with nothing around them."""
    found = {f"{k}x{k}, {side}": Case(image(96, side, k)) for k in (3, 5, 7) for side in (56, 28, 14)}
    found |= {f"{k}x{k} stride 2, {side}": Case(image(48, side, k, 2)) for k, side in ((3, 56), (5, 28), (7, 55))}
    found["3x3 dilation 2"] = Case(image(64, 28, 3, dilation=2))
    found["7x7 dilation 2"] = Case(image(64, 28, 7, dilation=2))
    found["13x13, 14"] = Case(image(128, 14, 13))
    found["31x31, 56"] = Case(image(64, 56, 31))
    found["51x5, 56"] = Case(image(64, 56, (51, 5)))
    found["1x11"], found["11x1"] = Case(image(48, 56, (1, 11))), Case(image(48, 56, (11, 1)))
    found["3x3 odd sizes"] = Case(image(97, (55, 57), 3), 3)
    found["7x7 odd sizes"] = Case(image(97, (55, 57), 7), 1)
    found["13x13 odd sizes"] = Case(image(97, (27, 29), 13), 3)
    return found


def _around() -> dict[str, Case]:
    """Convolutions with what precedes and follows them in networks."""
    return {
        "7x7 bias gelu": Case(image(96, 28, 7, behind=("gelu",))),
        "7x7 norm": Case(image(96, 56, 7, behind=("norm",)), 2, (True,)),
        "7x7 norm gelu odd": Case(image(97, (27, 29), 7, behind=("norm", "gelu")), 3, (True,)),
        "7x7 norm 768": Case(image(768, 7, 7, behind=("norm",)), 3, (True,)),
        "5x5 silu mean": Case(image(240, 28, 5, behind=("silu",), squeeze=True)),
        "3x3 stride 2 silu mean": Case(image(96, 56, 3, 2, behind=("silu",), squeeze=True), 3),
        "13x13 gate residual": Case(image(96, 14, 13, behind=("gelu", "scale", "residual")), 3),
        "3x3 relu6 both": Case(image(144, 28, 3, before="relu6", behind=("relu6",))),
        "3x3 relu6 stride 2 odd": Case(image(33, (27, 31), 3, 2, before="relu6", behind=("relu6",)), 3),
        "inception 96": Case(mixer(inception(96), 56)),
        "inception 96, 32 samples": Case(mixer(inception(96), 56), 32),
        "mixnet 3/5/7/9, 32 samples": Case(mixer(mixed(240, 3, 5, 7, 9), 28), 32),
        "inception 96 gelu odd": Case(mixer(inception(104), (27, 29), "gelu"), 1),
        "mixnet 3/5/7": Case(mixer(mixed(120, 3, 5, 7), 28, "silu")),
        "mixnet 3/5/7/9 odd": Case(mixer(mixed(97, 3, 5, 7, 9), (13, 15)), 3),
        "causal 4": Case(sequence(1536, 2048, 4), 1, (True,)),
        "causal 4 silu gate": Case(sequence(1536, 2048, 4, behind="silu", gated=True), 2, (True,)),
        "causal 4 first": Case(sequence(193, 1027, 4, last=False), 3, (True,)),
        "sequence 31": Case(sequence(256, 2048, 31, causal=False), 2, (True,)),
        "sequence 31 first": Case(sequence(256, 2048, 31, causal=False, last=False, behind="silu"), 2, (True,)),
    }


CASES = {**_alone(), **_around()}
"""By name; those that are most common come first."""


def settings(device: str, rates: Device = REFERENCE) -> list[tuple[str, Setting]]:
    """All cases in all dtypes and layouts, by name."""
    found = []
    for dtype, (name, case) in itertools.product(DTYPES, CASES.items()):
        for last in case.layouts:
            layout = "" if len(case.layouts) == 1 else ", last" if last else ", first"
            title = f"{name}, {str(dtype).removeprefix('torch.')}{layout}"
            found.append((title, Setting(case.layer, dtype, last, case.batch, device, rates)))
    return found


def exact(setting: Setting, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What a layer gives in float64, one sample after the other, of the very numbers that it has in its dtype."""
    model = setting.layer.module().to(setting.dtype).double().to(setting.device)
    with torch.no_grad():
        found = [flat(model(*(x[i : i + 1].double() for x in inputs))) for i in range(setting.batch)]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def errors(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> list[float]:
    """The largest error of each result, in units of its largest value."""
    assert [tuple(x.shape) for x in found] == [tuple(x.shape) for x in wanted]
    return [
        float((x.double() - y).abs().max()) / max(float(y.abs().max()), 1e-30)
        for x, y in zip(found, wanted, strict=True)
    ]


def check(
    setting: Setting, candidates: int = CANDIDATES, prepare: Callable[[Tensor], Tensor] = lambda x: x
) -> list[str]:
    """Compare kernels of a layer with float64; the schedules that ran.

    Args:
        setting: which layer.
        candidates: how many kernels.
        prepare: gives an input of other memory.
    """
    inputs = [prepare(x) for x in setting.inputs()]
    model = setting.layer.module().to(setting.device, setting.dtype)
    rounding = torch.finfo(setting.dtype).eps
    ran = []
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=False, allow_tf32=False):  # torch's own kernels
        wanted = exact(setting, inputs)
        given = [laid_out(x, setting.last) for x in inputs]
        allowed = [max(BOUNDS[setting.dtype] * rounding, 2 * theirs) for theirs in errors(flat(model(*given)), wanted)]
        for number in range(min(candidates, len(setting.plan().candidates))):
            made = bound(setting, number)
            schedules = "; ".join(made.kernel.schedules)
            off = errors(flat(made.module(*inputs)), wanted)
            assert all(mine <= most for mine, most in zip(off, allowed, strict=True)), (
                f"kernel {number}, {schedules}: results are {off} off, and {allowed} are allowed"
            )
            ran.append(schedules)
    return ran
