"""Kernels that read and write parts of wider images: what is split and concatenated is not copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from codegen import native
from codegen.native.pitch import pitch
from codegen.native.runs import runs
from tests.codegen.test_native_binding import module_of, ours
from tests.codegen.test_native_sequences import calls, joined
from tests.select.scripted import Scripted

needs_native = pytest.mark.skipif(not native.supported(), reason="needs a C++ compiler on Linux and x86")

Values = list[Tensor]
Step = Callable[[Values], Values]


@dataclass
class Program:
    """Steps over images of one size; the values that are left are the result."""

    steps: list[Step]
    results: list[int]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for step in self.steps:
            values += step(values)
        return tuple(values[i % len(values)] for i in self.results)


class Drawn(nn.Module):
    """A drawn program with its layers."""

    def __init__(self, draw: st.DrawFn, channels: int):
        super().__init__()
        self.layers = nn.ModuleList()
        steps, widths = [], [channels]
        for _ in range(draw(st.integers(3, 10))):
            step, new = draw(st.sampled_from((self.layer, self.layer, self.split, self.cat, self.cat, self.other)))(
                draw, widths
            )
            steps.append(step)
            widths += new
        count = draw(st.integers(1, 3))
        self.program = Program(steps, [-1, *(draw(st.integers(0, len(widths) - 1)) for _ in range(count - 1))])

    def layer(self, draw: st.DrawFn, widths: list[int]) -> tuple[Step, list[int]]:
        """A convolution, dense or of each channel, perhaps with what follows it."""
        i = self.recent(draw, widths)
        c, k = widths[i], draw(st.sampled_from((1, 3, 5)))
        out, each = draw(st.integers(1, 40)), draw(st.booleans()) and c > 1
        conv = nn.Conv2d(c, c if each else out, k, padding=k // 2, groups=c if each else 1, bias=draw(st.booleans()))
        self.layers.append(conv)
        name = draw(st.sampled_from(("none", "relu", "silu")))
        return lambda values: [_activated(name, conv(values[i]))], [c if each else out]

    def split(self, draw: st.DrawFn, widths: list[int]) -> tuple[Step, list[int]]:
        """Pieces, or some channels."""
        i = self.recent(draw, widths)
        c = widths[i]
        first = draw(st.integers(0, c - 1))
        if draw(st.booleans()) or first == 0:
            return lambda values: [values[i][:, first:]], [c - first]
        return lambda values: list(values[i].split([first, c - first], 1)), [first, c - first]

    def cat(self, draw: st.DrawFn, widths: list[int]) -> tuple[Step, list[int]]:
        """Values side by side, perhaps with what follows."""
        which = [self.recent(draw, widths) for _ in range(draw(st.integers(2, 3)))]
        width = sum(widths[i] for i in which)
        name = draw(st.sampled_from(("none", "relu", "silu", "gelu")))
        like = [i for i, w in enumerate(widths) if w == width]
        added = draw(st.sampled_from(like)) if like and draw(st.booleans()) else None

        def step(values: Values) -> Values:
            whole = torch.cat([values[i] for i in which], 1)
            return [_activated(name, whole if added is None else whole + values[added])]

        return step, [width]

    def other(self, draw: st.DrawFn, widths: list[int]) -> tuple[Step, list[int]]:
        """A sum with something of the same width, or what no kernel of ours computes."""
        i = self.recent(draw, widths)
        j = draw(st.sampled_from([j for j, w in enumerate(widths) if w == widths[i]]))
        if draw(st.booleans()):
            return lambda values: [values[i] + values[j]], [widths[i]]
        return lambda values: [torch.cumsum(values[i], 1)], [widths[i]]

    def recent(self, draw: st.DrawFn, widths: list[int]) -> int:
        """One of the values, rather one of the last."""
        return len(widths) - 1 - min(draw(st.integers(0, 4)), len(widths) - 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.program(x)


def _activated(name: str, x: Tensor) -> Tensor:
    return x if name == "none" else getattr(F, name)(x)


@needs_native
@given(data=st.data())
def test_drawn_programs_give_what_the_model_gives(data: st.DataObject) -> None:
    channels, last = data.draw(st.integers(1, 20)), data.draw(st.booleans())
    model = Drawn(data.draw, channels).eval()  # type: ignore[arg-type]
    size = data.draw(st.sampled_from(((1, 1), (1, 5), (7, 6))))
    x = torch.randn(data.draw(st.integers(1, 2)), channels, *size)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    module = joined(model, x)
    with torch.no_grad():
        for _ in range(2):
            for new, old in zip(module(x), model(x), strict=True):
                torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


class Mixed(nn.Module):
    """A block of MixNet: kernels of several sizes side by side, what follows all of them, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Conv2d(10, 24, 1, bias=False) for _ in range(2))
        self.each = nn.ModuleList(nn.Conv2d(16, 16, k, padding=k // 2, groups=16) for k in (3, 5, 7))
        self.reduce, self.expand = nn.Conv2d(48, 4, 1), nn.Conv2d(4, 48, 1)
        self.narrow = nn.ModuleList(nn.Conv2d(24, 10, 1) for _ in range(2))
        self.first = nn.Conv2d(3, 20, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = F.relu(torch.cat([conv(part) for conv, part in zip(self.wide, x.split(10, 1), strict=True)], 1))
        y = F.silu(torch.cat([conv(part) for conv, part in zip(self.each, y.split(16, 1), strict=True)], 1))
        y = y * torch.sigmoid(self.expand(F.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        return torch.cat([conv(part) for conv, part in zip(self.narrow, y.split(24, 1), strict=True)], 1) + x


@needs_native
@pytest.mark.parametrize("last", [False, True])
def test_a_block_of_mixed_kernels_is_one_call_without_copies(last: bool) -> None:
    model, x = Mixed().eval(), torch.randn(2, 3, 9, 11)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    bound = module_of(model, x)
    native.bind(bound, (x,), Scripted(price=ours))
    (run,) = runs(bound)
    assert not run.copies
    assert len(run.results) == 1
    module = joined(model, x)
    names = {str(node.target).partition(".")[0] for node in module.graph.nodes if node.op == "call_function"}
    assert calls(module, "sequence") == 1
    assert len(names) == 3 - last  # the call, its item, and copies of what comes and goes
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], model(x), rtol=1e-4, atol=1e-4)


@needs_native
def test_what_is_given_is_copied_into_a_concatenation() -> None:
    class Beside(nn.Module):
        """InceptionNeXt's mixer: some channels as they are beside those of a kernel."""

        def __init__(self) -> None:
            super().__init__()
            self.each, self.all = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(20, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            same, other = x.split([12, 8], 1)
            y: Tensor = self.all(torch.cat([same, self.each(other)], 1))
            return y

    model, x = Beside().eval(), torch.randn(2, 20, 9, 11).contiguous(memory_format=torch.channels_last)
    module = joined(model, x)
    assert calls(module, "sequence") == 1
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], model(x), rtol=1e-4, atol=1e-4)


@needs_native
def test_kernels_read_parts_of_wider_images() -> None:
    wide = torch.randn(2, 24, 9, 11).contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(8, 12, 3, padding=1).eval()
    bound = module_of(conv, wide[:, 8:16])
    native.bind(bound, (wide[:, 8:16],), Scripted(price=ours))
    assert not any(node.target is torch.ops.aten.clone.default and node.args[0].op == "placeholder"
                   for node in bound.graph.nodes)  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(bound(wide[:, 8:16])[0], conv(wide[:, 8:16]), rtol=1e-4, atol=1e-4)


@given(shape=st.tuples(*[st.integers(1, 4)] * 4), more=st.integers(0, 3), last=st.booleans())
def test_pitch_is_where_places_are(shape: tuple[int, ...], more: int, last: bool) -> None:
    batch, channels, *size = shape
    memory = torch.randn(batch, *size, channels + more)
    x = memory.movedim(-1, 1)[:, :channels] if last else torch.randn(shape)
    found = pitch(x)
    if last:
        assert found is not None
    if found is not None:
        flat = x.as_strided((batch * size[0] * size[1], channels), (found, 1), x.storage_offset())
        assert torch.equal(flat, x.movedim(1, -1).reshape(-1, channels))


@needs_native
def test_a_part_that_others_read_is_copied() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 12, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            one, two = self.one(x), self.two(x)
            whole = torch.cat([one, two, one], 1)
            return whole, torch.cumsum(one[:, 3:], 1), whole[:, 5:9]

    model, x = Both().eval(), torch.randn(2, 8, 9, 11).contiguous(memory_format=torch.channels_last)
    bound = module_of(model, x)
    native.bind(bound, (x,), Scripted(price=ours))
    (run,) = runs(bound)
    assert [channel for parts in run.copies.values() for _, channel in parts] == [0, 20]
    module = joined(model, x)
    with torch.no_grad():
        for new, old in zip(module(x), model(x), strict=True):
            torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


@needs_native
def test_runs_one_after_the_other_join_what_earlier_ones_gave() -> None:
    class Dense(nn.Module):
        """As DenseNet: results of former runs are concatenated again, behind what no kernel computes."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Conv2d(c, 6, k, padding=k // 2) for c, k in ((5, 1), (6, 3), (6, 1), (12, 3))
            )
            self.more = nn.ModuleList(nn.Conv2d(c, 6, 1) for c in (15, 6))

        def forward(self, x: Tensor) -> Tensor:
            b = self.layers[1](self.layers[0](x))
            d = self.layers[2](torch.cumsum(b, 1))
            e = self.layers[3](torch.cat([b, d], 1))
            y: Tensor = self.more[1](self.more[0](torch.cat([torch.cumsum(e, 1)[:, :3], b[:, 2:4], d, e[:, 2:]], 1)))
            return y

    model, x = Dense().eval(), torch.randn(2, 5, 9, 11)
    module = joined(model, x)
    assert calls(module, "sequence") >= 2
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], model(x), rtol=1e-4, atol=1e-4)


@needs_native
def test_operators_that_need_strides_stand_beside_concatenations() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.pair = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            whole = F.relu(torch.cat([self.one(x), self.two(x)], 1))
            return whole, torch.view_as_complex(self.pair(x)).abs()

    model, x = Complex().eval(), torch.randn(2, 3, 9, 2)
    module = joined(model, x)
    with torch.no_grad():
        for new, old in zip(module(x), model(x), strict=True):
            torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)
