"""Plans: which regions become kernels, over networks' own graphs; why others do not; the same each time."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from codegen.triton.device import DEVICES, REFERENCE
from codegen.triton.planning import MARGIN, KernelPlan, planned
from codegen.triton.region import Region
from tests.codegen.triton.kernels import FAMILY, Net, depthwise, last, module_of, regions_of, words
from tests.corpus import load

SIDE = 64
NETWORKS = ("efficientnet_b0", "mobilenetv3_small_050", "mixnet_s", "convnext_atto", "inception_next_atto")


def start(name: str) -> nn.Module:
    """The first stages of a network of timm."""
    model = load(name)
    if hasattr(model, "conv_stem"):
        return nn.Sequential(model.conv_stem, model.bn1, *model.blocks[:3])
    return nn.Sequential(model.stem, *model.stages[:2])


@functools.cache
def graph_of(name: str, whole: bool) -> GraphModule:
    """The flat module of a network, or of its start; tests do not change it."""
    return module_of(load(name) if whole else start(name), torch.randn(1, 3, SIDE, SIDE))


everywhere = pytest.mark.parametrize(("name", "whole"), [
    *((name, False) for name in NETWORKS),
    *(pytest.param(name, True, marks=[pytest.mark.slow, pytest.mark.corpus]) for name in NETWORKS),
])  # fmt: skip


def edges(graph: Graph) -> nx.DiGraph:
    """Who reads whom."""
    return nx.DiGraph((source, node) for node in graph.nodes for source in node.all_input_nodes)


def as_kernels(graph: Graph, regions: Sequence[Region]) -> nx.DiGraph:
    """The graph with one node for each region, which reads operands and gives outputs."""
    found = nx.DiGraph()
    inside = {node for region in regions for node in region.nodes}
    for number, region in enumerate(regions):
        found.add_edges_from((operand, number) for operand in region.operands)
        found.add_edges_from((number, output) for output in region.outputs)
    for node in graph.nodes:
        if node not in inside:
            found.add_edges_from((source, node) for source in node.all_input_nodes)
    return found


@everywhere
def test_regions_can_be_computed_whole_one_after_the_other(name, whole):
    """No path leaves one and comes back, none have an operator in common, and all that is read is there."""
    graph = graph_of(name, whole).graph
    plan, among = planned(graph, REFERENCE, [FAMILY]), edges(graph)
    assert plan.regions
    regions = [each.region for each in plan.regions]
    for region in regions:
        inside = set(region.nodes)
        behind = set().union(*(nx.descendants(among, node) for node in inside))
        before = set().union(*(nx.ancestors(among, node) for node in inside))
        assert not (behind & before) - inside
        read = {operand for node in inside for operand in node.all_input_nodes} - inside
        assert set(region.operands) <= read
        read_outside = {node for node in inside if node.users.keys() - inside}
        assert all(node in region.outputs or set(node.all_input_nodes) & inside for node in read_outside)
    every = [node for region in regions for node in region.nodes]
    assert len(every) == len(set(every))
    assert nx.is_directed_acyclic_graph(as_kernels(graph, regions))


@everywhere
def test_plans_say_what_they_save(name, whole):
    graph = graph_of(name, whole).graph
    plan = planned(graph, REFERENCE, [FAMILY])
    text = str(plan)
    assert text.splitlines()[0] == f"{len(plan.regions)} kernels on H200, {1e6 * plan.gain:.1f} us saved as predicted"
    for each in plan.regions:
        assert each.gain > MARGIN * each.parts > 0
        assert each.seconds >= REFERENCE.launch
        assert f"{each.region.main.node.name}: " in text
        assert str(each.region.main) in text
        assert f"bound by {each.bound}" in text
    assert plan.gain == pytest.approx(sum(each.parts - each.seconds for each in plan.regions))
    order = {node: i for i, node in enumerate(graph.nodes)}
    places = [order[each.region.main.node] for each in plan.regions]
    assert places == sorted(places)
    assert all(each.reason for each in plan.declined)
    mains = {main.node for main in FAMILY.mains(graph)}
    said = {each.region.main.node for each in plan.regions} | {each.node for each in plan.declined}
    assert mains <= said


@everywhere
def test_all_planned_kernels_can_be_written(name, whole):
    plan = planned(graph_of(name, whole).graph, REFERENCE, [FAMILY])
    for each in plan.regions:
        kernel = each.candidates[0].emit()
        assert kernel.region is each.region
        assert kernel.operands[: len(each.region.inputs)] == each.region.inputs
        assert set(kernel.operands) == set(each.region.operands)
        assert len(kernel.results) == len(each.region.outputs)
        assert kernel.launchable.programs > 0
        assert callable(kernel.source.kernel())


def told(plan: KernelPlan) -> tuple[str, list[str]]:
    """What a plan says, and the kernels that it would run."""
    return str(plan), [each.candidates[0].emit().source.hash for each in plan.regions]


@pytest.mark.parametrize("name", ["mixnet_s", "convnext_atto"])
def test_plans_are_the_same_each_time(name):
    again = module_of(start(name), torch.randn(1, 3, SIDE, SIDE))
    expected = told(planned(graph_of(name, False).graph, REFERENCE, [FAMILY]))
    assert told(planned(again.graph, REFERENCE, [FAMILY])) == expected
    assert told(planned(graph_of(name, False).graph, REFERENCE, [FAMILY])) == expected


def test_equal_layers_have_equal_kernels():
    blocks = [nn.Sequential(depthwise(24, 3), nn.ReLU6(), nn.Conv2d(24, 24, 1)) for _ in range(3)]
    module = module_of(nn.Sequential(*blocks, depthwise(24, 5), nn.ReLU6()), torch.randn(1, 24, 12, 12))
    sources = [each.candidates[0].emit().source for each in planned(module.graph, REFERENCE, [FAMILY]).regions]
    assert len(sources) == 4
    assert len({source.hash for source in sources}) == 2
    assert len({source.text for source in sources}) == 2


def chain(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Something in front, and much behind."""
    y = F.gelu(net.a(torch.sigmoid(x + 1)) + x)
    z = (2 * y).permute(0, 2, 3, 1)
    return net.ln(z).tanh(), y.mean((2, 3))


def test_regions_are_nested():
    """From the convolution alone to all that a kernel can hold, no two of them equal; none ends with a view."""
    model = Net(chain, a=depthwise(8, 3), ln=nn.LayerNorm(8))
    found = regions_of(module_of(model, last(torch.randn(1, 8, 9, 9))))
    sets = [set(region.nodes) for region in found]
    assert sets[0] == set(found[0].main.nodes)
    assert all(sets[0] <= each <= sets[-1] for each in sets)
    assert len({frozenset(each) for each in sets}) == len(sets) == 3 * 6
    assert words(found[-1].nodes) == "add sigmoid conv2d add gelu mul permute layer_norm tanh mean"
    for region in found:
        fronts = [other for other in found if set(other.epilogue) <= set(region.epilogue)]
        assert all(set(other.totals) <= set(region.totals) for other in fronts)


DECLINED = {
    "its 4 groups are not its 8 input and 8 output channels": nn.Conv2d(8, 8, 3, groups=4),
    "its 8 groups are not its 8 input and 16 output channels": nn.Conv2d(8, 16, 3, groups=8),
    "it is transposed": nn.ConvTranspose2d(8, 8, 3, groups=8),
    "it has 3 dimensions, and there is code for one and two": nn.Conv3d(8, 8, 3, padding=1, groups=8),
    "it is torch.float64": nn.Conv2d(8, 8, 3, groups=8).double(),
    "the best kernel takes 2.5 us, bound by launch, and its operators 2.5 us": nn.Conv2d(8, 8, 3, groups=8),
    "no kernel of it fits the device": nn.Conv2d(8, 8, (3, 1), stride=2, dilation=2, groups=8),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_what_is_declined_has_a_reason(reason):
    model = DECLINED[reason]
    x = torch.randn(1, 8, *[12] * (len(model.kernel_size)), dtype=model.weight.dtype)
    plan = planned(module_of(model, x).graph, REFERENCE, [FAMILY])
    assert plan.regions == ()
    assert [each.reason for each in plan.declined] == [reason]
    assert f"not {plan.declined[0].node.name}: {reason}" in str(plan)


@pytest.mark.parametrize("model", [nn.Conv2d(8, 8, 3), nn.Conv2d(1, 1, 3), nn.Linear(12, 12)], ids=str)
def test_what_does_not_look_like_one_is_not_spoken_of(model):
    channels = getattr(model, "in_channels", 8)
    plan = planned(module_of(model, torch.randn(1, channels, 12, 12)).graph, REFERENCE, [FAMILY])
    assert str(plan) == "0 kernels on H200, 0.0 us saved as predicted"


def test_an_operator_is_part_of_one_kernel():
    """Of what two convolutions could both take, the one that saves more has it."""
    model = Net(lambda n, x: F.gelu(n.a(x) * n.c(x)), a=depthwise(32, 3), c=depthwise(32, 13))
    module = module_of(model, torch.randn(8, 32, 56, 56))
    both = [regions_of(module)[-1], *(list(FAMILY.regions(main))[-1] for main in FAMILY.mains(module.graph))]
    assert all(words(region.epilogue) == "mul gelu" for region in both)
    plan = planned(module.graph, REFERENCE, [FAMILY])
    assert sorted(words(each.region.epilogue) for each in plan.regions) in (["", "mul gelu"], ["mul gelu"])


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("gain", [(), (16, 1, 1), (9, 9)], ids=str)
def test_schedules_are_for_the_layout_of_what_is_large(gain, is_last):
    """Not for that of a few numbers in front, which may have no channels."""
    model = Net(lambda n, x: n.a(n.g * x), a=depthwise(16, 3), g=torch.randn(gain))
    x = torch.randn(2, 16, 9, 9)
    region = regions_of(module_of(model, last(x) if is_last else x))[-1]
    assert words(region.prologue) == "mul"
    found = FAMILY.candidates(region, REFERENCE, elementwise=True)
    assert found
    assert all(("channels" in str(each.schedules)) == is_last for each in found)


@pytest.mark.parametrize("device", DEVICES)
def test_candidates_are_ranked_by_what_they_should_take(device):
    """All of them compute the same region, with schedules for its layout."""
    model = Net(lambda n, x: F.gelu(n.a(x)), a=depthwise(64, 7))
    region = regions_of(module_of(model.half(), torch.randn(8, 64, 28, 28).half()))[-1]
    found = FAMILY.candidates(region, DEVICES[device])
    assert len({each.schedules for each in found}) > 1
    order = [DEVICES[device].order(each.work, torch.float16) for each in found]
    assert order == sorted(order)
    assert len({each.work.bytes for each in found}) == 1
    assert [each.emit().schedules for each in found[:3]] == [each.schedules for each in found[:3]]
