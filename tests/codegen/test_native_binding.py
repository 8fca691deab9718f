"""Our kernels in programs: where they are put, what is done along with them, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codegen import native
from codegen.inductor import Inductor
from codegen.native import library
from codegen.native.contest import contenders
from codegen.native.sites import sites
from rewrite import compat, optimize
from rewrite.lowering import flat_module, record, weight_order
from rewrite.trace import capture
from tests.select.scripted import Scripted

needs_native = pytest.mark.skipif(not native.supported(), reason="needs a C++ compiler on Linux and x86")


def module_of(model: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    """The flat module of a model with its weights as attributes."""
    graph = capture(model.eval(), (x,)).graph
    weights = {name: graph.weights[name].detach() for name in weight_order(graph)}
    return flat_module(graph, (), weights)


def ours(what: str, name: str) -> float:
    return 1.0 if name == "native" else 2.0


def theirs(what: str, name: str) -> float:
    return 1.0 if name == "library" else 2.0


def called(module: torch.fx.GraphModule) -> list[str]:
    """The kinds of our kernels that a module calls."""
    names = [str(node.target) for node in module.graph.nodes if "torch_rewrite.native" in str(node.target)]
    return [name.split("native_")[1].split(".")[0] for name in names]


def check(model: nn.Module, x: Tensor, kinds: list[str], price: Callable[[str, str], float] = ours) -> None:
    """Bind a model's kernels; the results, their strides, and which kernels there are."""
    with torch.no_grad():
        expected = compat.tree_flatten(model.eval()(x))[0]
    module = module_of(model, x)
    count = native.bind(module, (x,), Scripted(price=price))
    found = module(x)
    assert called(module) == kinds
    assert count == len(kinds)
    for new, old in zip(found, expected, strict=True):
        assert new.stride() == old.stride()
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)


class Residual(nn.Module):
    """Two convolutions whose results are added, an activation behind the sum, and one that also reads the sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.c = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x):
        y = F.hardswish(self.a(x) + self.b(x))
        return y + self.c(y)


class Gated(nn.Module):
    """Squeeze and excitation: convolutions of one pixel, a sum that broadcasts, and functions without code of ours."""

    def __init__(self):
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 12, 3, stride=2), nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.other, self.last = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = F.silu(self.stem(x))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        y = self.other(x) + gate
        return F.leaky_relu(self.last(y * gate)), y


class Shared(nn.Module):
    """A convolution that is read before and behind its activation, and one result that is added to itself."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 1)

    def forward(self, x):
        y = self.a(x)
        z = self.b(F.relu(y))
        return y.transpose(2, 3), z + z, self.b(x.new_ones(2, 6, 5, 5))


class Rows(nn.Module):
    """Convolutions of sequences [N, L, C] and of what they give, with sums, strides, dilation and groups."""

    def __init__(self):
        super().__init__()
        self.enter, self.each = nn.Conv1d(12, 16, 1), nn.Conv1d(16, 16, 5, padding=4, dilation=2, groups=16)
        self.leave, self.last = nn.Conv1d(16, 12, 1), nn.Conv1d(12, 16, 3, stride=2, groups=2, bias=False)
        self.bias = nn.Parameter(torch.randn(16, 1))

    def forward(self, x):
        rows = x.transpose(1, 2)
        y = F.silu(self.each(self.enter(rows)))
        y = self.leave(y) + rows
        return y.transpose(1, 2), F.relu(self.last(y) + self.bias)


@needs_native
@pytest.mark.parametrize(("model", "shape", "kinds"), [
    (Residual(), (2, 8, 9, 11), ["convolution", "convolution", "depthwise"]),
    # the last one's activation is done along with oneDNN's kernel, and not with ours
    (Gated(), (2, 3, 13, 13), ["convolution"] * 4),
    (Shared(), (2, 4, 9, 9), ["convolution"] * 3),
    (nn.Sequential(nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Conv2d(4, 4, 3, groups=2)), (1, 4, 9, 9),
     ["convolution"]),
    (nn.Sequential(nn.Conv2d(6, 16, 3, groups=2), nn.ReLU()), (2, 6, 9, 7), ["convolution"]),
    (nn.Conv1d(4, 4, 3), (1, 4, 9), ["convolution"]),
    (Rows(), (2, 21, 12), ["convolution", "depthwise", "convolution", "convolution"]),
    (nn.Conv1d(2, 2, 140, padding=70, groups=2), (1, 2, 150), []),
    (nn.Conv3d(4, 4, 3), (1, 4, 5, 5, 5), []),
    (nn.Sequential(nn.Conv2d(4, 4, (1, 3), padding="same"), nn.ReLU6(), nn.GELU()), (1, 4, 5, 9), ["convolution"]),
])  # fmt: skip
def test_kernels_are_bound(model, shape, kinds):
    check(model, torch.randn(shape), kinds)
    check(model, torch.randn(shape).contiguous(memory_format=torch.channels_last) if len(shape) == 4
          else torch.randn(shape), kinds)  # fmt: skip


class Mixer(nn.Module):
    """Linear layers over channels of permuted images, rows and one vector, with sums and gates."""

    def __init__(self):
        super().__init__()
        self.conv, self.up, self.down = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Linear(6, 20), nn.Linear(20, 6)
        self.head, self.matrix = nn.Linear(6, 3, bias=False), nn.Parameter(torch.randn(6, 4))

    def forward(self, x):
        y = self.conv(x).permute(0, 2, 3, 1)
        y = x + self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        return self.head(y.mean((2, 3))), y, torch.mm(y[0, :, :, 0].t(), self.matrix)


@needs_native
def test_linear_layers_are_bound():
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 6, 5, 7).contiguous(memory_format=layout)
        check(Mixer(), x, ["depthwise", "linear", "linear", "linear", "linear"])
    check(nn.Sequential(nn.Linear(9, 9), nn.Tanh()), torch.randn(4, 9), ["linear"])


@needs_native
def test_what_follows_is_done_along():
    module = module_of(Residual(), x := torch.randn(2, 8, 9, 11))
    record(module, (x,))
    found = sites(module)
    assert [(site.activation, site.residual is not None) for site in found] == [
        ("hardswish", True), ("", False), ("", True),
    ]  # fmt: skip
    native.bind(module, (x,), Scripted(price=ours))
    left = {str(node.target) for node in module.graph.nodes if node.op == "call_function"}
    assert not any(name in target for target in left for name in ("hardswish", "add", "conv2d"))


@needs_native
def test_the_slower_kernel_is_left():
    check(Residual(), torch.randn(2, 8, 9, 11), [], theirs)
    check(nn.Linear(8, 8), torch.randn(2, 8), [], lambda what, name: 1.0)
    # beside others ours is a part of one call
    check(Residual(), torch.randn(2, 8, 9, 11), ["convolution", "convolution", "depthwise"], lambda what, name: 1.0)
    # nothing is known on a busy machine
    check(Residual(), torch.randn(2, 8, 9, 11), [], lambda what, name: None)
    module = module_of(Residual(), x := torch.randn(2, 8, 9, 11))
    assert native.bind(module, (x,), None) == 0


@needs_native
def test_contests_time_the_same_computation():
    """Both sides of a measurement give the result of the site, whatever is done along."""
    assert native.available()
    for model in (Residual(), Gated(), nn.Conv2d(4, 6, 3, bias=False), nn.Linear(15, 7), nn.Linear(15, 7, bias=False),
                  Rows(), nn.Conv1d(12, 8, 3, padding=1)):  # fmt: skip
        channels = 4 if isinstance(model, nn.Conv2d) else 3 if isinstance(model, Gated) else 8
        rows = {Rows: (2, 15, 12), nn.Conv1d: (2, 12, 15)}
        x = torch.randn(rows.get(type(model), (2, channels, 15, 15)))
        module = module_of(model, x)
        record(module, (x,))
        for site in sites(module):
            calls = contenders(module, site)
            new, old = calls["native"](), calls["library"]()
            along = site.residual is not None, site.activation
            if along == (False, "") or (not site.is_row and (not along[0] or along[1] in ("", "relu"))):
                torch.testing.assert_close(new.reshape(old.shape), old, rtol=1e-4, atol=1e-5)


class Excited(nn.Module):
    """Squeeze-and-excitation between two convolutions, with a departure from it."""

    def __init__(self, departure: str = "", inner: str = "silu", outer: str = "sigmoid", bias: bool = True):
        super().__init__()
        self.departure, self.inner, self.outer = departure, inner, outer
        stride = 2 if departure == "strided" else 1
        self.stem, self.last = nn.Conv2d(3, 37, 3, stride=2), nn.Conv2d(37, 5, 1)
        self.down = nn.Conv2d(37, 9, 1, bias=bias, stride=stride)
        self.up = nn.Conv2d(9, 1 if departure == "one gate" else 37, 1, bias=bias)

    def forward(self, x):
        y = self.stem(x)
        mean = (y.amax if self.departure == "max" else y.mean)((2, 3), keepdim=True)
        mean = y.mean(2, keepdim=True)[..., :1] if self.departure == "columns" else mean
        hidden = self.down(mean)
        hidden = hidden if self.inner == "" else getattr(F, self.inner)(hidden)
        gate = getattr(F, self.outer)(self.up(hidden))
        other = F.relu(y) if self.departure == "other" else y
        z = gate * other if self.departure == "reversed" else other * gate
        if self.departure == "added":
            z = z + y
        if self.departure == "gate":
            return self.last(z), gate
        if self.departure == "leaves":
            return self.last(z), z
        return self.last(z)


@needs_native
@pytest.mark.parametrize(("model", "bound"), [
    (Excited(), True), (Excited("reversed"), True), (Excited("strided"), False), (Excited("max"), False),
    (Excited("columns"), False), (Excited("other"), False), (Excited("added"), False), (Excited("gate"), False),
    (Excited("leaves"), False), (Excited("one gate"), False),
    (Excited(inner="relu", outer="hardsigmoid"), True), (Excited(bias=False), True),
    (Excited(inner=""), True), (Excited(inner="tanh"), False), (Excited(outer="tanh"), False),
    (Excited(outer="relu6"), True),
])  # fmt: skip
def test_squeeze_and_excitation(model, bound):
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(3)
    module = module_of(model.eval(), x := torch.randn(2, 3, 9, 12) + 1)
    native.bind(module, (x,), Scripted(price=ours))
    assert ("excitation" in called(module)) == bound
    with torch.no_grad():
        for new, old in zip(module(x), compat.tree_flatten(model(x))[0], strict=True):
            assert new.stride() == old.stride()
            torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)


@needs_native
def test_squeeze_and_excitation_reads_what_other_kernels_give():
    model = nn.Sequential(Excited(), nn.Conv2d(5, 3, 1), Excited()).eval()
    kinds = ["convolution", "excitation", "convolution"]
    check(model, torch.randn(2, 3, 19, 23), [*kinds, "convolution", *kinds])


@needs_native
def test_compiled_programs_call_them(monkeypatch):
    model, x = Residual().eval(), torch.randn(2, 8, 9, 11)
    lowering = Inductor(Scripted(price=ours))
    monkeypatch.setattr("codegen.default_lowering", lambda *settings: lowering)
    calls: list[int] = []
    bind = native.bind
    monkeypatch.setattr(native, "bind", lambda *args, **kwargs: calls.append(found := bind(*args, **kwargs)) or found)
    fast = optimize(model, x, pipeline="simplify")
    with torch.no_grad():
        for batch in (x, torch.randn(5, 8, 9, 11)):
            torch.testing.assert_close(fast(batch), model(batch), rtol=1e-4, atol=1e-5)
        model.a.weight.mul_(2)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    assert calls
    assert set(calls) == {3}


def forget() -> None:
    library._loaded = None
    library.LIBRARY.reset()


def test_without_a_compiler_other_kernels_do_the_work(monkeypatch, caplog):
    x = torch.randn(2, 8, 9, 11)
    try:
        for compiler in (None, "false"):
            monkeypatch.setattr(compat, "cpp_compiler", lambda compiler=compiler: compiler)
            forget()
            assert native.supported() == (compiler is not None)
            native.begin()
            with caplog.at_level("INFO", logger="rewrite"):
                assert native.bind(module_of(Residual(), x), (x,), Scripted(price=ours)) == 0
        said = [record.getMessage() for record in caplog.records if record.name == "rewrite"]
        assert any("kernels of our own are left out" in text for text in said)
    finally:
        forget()


@needs_native
def test_kernels_that_compute_something_else_are_left_out(monkeypatch, caplog):
    right = native.kernels.packed_depthwise
    monkeypatch.setattr("codegen.native.soundness.packed_depthwise", lambda weight: right(weight) * 1.001)
    library._loaded = None
    try:
        with caplog.at_level("WARNING", logger="rewrite"):
            assert not library.available()
        assert "they compute something else" in caplog.text
    finally:
        library._loaded = None


class Odd(nn.Module):
    """Biases that are not dense or are broadcast, added constants of every shape, and readers of strides."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1, bias=False)
        self.a.bias = nn.Parameter(torch.randn(16)[::2])
        self.one, self.map = nn.Parameter(torch.randn(1)), nn.Parameter(torch.randn(5, 7))
        self.register_buffer("spread", torch.randn(1, 1, 1).expand(8, 1, 1))
        self.register_buffer("number", torch.randn(1, 1, 1))
        self.register_buffer("row", torch.randn(1, 9))

    def forward(self, x):
        y = self.a(x)
        parts = [self.b(y) + self.spread, self.b(y) + self.number, self.b(y) + self.row, F.relu(self.b(y) + self.one)]
        rows = torch.addmm(self.one, x[:, :, 0, :5].reshape(-1, 5), self.map)
        seen = torch.as_strided(self.b(y), (2, 6, 3), (150, 25, 1)), self.b(y).view(2, 8, -1)
        return *parts, rows, *seen


@needs_native
def test_odd_constants_and_readers_of_strides():
    """What is no bias of the layer is added by itself, and who depends on strides finds those of the model."""
    check(Odd(), torch.randn(2, 4, 11, 11), ["convolution"] * 7)


@needs_native
def test_results_that_leave_have_memory_of_torch():
    module = module_of(nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU()), x := torch.randn(2, 4, 40, 40))
    native.bind(module, (x,), Scripted(price=ours))
    [found] = module(x)
    found.resize_(3, 16, 50, 50)


@needs_native
def test_a_budget_of_none_times_nothing():
    target = Scripted(price=ours)
    target.allowance = 0.0
    assert native.bind(module_of(Residual(), x := torch.randn(2, 8, 9, 11)), (x,), target) == 0
    assert not target.asked


def test_other_products_compile_nothing(monkeypatch):
    monkeypatch.setattr(native.binding, "available", lambda: pytest.fail("asked for"))

    class Attention(nn.Module):
        def forward(self, x):
            return torch.einsum("nqc,nkc->nqk", x, x)

    assert native.bind(module_of(Attention(), x := torch.randn(2, 8, 9)), (x,), None) == 0
    assert native.bind(module_of(Attention(), x), (x,), Scripted(price=ours)) == 0
