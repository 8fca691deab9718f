"""Graphs come back node by node, with what they compute, where they come from, and how their weights are folded."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
from rewrite import compat, printer
from rewrite.artifact import graphs_data, graphs_of
from rewrite.errors import ArtifactError
from rewrite.graph import Graph
from rewrite.provenance import location, module_path, origin
from rewrite.recipe import Recipe
from rewrite.trace import capture
from tests.corpus import randomize
from tests.golden import models
from tests.programs import Program
from tests.result.test_module import Signature
from tests.result.test_state import Counter

aten = torch.ops.aten

CHANNELS = {"ConvNet": 3, "RepVGG": 8, "MobileOne": 8, "FastViTMixer": 8}


def graphs_for(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Graph]:
    """A model as captured and as the default pipeline leaves it."""
    captured = capture(model.eval(), args, kwargs).graph
    rewritten = captured.copy()
    Recipe(passes.default_pipeline(), verify="off").apply(rewritten)
    return {"captured": captured, "rewritten": rewritten}


def data_of(graphs: dict[str, Graph]) -> Any:
    return json.loads(json.dumps(graphs_data(graphs), allow_nan=False))


def again(graphs: dict[str, Graph], **options: Any) -> dict[str, Graph]:
    """The graphs from their JSON, over the same weights."""
    found = graphs_of(data_of(graphs), **options)
    for name, graph in found.items():
        graph.weights = dict(graphs[name].weights)
    return found


def numbers(value: Tensor) -> list[tuple[bool, int]]:
    """Sizes and strides of a recorded value: whether they are free, and what they are in the example."""
    sizes = (*value.shape, *value.stride())
    return [(False, size) if isinstance(size, int) else (True, compat.hint(size)) for size in sizes]


def same_program(a: Graph, b: Graph) -> None:
    assert printer.program(a.nodes) == printer.program(b.nodes)
    assert printer.program(a.program.fx.nodes) == printer.program(b.program.fx.nodes)
    assert {name: node.name for name, node in a.program.results.items()} == {
        name: node.name for name, node in b.program.results.items()
    }
    assert a.signature == b.signature
    for mine, theirs in zip((*a.nodes, *a.program.fx.nodes), (*b.nodes, *b.program.fx.nodes), strict=True):
        assert (mine.op, mine.target, mine.name) == (theirs.op, theirs.target, theirs.name)
        assert origin(mine) == origin(theirs)
        assert module_path(mine) == module_path(theirs)
        assert (location(mine) and location(mine).text) == (location(theirs) and location(theirs).text)
        assert str(location(mine)) == str(location(theirs))
        if mine.op != "output":
            for one, two in zip(*(compat.tree_flatten(node.meta["val"])[0] for node in (mine, theirs)), strict=True):
                assert type(one) is type(two)
                if isinstance(one, Tensor):
                    assert (one.dtype, one.device, one.requires_grad) == (two.dtype, two.device, two.requires_grad)
                    assert numbers(one) == numbers(two)
    b.check()


@pytest.mark.parametrize("name", CHANNELS)
def test_golden_models_come_back(name: str) -> None:
    x = torch.randn(2, CHANNELS[name], 8, 8)
    model = randomize(getattr(models, name)().eval(), inputs=x)
    graphs = graphs_for(model, x)
    found = again(graphs)
    for key, graph in graphs.items():
        same_program(graph, found[key])
        assert torch.equal(found[key].to_module()(x), graph.to_module()(x))
        folded = found[key].program.evaluate(found[key].weights)
        assert folded.keys() == graph.program.results.keys()
        assert all(torch.equal(folded[each], graph.weights[each]) for each in folded)
    assert graphs["rewritten"].program.results
    assert data_of(found) == data_of(graphs), "what is written again is the same file"


def test_weight_code_that_was_shared_stays_shared() -> None:
    graphs = graphs_for(randomize(models.RepVGG().eval(), inputs=torch.randn(2, 8, 8, 8)), torch.randn(2, 8, 8, 8))
    found = again(graphs)["rewritten"].program
    count = len(found.fx.nodes)
    node = next(node for node in found.fx.nodes if node.op == "call_function")
    found.absorb(node, "twice")
    assert len(found.fx.nodes) == count


def test_signatures_come_back() -> None:
    model, a = Signature(), torch.randn(3, 4)
    for rest, kwargs in (((), {}), ((a,), {"scale": torch.randn(4)}), ((), {"flip": True})):
        graphs = graphs_for(model, {"a": a}, *rest, **kwargs)
        found = again(graphs)
        same_program(graphs["captured"], found["captured"])
        expected = graphs["captured"].to_module()({"a": a}, *rest, **kwargs)
        result = found["captured"].to_module()({"a": a}, *rest, **kwargs)
        assert torch.equal(expected["y"], result["y"])
        assert (result["n"], result["pair"][1]) == (None, 4)


def test_writes_come_back() -> None:
    model, x = Counter().eval(), torch.randn(3, 4)
    graphs = graphs_for(model, x)
    found = again(graphs)
    same_program(graphs["captured"], found["captured"])
    first, second = (each["captured"].to_module(copy.deepcopy(model.state_dict())) for each in (graphs, found))
    for _ in range(2):
        assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("stride", ["rows", "batch", "channels"])
def test_a_batch_that_inputs_share_stays_free_and_shared(stride: str) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True) * y + z

    x = {
        "rows": torch.randn(5, 3, 4),
        "batch": torch.randn(3, 4, 5).permute(2, 0, 1),
        "channels": torch.randn(5, 4, 3).permute(0, 2, 1),
    }[stride]
    graphs = graphs_for(Two(), x, torch.randn(5, 2), torch.randn(2))
    found = again(graphs)["captured"]
    same_program(graphs["captured"], found)
    first, second, third = (node.meta["val"].shape[0] for node in found.inputs)
    assert isinstance(first, torch.SymInt)
    assert str(first) == str(second)
    assert third == 2
    x, y, z = torch.randn(7, 3, 4), torch.randn(7, 2), torch.randn(2)
    assert torch.equal(found.to_module()(x, y, z), Two()(x, y, z))


def test_numbers_that_are_equal_and_not_the_same() -> None:
    program = Program()
    x = program.input(torch.arange(4))
    graph = program.graph(*(program(aten.add.Tensor, x, number) for number in (1, 1.0, True)))
    found = graphs_of(data_of({"captured": graph}))["captured"]
    assert [value.dtype for value in found.to_module()(torch.arange(4))] == [torch.int64, torch.float32, torch.int64]


def test_a_program_for_another_dtype() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = randomize(models.ConvNet().eval(), inputs=x)
    graphs = graphs_for(model, x)
    found = graphs_of(data_of(graphs), dtypes={torch.float32: torch.float64})
    assert {node.meta["val"].dtype for node in found["rewritten"].calls()} == {torch.float64}
    twin = copy.deepcopy(model).double()
    graph = found["captured"]
    graph.weights = dict(twin.state_dict())
    graph.check()
    torch.testing.assert_close(graph.to_module()(x.double()), twin(x.double()))


def test_operators_of_a_library() -> None:
    with torch.library._scoped_library("rewrite_test", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
        torch.library.register_fake("rewrite_test::twice", torch.empty_like, lib=library)
        program = Program()
        x = program.input(torch.randn(3))
        graph = program.graph(program(torch.ops.rewrite_test.twice.default, x))
        data = data_of({"captured": graph})
        assert torch.equal(graphs_of(data)["captured"].to_module()(torch.ones(3))[0], torch.full((3,), 2.0))
    data["graphs"]["captured"]["nodes"][-1]["target"] = "rewrite_test.thrice.default"
    with pytest.raises(ArtifactError, match=r"'rewrite_test\.thrice' first"):
        graphs_of(data)


# -- what is refused --------------------------------------------------------------------------------------------------


def small() -> Any:
    program = Program()
    x = program.input(torch.randn(2, 3))
    w = program.weight("layer.w", torch.randn(3, 4))
    return data_of({"captured": program.graph(program(aten.relu.default, program(aten.mm.default, x, w)))})


def change(kind: str) -> Any:
    data = small()
    x, w, mm, relu = data["graphs"]["captured"]["nodes"]
    signature = data["graphs"]["captured"]["signature"]
    if kind == "weight of another shape":
        w["value"]["tensor"].update(shape=[3, 5], stride=[5, 1])
    elif kind == "weight that does not fit":
        w["value"]["tensor"].update(shape=[7, 5], stride=[5, 1])
    elif kind == "other dtype":
        x["value"]["tensor"]["dtype"] = w["value"]["tensor"]["dtype"] = "float64"
    elif kind == "no dtype":
        x["value"]["tensor"]["dtype"] = "float33"
    elif kind == "no shape":
        x["value"]["tensor"]["shape"] = [2, "s5"]
    elif kind == "operand that comes later":
        mm["args"][0] = {"node": relu["name"]}
    elif kind == "write":
        relu["target"] = "aten.relu_.default"
    elif kind == "name twice":
        relu["name"] = mm["name"]
    elif kind == "code for a name":
        x["target"] = "x, y=exit()"
    elif kind == "code for a weight":
        w["target"] = 'w"); exit()#'
    elif kind == "code for an option":
        relu["kwargs"] = {"a=exit()": 1}
    elif kind == "code for a keyword":
        # one leaf, as before; torch writes the names of keywords into quotes
        key = "a':x}, __import__('os').abort(), {'b"
        signature["in"] = ["builtins.tuple", None, [["builtins.tuple", None, []], ["builtins.dict", [key], [None]]]]
    elif kind == "no call":
        signature["in"] = ["builtins.list", None, signature["in"][2]]
    elif kind == "unknown container":
        signature["out"] = ["a.B", None, [None]]
    elif kind == "more outputs":
        signature["outputs"] = 99
    elif kind == "true for a number":
        signature["outputs"] = True
    elif kind == "write without a value":
        signature["mutations"] = [["weight", "layer.w"]]
    elif kind == "write to nothing":
        data["graphs"]["captured"]["outputs"].append({"node": mm["name"]})
        signature["mutations"] = [["input", "no_input"]]
    elif kind == "write of a number":
        data["graphs"]["captured"]["outputs"].append(3)
        signature["mutations"] = [["weight", "layer.w"]]
    elif kind == "place from the end":
        data["places"] = [["path", "Kind"]]
        relu["place"] = -1
    elif kind == "origin":
        data["origins"] = [["rule", {}, [], False]]
    elif kind == "code for a symbol":
        data["symbols"] = {"exit()": 5}
    elif kind == "size below zero":
        data["symbols"] = {"s0": -5}
    elif kind == "attribute for a weight":
        w["target"] = "__class__.forward"
    elif kind == "two calls":
        data["graphs"]["rewritten"] = copy.deepcopy(data["graphs"]["captured"])
        data["graphs"]["rewritten"]["signature"]["arguments"] = ["other"]
    elif kind == "nothing":
        del data["graphs"]["captured"]["signature"]
    return data


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("weight of another shape", r"comes out as float32\[2,5\], and the file says float32\[2,4\]"),
        ("weight that does not fit", r"'aten.mm.default' does not take what the file gives it"),
        ("other dtype", r"comes out as float64\[2,4\]"),
        ("no dtype", "no dtype 'float33'"),
        ("no shape", "describes no tensor"),
        ("operand that comes later", "no valid program"),
        ("write", "writes to its input"),
        ("name twice", "twice in the program"),
        ("code for a name", "no name of an argument"),
        ("code for a weight", "has a quote"),
        ("code for an option", "no name of an argument"),
        ("code for a keyword", "no name of an argument"),
        ("no call", "which is no call"),
        ("unknown container", "import the module that registers it first"),
        ("more outputs", r"\(1, 99, -98\) inputs, outputs and writes, and its call \(1, 1, 0\)"),
        ("true for a number", "inputs, outputs and writes"),
        ("write without a value", r"and its call \(1, 1, 1\)"),
        ("write to nothing", "to the input 'no_input'"),
        ("write of a number", "writes 3 to the weight"),
        ("place from the end", "no valid program"),
        ("origin", "no valid program"),
        ("code for a symbol", "the free sizes of the program are"),
        ("size below zero", "the free sizes of the program are"),
        ("attribute for a weight", "has '__class__' in its name"),
        ("two calls", "are of different calls"),
        ("nothing", "no valid program"),
    ],
)
def test_a_program_that_was_tampered_with(kind: str, words: str) -> None:
    graphs_of(small())
    with pytest.raises(ArtifactError, match=words):
        graphs_of(change(kind))


def called(target: str, *args: Any) -> Any:
    """A program with one more call, of anything, on encoded arguments."""
    data = small()
    data["graphs"]["captured"]["nodes"].append(
        {"kind": "call", "name": "more", "target": target, "args": list(args), "kwargs": {}, "type": "?"}
    )
    return data


@pytest.mark.parametrize(
    "call",
    [
        ("operator.pow", 10, 1 << 40),
        ("operator.pow", 1 << 64, 2),
        ("builtins.round", 1, -(1 << 40)),
        ("operator.mul", [0], 1 << 40),
        ("operator.mul", "a", 1 << 40),
        ("operator.mod", "%999999999999d", 1),
    ],
    ids=["a power", "a large number", "digits", "a list", "text", "a format"],
)
def test_arithmetic_stays_small(call: Any) -> None:
    with pytest.raises(ArtifactError, match="which no sizes are"):
        graphs_of(called(*call))


def test_places_are_single_lines() -> None:
    # compilers copy them into comments of the code that they write
    data = small()
    data["places"] = [["a\nb", "c\rd", "file\u2028name", 3, "f\ng", "text\nexit()"]]
    data["graphs"]["captured"]["nodes"][-1]["place"] = 0
    *_, relu = graphs_of(data)["captured"].calls()
    assert relu.meta["stack_trace"] == 'File "file name", line 3, in f g\n    text exit()'
    assert relu.meta["nn_module_stack"] == {"a b": ("a b", "c d")}


def test_results_without_a_name_are_refused() -> None:
    from collections import namedtuple

    pair = namedtuple("pair", "a b")

    class Named(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return pair(x + 1, x)

    with pytest.raises(ArtifactError, match="serialized_type_name"):
        data_of(graphs_for(Named(), torch.randn(2, 2)))
