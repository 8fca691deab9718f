"""Drawn values."""

from __future__ import annotations

import torch

from rewrite.verify.draws import Draw, Source, boundary_values, stack_extremes
from rewrite.verify.facts import Fact, Role
from rewrite.verify.sizes import Batch, Shrinkage
from tests.verify.program import Program


def drawn(draw, example=None, fact=None, shrinkage=None, **options):
    p = Program()
    x = p.input(torch.randn(2, 3, 8, 8) if example is None else example, **options)
    symbols = frozenset({p.batch.node.expr}) if p.batch is not None else frozenset()
    return boundary_values(draw, Batch(symbols, draw.batch), shrinkage, {x: fact or Fact()}, {})[x]


def test_values_respect_their_role():
    source = Source(3)
    scale = source.of(Fact(Role.SCALE), (4000,))
    assert scale.abs().min() >= 0.5
    assert scale.abs().max() < 1.5
    assert scale.min() < 0 < scale.max()
    positive = source.of(Fact(Role.POSITIVE), (4000,))
    assert positive.min() >= 0.3
    assert positive.max() < 2
    kernel = source.of(Fact(Role.KERNEL, fan_in=400), (4000,))
    torch.testing.assert_close(kernel.std().item(), 0.05, rtol=0.05, atol=0)


def test_the_same_seed_gives_the_same_values_and_large_tensors_repeat_no_row():
    assert torch.equal(Source(5).normal((10, 7)), Source(5).normal((10, 7)))
    assert not torch.equal(Source(5).normal((10, 7)), Source(6).normal((10, 7)))
    rows = Source(1).normal((2048, 1024))
    assert rows[:, :4].unique(dim=0).shape[0] == 2048


def test_batch_dtype_and_layout():
    x = drawn(Draw(torch.float64, 3))
    assert x.shape == (3, 3, 8, 8)
    assert x.dtype == torch.float64
    x = drawn(Draw(None, 2, "channels_last"))
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    x = drawn(Draw(torch.bfloat16, 1, "sliced"))
    assert x.shape == (1, 3, 8, 8)
    assert x.storage_offset() > 0
    assert not x.is_contiguous()
    x = drawn(Draw(None, 2), shrinkage=Shrinkage(False, (((8, 5),), ((8, 7),))))
    assert x.shape == (2, 3, 5, 7)


def test_whole_numbers_and_truth_values():
    x = drawn(Draw(torch.float64, 50), torch.zeros(2, 40, dtype=torch.int64), Fact(Role.INDEX, bound=5))
    assert x.dtype == torch.int64
    assert sorted(x.unique().tolist()) == [0, 1, 2, 3, 4]
    x = drawn(Draw(torch.float64, 50), torch.zeros(2, 40, dtype=torch.bool))
    assert x.dtype == torch.bool
    assert 0.4 < x.float().mean() < 0.6


def test_every_channel_and_border_meets_every_kind_of_value():
    x = stack_extremes(torch.randn(1, 12, 6, 7, generator=torch.Generator().manual_seed(0)))
    zero = (x == 0).all(-1)
    single = (x.count_nonzero(-1) == 1) & (x.sum(-1) == 1)
    large, shifted = x.abs().amax(-1) > 100, (x.mean(-1) > 1.5) & (x.amax(-1) < 10)
    negative = (x < 0).all(-1)
    for kind in (zero, single, large, shifted, negative):
        assert kind[0].any(1).all(), "in each channel"
        assert kind[0].any(0).all(), "in each row, the first and the last too"


def test_constants_keep_their_values_where_they_must():
    p = Program()
    w, table = p.weight(torch.randn(4, 3)), p.weight(torch.arange(6).reshape(2, 3))
    known = {w: Fact(Role.KERNEL), table: Fact(Role.INDEX)}
    held = {w: p.weights["weight0"], table: p.weights["weight1"]}
    real = boundary_values(Draw(torch.float64, 1, real=True), Batch(frozenset(), 1), None, known, held)
    assert torch.equal(real[w], held[w].double())
    assert torch.equal(real[table], held[table])
    random = boundary_values(Draw(torch.float64, 1), Batch(frozenset(), 1), None, known, held | {w: None})
    assert not torch.equal(random[w], held[w].double())
    assert torch.equal(random[table].flatten().sort().values, torch.arange(6))
    assert not torch.equal(random[table], held[table])
