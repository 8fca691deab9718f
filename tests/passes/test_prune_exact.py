"""The removal of channels as a whole: networks, changing weights, and what a caller sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import passes
from passes import FoldConstants, PruneExact, Reparameterize, Simplify
from passes.prune_exact.alike import collinear
from passes.prune_exact.select import runs
from rewrite import optimize, transform
from rewrite.api.arguments import freezing_rule
from rewrite.cost import count
from rewrite.driver import Driver
from rewrite.errors import PipelineError
from rewrite.trace import capture
from rewrite.verify import MatchVerifier
from tests import corpus
from tests.passes.blocks import Block, conv
from tests.passes.pruning import repeated, sizes, unread, zeroed
from tests.passes.rewriting import Result, assert_exact, rewrite, scatter
from tests.programs import Program

X = torch.randn(2, 3, 8, 6)
ALL = "simplify, reparameterize, simplify, prune-exact, fold-constants"


def planted(channels: int = 8) -> nn.Sequential:
    """A small network with a channel of each kind, and norms."""
    model = nn.Sequential(
        conv(3, channels, 3), nn.BatchNorm2d(channels), nn.ReLU(),
        conv(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.SiLU(),
        conv(channels, 4, 1),
    )  # fmt: skip
    scatter(model)
    with torch.no_grad():
        model[1].weight[0], model[1].bias[0] = 0, -0.5
        repeated(model[0], 1, 2)
        for tensor in (*model[1].parameters(), model[1].running_mean, model[1].running_var):
            tensor[2] = tensor[1]
        model[4].weight[3] = 0
        unread(model[6], 5)
    return model


def test_every_kind_in_one_network():
    model = planted()
    result = rewrite(model, PruneExact(), X)
    assert sizes(result) == [6, 6, 4]
    assert {commit.rule for commit in result.record.commits} == {
        "remove-dead-channels", "merge-duplicate-channels", "remove-unused-channels",
    }  # fmt: skip
    assert_exact(result, model, X)


@pytest.mark.parametrize("folded", [False, True])
def test_weights_and_arithmetic_become_less(folded: bool):
    before = capture(planted(), (X,)).graph
    steps = (Reparameterize(), FoldConstants()) if folded else ()
    Driver(before).run(steps)
    after = before.copy()
    Driver(after, MatchVerifier()).run([PruneExact(), FoldConstants()])
    assert count(after).weight_bytes < count(before).weight_bytes
    assert count(after).flops < count(before).flops
    assert count(after).operators <= count(before).operators


def test_the_last_norm_scales_of_a_residual_network():
    """The inner channels of a bottleneck whose norm has a scale of zero, as sparse training leaves them."""
    model = corpus.randomize(corpus.load("resnet18"), inputs=torch.randn(2, 3, 32, 32))
    with torch.no_grad():
        for i, block in enumerate((model.layer1[0], model.layer2[1], model.layer4[0])):
            block.bn1.weight[i : 9 + 2 * i] = 0
            block.bn1.bias[i : 9 + 2 * i] = -0.1 * torch.rand(9 + i)
    x = torch.randn(2, 3, 32, 32)
    graph = capture(model, (x,)).graph
    before = count(graph)
    Driver(graph).run([Simplify(), Reparameterize()])
    record, _ = Driver(graph, MatchVerifier()).run([PruneExact(), FoldConstants()])
    assert not record.rejections
    layers = sizes(Result(graph, record, graph))
    assert layers.count(64 - 9) == 1
    assert layers.count(128 - 10) == 1
    assert layers.count(512 - 11) == 1
    assert count(graph).flops < before.flops
    with torch.no_grad():
        torch.testing.assert_close(graph.to_module()(x), model(x), rtol=1e-3, atol=1e-3)


# -- changing weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["loaded", "written", "one element"])
def test_a_result_follows_weights_that_bring_a_channel_back(change: str):
    model = planted()
    fast = optimize(model, X, pipeline=ALL, lower="eager")
    torch.testing.assert_close(fast(X), model(X), rtol=1e-4, atol=1e-4)
    assert {"conv2d", "silu"} <= {getattr(n.target, "_opname", "") for n in fast.graph_module.graph.nodes}
    if change == "loaded":
        model.load_state_dict(scatter(nn.Sequential(*planted())).state_dict())
    elif change == "written":
        with torch.no_grad():
            model[1].weight.fill_(0.7)
    else:
        with torch.no_grad():
            model[6].weight[2, 5] = 1.5
    torch.testing.assert_close(fast(X), model(X), rtol=1e-4, atol=1e-4)


def test_a_result_finds_channels_that_die_later():
    model = planted()
    fast = optimize(model, X, pipeline=ALL, lower="eager")

    def widths() -> list[int]:
        shapes = [tuple(value.shape) for name, value in fast.graph_module.named_parameters()]
        shapes += [tuple(value.shape) for name, value in fast.graph_module.named_buffers()]
        return sorted(shape[0] for shape in shapes if len(shape) == 4)

    assert widths() == [4, 6, 6]
    with torch.no_grad():
        model[1].weight[7], model[1].bias[7] = 0, -1.0
    torch.testing.assert_close(fast(X), model(X), rtol=1e-4, atol=1e-4)
    assert widths() == [4, 5, 6]


def test_values_freeze_the_pass_but_not_what_nothing_reads():
    assert freezing_rule(PruneExact()) is not None
    assert freezing_rule(passes.RemoveUnreadChannels()) is None
    with pytest.raises(PipelineError, match="holds for the present weights only"):
        transform(planted().train(), X, pipeline=PruneExact())


# -- what a caller sees -----------------------------------------------------------------------------------------------


def test_the_model_keeps_its_weights():
    model = planted()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rewrite(model, PruneExact(), X)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("shape", [(0, 3, 8, 6), (1, 3, 8, 6), (5, 3, 8, 6)], ids=str)
def test_any_batch_and_layout(shape: tuple[int, ...]):
    model = planted()
    module = rewrite(model, PruneExact(), X).graph.to_module()
    x = torch.randn(shape)
    with torch.no_grad():
        for given in (x, x.to(memory_format=torch.channels_last), torch.randn(*shape[:3], 12)[..., ::2]):
            torch.testing.assert_close(module(given), model(given), rtol=1e-4, atol=1e-4)


def test_new_operators_have_the_lines_and_modules_of_the_old():
    model = planted()
    result = rewrite(model, PruneExact(), X)
    found = {layer.node.meta["nn_module_stack"].popitem()[1][0] for layer in result.layers}
    assert found == {"0", "3", "6"}


def test_values_that_other_layers_mix_are_not_searched_again():
    """A flow ends at a layer; two flows that meet there are two matches."""
    model = Block(lambda s, x: s.c(s.b(s.a(x).relu()).relu()), a=zeroed(conv(3, 6, 3), 1, bias=-1.0),
                  b=zeroed(conv(6, 6, 1), 2, bias=-1.0), c=conv(6, 4, 1))  # fmt: skip
    assert len(rewrite(model.eval(), PruneExact(), X).record.commits) == 2


def test_size_one_dimensions_are_not_taken_for_channels():
    def forward(s: Block, x: Tensor) -> Tensor:
        y = s.a(x)
        return s.b(y * y.mean((2, 3), keepdim=True) + s.g).mean((2, 3)).unsqueeze(-1).squeeze(-1)

    model = Block(forward, a=zeroed(conv(3, 6, 3), 1, 4), g=torch.randn(1), b=conv(6, 4, 1)).eval()
    result = rewrite(model, PruneExact(), X)
    assert not result.record.commits
    assert "add adds a channel that is not constant" in result.reasons


def test_a_value_along_two_dimensions_is_left_alone():
    """Channels against channels: a Gram matrix needs all of them."""

    def forward(s: Block, x: Tensor) -> Tensor:
        y = s.a(x).flatten(2)
        return s.b(torch.bmm(y, y.transpose(1, 2)) + y.mean(2, True) * y.mean(2)[:, None])

    result = rewrite(Block(forward, a=zeroed(conv(3, 6, 3), 1, 4), b=nn.Linear(6, 2)).eval(), PruneExact(), X)
    assert not result.record.commits


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positions", "wanted"), [
    ([], []), ([3], [range(3, 4)]), ([0, 1, 2], [range(3)]), ([0, 2, 4], [range(0, 5, 2)]),
    ([0, 5], [range(1), range(5, 6)]), ([0, 1, 5, 6], [range(2), range(5, 7)]), ([2, 0, 1], [range(2, 3), range(2)]),
    ([1, 1], [range(1, 2), range(1, 2)]), ([0, 2, 4, 5], [range(0, 5, 2), range(5, 6)]),
])  # fmt: skip
def test_positions_are_ranges(positions: list[int], wanted: list[range]):
    assert runs(positions) == wanted
    assert [position for part in runs(positions) for position in part] == positions


def test_rows_are_told_apart():
    rows = torch.tensor([[0, 1, 2], [0, 2, 4], [0, 0, 0], [0, -1, -2], [1, 1, 2], [0, float("nan"), 1], [0, 0.1, 0.2]])
    found = collinear([0] * 7, rows)
    assert found.root.tolist() == [0, 0, 2, 0, 4, 5, 0]
    assert found.factor[:4].tolist() == [1, 2, 1, -1]
    assert collinear([0, 1] + [0] * 5, rows).root.tolist() == [0, 1, 2, 0, 4, 5, 0]
    # all columns count, not only those that are sampled
    long = torch.ones(2, 100)
    long[1, 37] = 2
    assert collinear([0, 0], long).root.tolist() == [0, 1]


def test_shared_values_of_a_split():
    def forward(s: Block, x: Tensor) -> Tensor:
        left, right = s.a(x).chunk(2, 1)
        return s.b(left * right.sigmoid())

    model = Block(forward, a=zeroed(conv(3, 8, 3), 1, 5, bias=0.0), b=conv(4, 4, 3, padding=1)).eval()
    result = rewrite(model, PruneExact(), X)
    assert sizes(result) == [6, 4]
    assert_exact(result, model, X)


def test_graphs_without_names_for_their_sizes():
    """As Dynamo traces them: batch norm in one call, a matrix that is transposed first."""
    aten = torch.ops.aten
    program = Program(dynamic=True)
    x = program.input(torch.randn(2, 5))
    first, second = torch.randn(6, 5), torch.randn(3, 6)
    first[2] = 0
    w, v = program.weight("w", first), program.weight("v", second)
    b = program.weight("b", torch.rand(6))
    hidden = program(aten.addmm.default, b, x, program(aten.t.default, w))
    mean, var = program.weight("mean", torch.randn(6)), program.weight("var", torch.rand(6) + 0.5)
    hidden = program(aten.batch_norm.default, hidden, None, None, mean, var, False, 0.1, 1e-5, False)
    graph = program.graph(program(aten.mm.default, program(aten.relu.default, hidden), program(aten.t.default, v)))
    before = graph.to_module()
    [record] = Driver(graph, MatchVerifier()).run([PruneExact()])
    assert [commit.rule for commit in record.commits] == ["remove-dead-channels"]
    torch.testing.assert_close(graph.to_module()(*program.inputs), before(*program.inputs))


def test_dropout_in_training_is_in_the_way():
    model: Any = Block(lambda s, x: s.b(F.dropout(s.a(x), 0.5, True)), a=zeroed(conv(3, 6, 3), 1), b=conv(6, 4, 1))
    result = rewrite(model.eval(), PruneExact(), X)
    assert not result.record.commits
