"""One case: our kernels beside torch's, checked and timed together, as rows for the record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import peers
from benchmarks.kernels.bound import Bound, Planned, bound
from benchmarks.kernels.gpu_cases import Case
from benchmarks.kernels.measuring import Clock, Measurement, Times, measure, said
from codegen.triton.device import REFERENCE, Device
from rewrite import compat

Call = Callable[[], Any]
Row = dict[str, Any]

CANDIDATES = 4
"""Kernels of a layer that are measured, in the order of their predictions."""

_SUMMED = 2
"""Those of layers with sums over pixels, each of which is compiled with what adds up its parts."""

COPY = "copy"
"""The contender that copies as many bytes as the kernel has to move."""

_BOUNDS = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Errors relative to the largest result; torch's own convolutions of float32 numbers may round them to TF32."""


@dataclass(frozen=True)
class Machine:
    """What cases are measured on.

    Attributes:
        clock: of the device.
        rate: bytes per second of a large copy.
        device: where tensors are.
        rates: of the GPU that kernels are planned for.
        candidates: how many kernels of a layer are measured.
    """

    clock: Clock
    rate: float
    device: str = "cuda"
    rates: Device = REFERENCE
    candidates: int = CANDIDATES


@dataclass
class _Ours:
    """The kernels of a layer in one layout.

    Attributes:
        planned: with predictions.
        calls: by name.
        bounds: those that run.
        errors: of each, relative to the largest result.
        failures: why others do not run, by name.
    """

    planned: Planned
    calls: dict[str, Call] = field(default_factory=dict)
    bounds: dict[str, Bound] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def compare(case: Case, machine: Machine, seconds: float = 3.0) -> list[Row]:
    """The rows of a case, one for each layout.

    Args:
        case: which one.
        machine: where.
        seconds: about how long the timing may take, warm-up excepted.

    Raises:
        Exception: whatever keeps all of it from running; what single contenders raise is told in the rows.
    """
    settings = {last: case.setting(last, machine.device, machine.rates) for last in case.layouts}
    first = next(iter(settings.values()))
    model, given = peers.placed(first), first.inputs()
    contenders: dict[str, Call] = dict(peers.eager(model, given))
    contenders.update(peers.compiled(model, given, case.compiled))
    wanted = _results(contenders)
    ours: dict[bool, _Ours] = {}
    for last, setting in settings.items():
        inputs = [peers.laid_out(x, last) for x in given]
        ours[last] = _prepared(case, setting.plan(), inputs, wanted, machine)
        contenders.update(ours[last].calls)
    contenders[COPY] = copying(next(iter(ours.values())).planned.bytes, machine.device)
    found = measure(contenders, machine.clock, seconds)
    return [row(case, last, each, found, machine) for last, each in ours.items()]


def _results(contenders: Mapping[str, Call]) -> list[Tensor]:
    """What the first contender gives that gives something.

    Raises:
        Exception: what the last one raised.
    """
    for number, call in enumerate(contenders.values(), start=1):
        try:
            return flat(call())
        except Exception:  # as timing will tell
            if number == len(contenders):
                raise
    raise ValueError("there is no contender")


def _prepared(
    case: Case, planned: Planned, inputs: Sequence[Tensor], wanted: Sequence[Tensor], machine: Machine
) -> _Ours:
    """Kernels that have given what torch gives."""
    found = _Ours(planned)
    summed = bool(planned.region.totals and case.compiled)
    many = _SUMMED if summed else machine.candidates
    for number in range(min(many, len(planned.candidates))):
        name = f"{case.title(planned.setting.last)} #{number}"
        try:
            made = bound(planned.setting, number)
            call = _run(made, inputs, summed)
            error = distance(flat(call()), wanted)
            found.errors[name] = error
            if not error <= _BOUNDS[planned.setting.dtype]:
                raise ValueError(f"its results are {error:.2g} off, relative to the largest one")
        except Exception as error:  # compilers fail in ways of their own, and the other kernels can still be timed
            found.failures[name] = said(error)
            continue
        found.calls[name], found.bounds[name] = call, made
    return found


def _run(made: Bound, inputs: Sequence[Tensor], summed: bool) -> Call:
    """A call of a layer with a kernel; what adds up its partial sums is compiled, as it is in optimized programs."""
    module: Callable[..., Any] = made.module
    if summed:
        module = compat.inductor_compile(made.module, list(inputs), {})

    def call() -> Any:
        with torch.no_grad():
            return module(*inputs)

    return call


def copying(size: float, device: str) -> Call:
    """A copy that reads and writes so many bytes together."""
    source = torch.ones(max(int(size) // 8, 1), dtype=torch.float32, device=device)
    into = torch.empty_like(source)
    return lambda: into.copy_(source)


def flat(results: Any) -> list[Tensor]:
    """The results of a layer, whether it has one or several."""
    return list(results) if isinstance(results, (tuple, list)) else [results]


def distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest error of all results, each relative to its largest value; not a number where results are none."""
    errors = [float((a - b).abs().max()) / max(float(b.abs().max()), 1e-30)
              for a, b in zip(found, wanted, strict=True)]  # fmt: skip
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def row(case: Case, last: bool, ours: _Ours, found: Measurement, machine: Machine) -> Row:
    """What is kept of a case in one layout."""
    planned = ours.planned
    title = case.title(last)
    others = {name: times for name, times in found.times.items() if name != COPY and " #" not in name}
    candidates = [_candidate(number, title, ours, found) for number in range(machine.candidates)
                  if number < len(planned.candidates)]  # fmt: skip
    made: Row = {
        "case": title, "group": case.group, "dtype": str(case.dtype).removeprefix("torch."), "batch": case.batch,
        "last": last, "whole": planned.is_whole, "bytes": planned.bytes, "operations": planned.operations,
        "copy_us": _microseconds(found.times.get(COPY)), "noise": _rounded(found.noise, 4),
        "peers": {name: _microseconds(times) for name, times in others.items()}, "candidates": candidates,
        "failures": {**ours.failures, **found.failures},
    }  # fmt: skip
    timed = [each for each in candidates if "us" in each]
    if timed:
        best = min(timed, key=lambda each: each["us"]["warm"])
        made["ours"] = {key: best[key] for key in ("number", "schedule", "us", "predicted_us")}
        made["ours"].update({key: best[key] for key in ("registers", "spills", "error") if key in best})
        made.update(_ratios(best["us"], others, last, planned, machine.rate))
    return made


def _candidate(number: int, title: str, ours: _Ours, found: Measurement) -> Row:
    name = f"{title} #{number}"
    candidate = ours.planned.candidates[number]
    made: Row = {
        "number": number, "schedule": "; ".join(candidate.schedules),
        "predicted_us": round(1e6 * ours.planned.seconds(number), 2),
        "bound": ours.planned.setting.rates.bound(candidate.work, ours.planned.setting.dtype),
        "work": dataclasses.asdict(candidate.work),
    }  # fmt: skip
    if name in ours.errors:
        made["error"] = _rounded(ours.errors[name], 6)
    if name in ours.bounds:
        made.update(ours.bounds[name].used())
    if name in found.times:
        made["us"] = _microseconds(found.times[name])
    return made


def _ratios(ours: Mapping[str, float], others: Mapping[str, Times], last: bool, planned: Planned, rate: float) -> Row:
    """How many times faster ours is than the best of the others, in the same layout and in any."""
    images = any(name.startswith(("first", "last")) for name in others)
    layout = "last" if last else "first"
    same = {name: times for name, times in others.items() if not images or name.startswith(layout) or "," not in name}
    found: Row = {"share_of_copy": _share(planned.bytes, rate, ours)}
    for key, group in (("best", others), ("best_same_layout", same)):
        if group:
            name = min(group, key=lambda each: group[each].warm)
            cold = min(times.cold for times in group.values())
            found[key] = name
            found[f"{key}_ratio"] = {"warm": _rounded(1e6 * group[name].warm / ours["warm"], 3),
                                     "cold": _rounded(1e6 * cold / ours["cold"], 3)}  # fmt: skip
    return found


def _share(size: float, rate: float, ours: Mapping[str, float]) -> dict[str, float]:
    """The part of a large copy's rate that a kernel attains, of bytes that are moved once."""
    return {key: _rounded(1e6 * size / rate / taken, 3) for key, taken in ours.items()}


def _microseconds(times: Times | None) -> dict[str, float]:
    if times is None:
        return {}
    return {key: _rounded(1e6 * max(getattr(times, key), 1e-8), 2) for key in ("warm", "cold")}


def _rounded(number: float, digits: int) -> float:
    return round(number, digits) if math.isfinite(number) else -1.0
