"""The committed gate: what each kernel that the planner may choose for published layers needs on four architectures.

``UPDATE_GOLDEN=1 pytest tests/codegen/triton/test_gate_file.py`` compiles what changed and writes the file.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from codegen.triton import gate
from codegen.triton.device import DEVICES
from codegen.triton.gate import Gate
from codegen.triton.resources import ARCHITECTURES, Architecture, Failure, Workers, fits, triton_version
from codegen.triton.source import Source
from tests.codegen.triton.configurations import GATED, sources

GATE = Path(__file__).parents[2] / "golden" / "kernels" / "gate.json"
SAMPLE = 8
SPILL = 96
"""Bytes of a thread that may lie in memory: a few values that are seldom needed."""


def architecture_of(name: str) -> Architecture:
    """The architecture of a kernel by its name, which begins with the device's."""
    return ARCHITECTURES[DEVICES[name.split()[0]].architecture]


@pytest.fixture(scope="module")
def kernels() -> dict[str, Source]:
    """All of them by name."""
    return {name: source for device in GATED for name, source in sources(DEVICES[device]).items()}


def measured(kernels: dict[str, Source]) -> Gate:
    """The gate of some kernels, each on the architecture of its device."""
    found = Gate(str(triton_version()), {})
    with Workers(processes=2) as workers:
        for architecture in ARCHITECTURES.values():
            own = {name: source for name, source in kernels.items() if architecture_of(name) == architecture}
            part = gate.measure(own, [architecture], workers)
            found = Gate(part.triton, {**found.configurations, **part.configurations})
    return found


def part(of: Gate, names: set[str]) -> Gate:
    """Some kernels of a gate."""
    return Gate(of.triton, {name: known for name, known in of.configurations.items() if name in names})


def test_gate_is_of_these_kernels(kernels: dict[str, Source]) -> None:
    old = gate.read(GATE) if GATE.exists() else Gate("", {})
    same = {name for name, source in kernels.items()
            if name in old.configurations and old.configurations[name].source == source.hash}  # fmt: skip
    if os.environ.get("UPDATE_GOLDEN") == "1":
        kept = part(old, same) if old.triton == str(triton_version()) else Gate("", {})
        new = measured({name: source for name, source in kernels.items() if name not in kept.configurations})
        GATE.parent.mkdir(parents=True, exist_ok=True)
        gate.write(GATE, Gate(new.triton, {**kept.configurations, **new.configurations}))
        return
    changed = sorted(kernels.keys() ^ same) + sorted(old.configurations.keys() - kernels.keys())
    assert not changed, f"run with UPDATE_GOLDEN=1; these are not as in the gate: {changed[:5]}"


def check(kernels: dict[str, Source]) -> None:
    committed = gate.read(GATE)
    if committed.triton != str(triton_version()):
        pytest.skip(f"the gate is of Triton {committed.triton}")
    assert gate.compare(part(committed, set(kernels)), measured(kernels)) == []


def test_sample_needs_what_the_gate_says(kernels: dict[str, Source]) -> None:
    by_hash = sorted(kernels, key=lambda name: kernels[name].hash)
    chosen = by_hash[:: max(1, len(by_hash) // SAMPLE)]
    check({name: kernels[name] for name in chosen})


@pytest.mark.slow
def test_all_need_what_the_gate_says(kernels: dict[str, Source]) -> None:
    check(kernels)


def test_first_choices_fit() -> None:
    unfit = {}
    for name, known in gate.read(GATE).configurations.items():
        architecture = architecture_of(name)
        needs = known.needs[architecture.name]
        reason = needs.reason if isinstance(needs, Failure) else fits(needs, architecture, SPILL)
        if reason and "#0:" in name:
            unfit[name] = reason
    assert unfit == {}
