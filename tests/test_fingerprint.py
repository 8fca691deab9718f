"""Digests of programs: what tells programs apart, and that every process says the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rewrite.printer import digest, fingerprint
from tests.programs import Program, aten

ROOT = Path(__file__).parent.parent


def program(
    name: str = "w", number: float = 2.0, target=aten.sin.default, shape=(3, 4), dtype=torch.float32, **options
):
    made = Program(**options)
    x = made.input(torch.randn(shape).to(dtype))
    scaled = made(aten.mul.Tensor, made(target, x), number)
    return made.graph(made(aten.add.Tensor, scaled, made.weight(name, torch.randn(shape[1]).to(dtype))))


def test_names_of_values_and_values_of_weights_do_not_matter():
    first, second = program(), program()
    for node in second.calls():
        node.name = f"{node.name}_again"
    assert digest(first) == digest(second) == digest(first.copy())
    assert len(digest(first)) == 64


CHANGES = {
    "weight": {"name": "v"}, "number": {"number": 2.5}, "kind of number": {"number": 2},
    "operator": {"target": aten.cos.default}, "size": {"shape": (3, 5)}, "dtype": {"dtype": torch.float64},
    "free batch": {"dynamic": True},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_everything_else_does(change):
    assert digest(program()) != digest(program(**CHANGES[change]))


def test_the_operands_matter():
    made = Program()
    x, y = made.input(torch.randn(3)), made.input(torch.randn(3))
    a, b = made(aten.sub.Tensor, x, y), made(aten.sub.Tensor, y, x)
    assert fingerprint(made.graph(a).nodes) != fingerprint([x, y, b])
    assert fingerprint([x, y, a]) != fingerprint([y, x, a])


def odd():
    """Python functions among the operators, whose text holds an address, and strings, whose hash is salted."""
    made = Program(dynamic=True)
    x = made.input(torch.randn(3, 4))
    size = made(torch.sym_max, made(aten.sym_size.int, x, 0), 2)
    return made.graph(made(aten.pad.default, x, [1, 1], "constant", 0.5), size)


def test_every_process_gives_the_same_digest():
    code = "from rewrite.printer import digest; from tests.test_fingerprint import odd; print(digest(odd()))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(odd())
