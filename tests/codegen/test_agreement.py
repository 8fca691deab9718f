"""What counts as the same output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from codegen.agreement import disagreement

NAN, INF = float("nan"), float("inf")


def tensor(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(("found", "wanted"), [
    (tensor(1.0001, 0.0001), tensor(1, 0)),
    (tensor(NAN, INF, -INF, 1), tensor(NAN, INF, -INF, 1)),
    (tensor(NAN), tensor(NAN)),
    (tensor(1.01, dtype=torch.float16), tensor(1, dtype=torch.float16)),
    (tensor(1, 2, dtype=torch.int64), tensor(1, 2, dtype=torch.int64)),
    (tensor(1 + 1e-6j, dtype=torch.complex64), tensor(1, dtype=torch.complex64)),
    (torch.arange(2000), torch.arange(2000).index_fill(0, torch.tensor(7), -1)),  # rounding may decide on one
    (tensor(), tensor()),
    (None, None), (3, 3),
])  # fmt: skip
def test_agreement(found: Any, wanted: Any) -> None:
    assert disagreement([found], [wanted]) == ""


@pytest.mark.parametrize(("found", "wanted", "reason"), [
    (tensor(1.001, 0), tensor(1, 0), "the error is 1.00e-03, and 3.45e-04 is allowed"),
    (tensor(1, 0.001), tensor(1, 0), "the error is"),
    (tensor(1 + 1e-7, dtype=torch.float64), tensor(1, dtype=torch.float64), "the error is 1.00e-07"),
    (tensor(1, NAN), tensor(1, 2), "1 of 2 values are NaN or infinite on one side only"),
    (tensor(1, 2), tensor(1, NAN), "1 of 2 values are NaN"),
    (tensor(1, INF), tensor(1, -INF), "1 of 2 values are NaN"),
    (tensor(NAN), tensor(INF), "1 of 1 values are NaN"),
    (tensor(1, 2, dtype=torch.int64), tensor(1, 3, dtype=torch.int64), "1 of 2 values differ"),
    (torch.arange(900), torch.arange(900).index_fill(0, torch.tensor(7), -1), "1 of 900 values differ"),
    (tensor(1 + 0.01j, dtype=torch.complex64), tensor(1, dtype=torch.complex64), "the error is 1.00e-02"),
    (tensor(1), tensor(1, dtype=torch.float64), "torch.float32 [1] in place of torch.float64 [1]"),
    (tensor(1), tensor(1, 2), "[1] in place of"),
    (torch.ones(2, 3).t(), torch.ones(3, 2), "strides (1, 3) in place of (2, 1)"),
    (3, 4, "3 in place of 4"), (None, tensor(1), "None in place of"),
])  # fmt: skip
def test_disagreement(found: Any, wanted: Any, reason: str) -> None:
    text = disagreement([tensor(1), found], [tensor(1), wanted])
    assert text.startswith("gives another output 1: ")
    assert reason in text


def test_a_missing_output() -> None:
    assert disagreement([], [None]) == "gives 0 outputs in place of 1"
