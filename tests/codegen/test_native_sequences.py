"""Layers one behind the other in one call: the same results, each value at a place of its own while it is needed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from codegen import native
from codegen.native.operators import operator
from codegen.native.places import planned
from rewrite import compat
from tests.codegen.test_native_binding import Excited, module_of, ours
from tests.select.scripted import Scripted

needs_native = pytest.mark.skipif(not native.supported(), reason="needs a C++ compiler on Linux and x86")


class Net(nn.Module):
    """Every kind of layer, values that are read again much later, results of several layers, a break in between."""

    def __init__(self, broken: bool = False, winograd: bool = False):
        super().__init__()
        self.broken = broken
        self.stem, self.wide = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 40, 1)
        self.each, self.excited = nn.Conv2d(40, 40, 5, padding=2, groups=40), Excited()
        self.excited.stem, self.excited.last = nn.Conv2d(40, 37, 1), nn.Conv2d(37, 8, 1)
        self.last, self.grouped = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, groups=2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.silu(self.stem(x))
        y = F.relu6(self.each(self.wide(x)))
        y = torch.cumsum(y, 1) if self.broken else y
        z = self.excited(y) + x
        return z, F.gelu(self.grouped(F.relu(self.last(z))))


def joined(model: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    module = module_of(model.eval(), x)
    native.bind(module, (x,), Scripted(price=ours))
    native.join(module)
    return module


def calls(module: torch.fx.GraphModule, kind: str) -> int:
    return sum(node.target is operator(kind) for node in module.graph.nodes)


@needs_native
@pytest.mark.parametrize("broken", [False, True])
@given(data=st.data())
def test_they_give_what_the_model_gives(broken: bool, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(6, 30)), data.draw(st.integers(6, 30))
    model, x = Net(broken), torch.randn(data.draw(st.integers(1, 3)), 3, height, width)
    module = joined(model, x)
    assert calls(module, "sequence") == 1 + broken
    assert not any(calls(module, kind) for kind in ("convolution", "depthwise", "excitation"))
    with torch.no_grad():
        for _ in range(2):
            for new, old in zip(module(x), model(x), strict=True):
                assert new.stride() == old.stride()
                torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


@needs_native
def test_parts_of_their_weights_are_not_kept() -> None:
    x = torch.randn(1, 3, 16, 16)
    module = joined(Net(), x)
    packed = [name for name in module._buffers if name.startswith("native_")]
    assert not packed
    names = {name for name, _ in module.named_buffers() if name.startswith("sequence")}
    assert names == {"sequence_0_weights", "sequence_0_steps"}


@needs_native
def test_results_that_leave_are_new_each_time() -> None:
    x = torch.randn(2, 3, 16, 16)
    module = joined(Net(), x)
    with torch.no_grad():
        first = module(x)
        kept = [tensor.clone() for tensor in first]
        second = module(x + 1)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    assert not torch.equal(first[0], second[0])
    first[1].resize_(1)  # torch's own memory


@needs_native
def test_one_layer_alone_is_no_sequence() -> None:
    module = joined(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(1), nn.Conv2d(8, 8, 3)), torch.randn(1, 3, 8, 8))
    assert calls(module, "sequence") == 0
    assert calls(module, "convolution") == 2


@needs_native
def test_images_of_another_size_are_refused() -> None:
    x = torch.randn(1, 3, 16, 16)
    module = joined(Net(), x)
    node = next(node for node in module.graph.nodes if node.target is operator("sequence"))
    weights, steps = (getattr(module, str(arg.target)) for arg in node.args[1:3])
    call, (memory, shapes) = operator("sequence"), node.args[3:]
    other = torch.randn(1, 3, 16, 18).contiguous(memory_format=torch.channels_last)
    for given_, message in (([other], "another size"), ([torch.randn(1, 3, 16, 16)], "channels-last")):
        with pytest.raises(ValueError, match=message):
            call(given_, weights, steps, memory, shapes)
    image = x.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="weights"):
        call([image], weights[:-16], steps, memory, shapes)
    with pytest.raises(ValueError, match="other numbers"):
        call([image], weights, steps[:, 1:], memory, shapes)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[torch.fx.Graph, list[torch.fx.Node]]:
    """Some nodes that read some before them, of drawn sizes."""
    graph = torch.fx.Graph()
    nodes: list[torch.fx.Node] = []
    for _ in range(draw(st.integers(1, 12))):
        read = draw(st.lists(st.sampled_from(nodes), max_size=2)) if nodes else []
        node = graph.call_function(torch.add, tuple(read))
        node.meta["val"] = torch.empty(draw(st.integers(1, 200)), device="meta")
        nodes.append(node)
    return graph, nodes


def planned_of(nodes: list[torch.fx.Node]) -> tuple[dict[torch.fx.Node, int], int]:
    time = {node: i for i, node in enumerate(nodes)}
    lives = {node: (i, max((time[user] for user in node.users), default=i)) for node, i in time.items()}
    return planned({node: node.meta["val"].numel() for node in nodes}, lives)


@given(graphs())
def test_values_that_live_together_lie_apart(drawn: tuple[torch.fx.Graph, list[torch.fx.Node]]) -> None:
    _, nodes = drawn
    places, memory = planned_of(nodes)
    position = {node: i for i, node in enumerate(nodes)}
    owner: dict[int, torch.fx.Node] = {}
    for node in nodes:  # as it would run: each value is whole when it is read
        for read in node.all_input_nodes:
            begin = places[read]
            assert all(owner[begin + i] is read for i in range(read.meta["val"].numel()))
        owner |= {places[node] + i: node for i in range(node.meta["val"].numel())}
        assert places[node] % 16 == 0
    assert max(owner) < memory
    # nor over what is read at the same time
    for node in nodes:
        for read in node.all_input_nodes:
            a, b = places[node], places[read]
            apart = a + node.meta["val"].numel() <= b or b + read.meta["val"].numel() <= a
            assert apart, (position[node], position[read])


@given(st.integers(2, 30))
def test_a_chain_takes_two_values(length: int) -> None:
    graph, nodes = torch.fx.Graph(), []
    for _ in range(length):
        node = graph.call_function(torch.neg, tuple(nodes[-1:]))
        node.meta["val"] = torch.empty(64, device="meta")
        nodes.append(node)
    assert planned_of(nodes)[1] == 128


def test_a_model_without_kernels_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), x := torch.randn(1, 3, 8, 8))
    before = str(module.graph)
    assert native.join(module) == 0
    assert str(module.graph) == before
    assert compat.tree_flatten(module(x))[0][0].shape == (1, 8, 6, 6)
