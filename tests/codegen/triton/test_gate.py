"""The gate's file says what kernels need, and what has become of it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from codegen.triton.gate import Configuration, Gate, compare, measure, read, write
from codegen.triton.resources import ARCHITECTURES, Failure, Resources, Workers
from codegen.triton.source import Source

NEEDS = Resources(registers=168, spilled=0, shared=18432, tensor_cores="wgmma")
GATE = Gate("3.7.1", {
    "toeplitz 7×7, 28": Configuration("0123456789ab", {
        "sm_90": NEEDS,
        "gfx942": Failure("RuntimeError: no"),
        "sm_100": dataclasses.replace(NEEDS, tensor_cores="tcgen05", tensor_memory=64),
    }),
    "direct": Configuration("ba9876543210", {"sm_90": dataclasses.replace(NEEDS, tensor_cores="")}),
})  # fmt: skip
TEXT = """{
  "triton": "3.7.1",
  "configurations": {
    "direct": {
      "source": "ba9876543210",
      "sm_90": {"registers": 168, "spilled": 0, "shared": 18432, "tensor_cores": ""}
    },
    "toeplitz 7×7, 28": {
      "source": "0123456789ab",
      "gfx942": {"reason": "RuntimeError: no"},
      "sm_100": {"registers": 168, "spilled": 0, "shared": 18432, "tensor_cores": "tcgen05", "tensor_memory": 64},
      "sm_90": {"registers": 168, "spilled": 0, "shared": 18432, "tensor_cores": "wgmma"}
    }
  }
}
"""


def with_direct(source: str = "ba9876543210", **changes: Any) -> Gate:
    """The gate with another kernel ``direct``."""
    needs = {"sm_90": dataclasses.replace(GATE.configurations["direct"].needs["sm_90"], **changes)}
    return Gate(GATE.triton, {**GATE.configurations, "direct": Configuration(source, needs)})


def with_needs(**needs: Resources | Failure) -> Gate:
    """The gate with a kernel ``direct`` on other architectures."""
    return Gate(GATE.triton, {**GATE.configurations, "direct": Configuration("ba9876543210", needs)})


def test_a_file_is_written_sorted_and_read_again(tmp_path: Path) -> None:
    write(tmp_path / "gate.json", GATE)
    assert (tmp_path / "gate.json").read_text(encoding="utf-8") == TEXT
    assert read(tmp_path / "gate.json") == GATE
    write(tmp_path / "none.json", Gate("3.6.0", {}))
    assert read(tmp_path / "none.json") == Gate("3.6.0", {})


@pytest.mark.parametrize("text", [
    "{", "[]", "{}", TEXT.replace('"spilled": 0, ', ""), TEXT.replace("168", "-1"), TEXT.replace("168", "1.5"),
    TEXT.replace("wgmma", "abacus"), TEXT.replace('"registers"', '"register"'), TEXT.replace('"source"', '"sources"'),
])  # fmt: skip
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "gate.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"gate\.json' is no gate: "):
        read(tmp_path / "gate.json")


def test_equal_gates_do_not_differ() -> None:
    assert compare(GATE, GATE) == []
    assert compare(with_needs(sm_90=Failure("one")), with_needs(sm_90=Failure("another"))) == []


@pytest.mark.parametrize(("new", "said"), [
    (with_direct(registers=170), "'direct' on sm_90 has 170 registers, and had 168"),
    (with_direct(spilled=416), "'direct' on sm_90 has 416 bytes spilled, and had 0"),
    (with_direct(shared=0), "'direct' on sm_90 has 0 bytes of shared memory, and had 18432"),
    (with_direct(tensor_memory=32), "'direct' on sm_90 has 32 columns of tensor memory, and had 0"),
    (with_direct(tensor_cores="mma"), "'direct' on sm_90 uses mma, and used no tensor cores"),
    (with_direct("cd"), "'direct' has another source: cd, and was ba9876543210"),
    (with_needs(sm_90=Failure("no")), "'direct' on sm_90 does not compile any more: no"),
    (with_needs(), "'direct' on sm_90 is in the gate, and was not compiled"),
    (Gate("3.7.1", {"toeplitz 7×7, 28": GATE.configurations["toeplitz 7×7, 28"]}),
     "'direct' is in the gate, and there is no such kernel"),
])  # fmt: skip
def test_a_difference_is_a_sentence(new: Gate, said: str) -> None:
    assert compare(GATE, new) == [said]


def test_gates_of_two_versions_are_not_compared() -> None:
    (said,) = compare(GATE, Gate("3.6.0", {}))
    assert said.startswith("the gate is of Triton 3.7.1 and this is Triton 3.6.0, ")
    assert said.endswith("the figures cannot be compared")


def test_differences_the_other_way() -> None:
    assert compare(with_needs(sm_90=Failure("no")), GATE) == ["'direct' on sm_90 compiles, and did not"]
    assert compare(with_needs(), GATE) == ["'direct' on sm_90 is not in the gate"]
    assert compare(Gate("3.7.1", {}), GATE) == [f"'{name}' is not in the gate" for name in sorted(GATE.configurations)]


def test_a_gate_of_kernels_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    text = "import triton\n\n\n@triton.jit\ndef kernel():\n    return\n"
    sources = {"empty": Source(text, "kernel", {}), "wrong": Source("1 +", "kernel", {})}
    with Workers() as workers:
        gate = measure(sources, [ARCHITECTURES["sm_80"], ARCHITECTURES["sm_90"]], workers)
        monkeypatch.setitem(sys.modules, "triton", None)
        with pytest.raises(ImportError, match="there is no Triton"):
            measure(sources, [], workers)
    assert gate.triton == triton.__version__
    assert {name: configuration.source for name, configuration in gate.configurations.items()} == {
        name: source.hash for name, source in sources.items()
    }
    for name in ("sm_80", "sm_90"):
        assert isinstance(gate.configurations["empty"].needs[name], Resources)
        assert isinstance(gate.configurations["wrong"].needs[name], Failure)
