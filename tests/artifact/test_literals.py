"""Arguments and operators come back as they were, and nothing else comes back."""

from __future__ import annotations

import json
import math
import operator
from typing import Any

import pytest
import torch
from torch import fx

from rewrite.artifact import operators
from rewrite.artifact.literals import decode, encode
from rewrite.errors import ArtifactError

aten = torch.ops.aten

VALUES = [
    None, True, False, 0, -1, 1 << 62, 0.0, -0.0, 0.1, 1e300, math.inf, -math.inf, 1 + 2j, complex(math.inf, -0.0), "",
    "same", 'a "quote"', [1, 2], [], (1, (2.0, [None])), [[True], [1]], torch.float32, torch.bfloat16, torch.complex64,
    torch.float8_e4m3fn, torch.device("cpu"), torch.device("cuda:1"), torch.strided, torch.channels_last,
    torch.contiguous_format, {"a": [1], "b": (torch.int64,)},
]  # fmt: skip


def round_trip(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value), allow_nan=False)), {}.__getitem__)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back(value: Any) -> None:
    found = round_trip(value)
    assert type(found) is type(value)
    assert found == value
    assert repr(found) == repr(value), "0.0 is not -0.0, and 1 is not True"


def test_nan_comes_back() -> None:
    assert math.isnan(round_trip(math.nan))


def test_nodes_go_by_name() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    data = json.loads(json.dumps(encode([x, (x, 2)])))
    assert decode(data, {"x": x}.__getitem__) == [x, (x, 2)]


def test_a_device_can_be_another_one() -> None:
    data = encode([torch.device("cuda:1"), 3])
    assert decode(data, {}.__getitem__, lambda name: torch.device("cpu")) == [torch.device("cpu"), 3]


@pytest.mark.parametrize(
    "value", [object(), {1: 2}, {3}, b"bytes", torch.ones(1)], ids=lambda value: type(value).__name__
)
def test_what_no_operator_takes_is_refused(value: Any) -> None:
    with pytest.raises(ArtifactError, match="cannot be saved; pass numbers, text, dtypes"):
        encode(value)


@pytest.mark.parametrize(
    "data",
    [
        {"dtype": "ones"},
        {"dtype": "onnx"},
        {"dtype": 3},
        {"layout": "float32"},
        {"float": "3"},
        {"what": 1},
        {"a": 1, "b": 2},
        {},
    ],
)
def test_what_no_value_gives_is_refused(data: Any) -> None:
    with pytest.raises(ArtifactError):
        decode(data, {}.__getitem__)


TARGETS = [aten.conv2d.default, aten.conv2d.padding, aten.add.Tensor, operator.getitem, operator.mul, max, math.floor,
           torch.sym_max, torch.ops.prims.convert_element_type.default]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_an_operator_comes_back(target: Any) -> None:
    assert operators.find(operators.name_of(target)) is target


def test_an_operator_that_nobody_registered() -> None:
    with pytest.raises(ArtifactError, match=r"no library has registered here; import the package.*'mylib\.warp' first"):
        operators.find("mylib.warp.default")
    with pytest.raises(ArtifactError, match="load it with the torch that it was saved with"):
        operators.find("aten.conv9d.default")


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "posix.system.x", "operator.methodcaller", "load_library.a.b", "", "a.b.c.d"]
)
def test_no_other_function_can_be_named(name: str) -> None:
    with pytest.raises(ArtifactError):
        operators.find(name)


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default", "aten._print.default", "aten.save.default", "aten.warn.default", "prim.Print.default",
        "aten.manual_seed.default", "aten.set_num_threads.default", "aten.mul.int", "debugprims.load_tensor.default",
        "profiler._record_function_enter.default", "aten.is_vulkan_available.default",
    ],
)  # fmt: skip
def test_operators_that_do_more_than_compute_cannot_be_named(name: str) -> None:
    with pytest.raises(ArtifactError):
        operators.find(name)


def test_what_could_not_be_read_is_not_written() -> None:
    with pytest.raises(ArtifactError, match="does more than to compute"):
        operators.name_of(aten.from_file.default)


def test_a_name_adds_nothing_to_torch() -> None:
    with pytest.raises(ArtifactError):
        operators.find("nobodys_library.warp.default")
    assert "nobodys_library" not in vars(torch.ops)


def test_a_function_of_ones_own_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"torch\.library\.custom_op"):
        operators.name_of(round_trip)
