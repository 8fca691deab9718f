"""Example inputs as users write them."""

from __future__ import annotations

import pytest
import torch

from rewrite.cli.inputs import HIGH, drawn, dtype_of
from rewrite.errors import InputError


def one(text: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    [value], named = drawn([text], seed, dtype)
    assert not named
    return value


def test_sizes_and_dtypes() -> None:
    args, kwargs = drawn(["1,3,4,4", "2, 5:int64", "mask=2,5:bool", ":float64", "scale=:float16"], 0)
    assert [(tuple(value.shape), value.dtype) for value in (*args, *kwargs.values())] == [
        ((1, 3, 4, 4), torch.float32), ((2, 5), torch.int64), ((), torch.float64), ((2, 5), torch.bool),
        ((), torch.float16),
    ]  # fmt: skip
    assert list(kwargs) == ["mask", "scale"]


def test_the_dtype_of_the_model_is_for_inputs_without_one() -> None:
    args, _ = drawn(["3", "3:int32"], 0, torch.bfloat16)
    assert [value.dtype for value in args] == [torch.bfloat16, torch.int32]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float8_e4m3fn", "complex64"])
def test_real_and_complex_numbers_are_normal(dtype: str) -> None:
    value = one(f"10000:{dtype}").to(torch.complex128)
    assert value.mean().abs() < 0.05
    assert 0.95 < value.std() < 1.05


@pytest.mark.parametrize(("text", "high"), [("5000:int64", HIGH), ("5000:uint8:1000", 256), ("5000:int32:3", 3)])
def test_integers_are_uniform_below_a_bound(text: str, high: int) -> None:
    counts = one(text).long().bincount()
    assert len(counts) == high
    assert counts.min() > 0


def test_truth_values_are_even() -> None:
    assert 0.45 < one("5000:bool").double().mean() < 0.55


def test_the_seed_decides() -> None:
    assert torch.equal(one("9"), one("9"))
    assert not torch.equal(one("9"), one("9", seed=1))
    first, second = drawn(["9", "9"], 0)[0]
    assert not torch.equal(first, second)


def test_global_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    one("9")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("texts", "words"), [
    (["x"], r"input 'x' is not \[NAME=\]SIZES\[:DTYPE\[:HIGH\]\]; write for instance 1,3,224,224"),
    ([""], "input '' is not"),
    (["1,-3"], "input '1,-3' is not"),
    (["mask="], "input 'mask=' is not"),
    (["1:int46"], "'int46' is no dtype; did you mean 'int"),
    (["1:int64:0"], "HIGH is 0, and integers are drawn below it; give a positive number"),
    (["1:quint8"], "numbers of torch.quint8 cannot be drawn; make such an input inside the model"),
    (["1:int4"], "numbers of torch.int4 cannot be drawn"),
    (["a=1", "a=2"], "input 'a' is given twice; keep one of the two"),
])  # fmt: skip
def test_what_is_no_input(texts: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        drawn(texts, 0)


def test_dtypes_by_name() -> None:
    assert dtype_of("bfloat16") is torch.bfloat16
    with pytest.raises(InputError, match="did you mean 'float16'"):
        dtype_of("floaty16")
