"""Results through exporters and tracers: what comes out is the rewritten program, and computes what the model does."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from rewrite import InputError, RewriteError, optimize, transform
from tests.habits.models import Counting, counting
from tests.result.programs import close, image, net

STRICT = pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
LEGACY = pytest.mark.filterwarnings("ignore:.torch.jit.(trace|script|save|load|script_method|trace_method)")


@pytest.fixture(scope="module")
def made() -> tuple[Counting, Any]:
    model = counting()
    return model, optimize(model, image(), lower="eager")


def targets(program: Any) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


# -- torch.export -----------------------------------------------------------------------------------------------------


@STRICT
@pytest.mark.parametrize(
    "dynamic", [None, {"x": {0: Dim.DYNAMIC}}, {"x": {0: Dim("n", max=64)}}], ids=["static", "dynamic", "named"]
)
def test_exported_programs(made: Any, strict: bool, dynamic: Any) -> None:
    model, fast = made
    program = export(fast, (image(),), dynamic_shapes=dynamic, strict=strict)
    assert not [target for target in targets(program) if "batch_norm" in target]
    assert [name for name in program.state_dict if "fc" in name] == ["fc.weight", "fc.bias"]
    assert any("body_0" in name or "body.0" in name for name in program.constants), list(program.constants)
    run = program.module()
    for batch in (2,) if dynamic is None else (2, 7):
        found, expected = run(image(batch)), model(image(batch))
        assert list(found) == ["y", "mean"]
        assert close(found["y"], expected["y"])
        assert close(found["mean"], expected["mean"])


@STRICT
def test_exported_state(made: Any, strict: bool) -> None:
    _, fast = made
    before = fast.count.clone()
    program = export(fast, (image(),), strict=strict)
    assert torch.equal(fast.count, before)
    assert list(program.run_decompositions({}).graph_signature.buffers_to_mutate.values()) == ["count"]
    run = program.module()
    run(image())
    run(image())
    assert float(run.count - before) == 2


@STRICT
def test_exports_see_changed_weights(strict: bool) -> None:
    model = counting()
    fast = optimize(model, image(), lower="eager")
    with torch.no_grad():
        model.body[0].weight.mul_(-2)
        model.body[1].running_mean.add_(1)
    assert close(export(fast, (image(),), strict=strict).module()(image())["y"], model(image())["y"])
    own = copy.deepcopy(fast)
    own.load_state_dict(counting(3).state_dict())
    assert close(export(own, (image(),), strict=strict).module()(image())["y"], counting(3)(image())["y"])
    assert close(fast(image())["y"], model(image())["y"])


@STRICT
def test_calls_that_no_program_takes_are_refused(strict: bool) -> None:
    model = counting()
    fast = optimize(model, image(), lower="eager")
    shift = torch.randn(5)
    with pytest.raises(
        InputError, match=r"no program takes \(f32\[2, 3, 8, 8\], f32\[5\]\), and none can be made while it is traced"
    ):
        export(fast, (image(),), {"shift": shift}, strict=strict)
    fast(image(), shift=shift)
    program = export(fast, (image(),), {"shift": shift}, strict=strict)
    assert close(program.module()(image(), shift=shift)["y"], model(image(), shift=shift)["y"])
    assert len({id(tensor) for tensor in program.constants.values()}) == len(program.constants)


@STRICT
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_batch_alone_is_dynamic(made: Any, strict: bool) -> None:
    with pytest.raises(torch._dynamo.exc.UserError, match=r"(?s)specialized it to be a constant \(8\)"):
        export(made[1], (image(),), dynamic_shapes={"x": {2: Dim.DYNAMIC}}, strict=strict)


@STRICT
def test_exported_programs_of_loaded_and_compiled_results(made: Any, strict: bool) -> None:
    model, fast = made
    for result in (copy.deepcopy(fast), optimize(fast, release=True)):
        program = export(result, (image(),), dynamic_shapes={"x": {0: Dim.DYNAMIC}}, strict=strict)
        assert close(program.module()(image(5))["y"], model(image(5))["y"])


@STRICT
def test_exported_training_programs(strict: bool) -> None:
    model = counting().train()
    trained = transform(model, image())
    program = export(trained, (image(),), strict=strict)
    twin = copy.deepcopy(model)
    assert int(model.body[1].num_batches_tracked) == 0
    expected, found = twin(image())["y"], program.module()(image())["y"]
    assert close(found, expected)
    found.sum().backward()
    assert set(program.state_dict) >= {"body.0.weight", "body.1.running_mean", "count"}
    mutated = program.run_decompositions({}).graph_signature.buffers_to_mutate.values()
    assert {"count", "body.1.running_mean", "body.1.running_var"} <= set(mutated)


# -- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_through_its_runtime() -> None:
    model = net()
    fast = optimize(model, image(), lower="eager")
    program = torch.onnx.export(fast, (image(),), dynamo=True, dynamic_shapes={"x": {0: "batch"}}, verbose=False)
    proto = program.model_proto
    onnx.checker.check_model(proto)
    names = {weight.name for weight in proto.graph.initializer}
    assert {"fc.weight", "fc.bias"} <= names
    assert not [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].name == "x"
    for batch in (2, 5):
        x = image(batch, seed=batch)
        found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        assert close(found, model(x), 1e-4)


# -- torch.jit --------------------------------------------------------------------------------------------------------


@LEGACY
def test_traced_modules_are_saved_and_loaded(made: Any) -> None:
    model, fast = made
    traced = torch.jit.trace(fast, (image(),), strict=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert "batch_norm" not in str(loaded.inlined_graph)
    assert {"fc.weight", "fc.bias"} <= {name for name, _ in loaded.named_parameters()}
    for batch in (2, 5):
        assert close(loaded(image(batch))["y"], model(image(batch))["y"])
    before = loaded.count.clone()
    loaded(image())
    assert float(loaded.count - before) == 1


@LEGACY
def test_scripting_is_refused(made: Any) -> None:
    with pytest.raises(RewriteError, match=r"has no code that torch\.jit\.script can read; use torch\.jit\.trace"):
        torch.jit.script(made[1])
    with pytest.raises(RewriteError, match=r"use torch\.jit\.trace"):
        torch.jit.script(transform(made[0], image()))


# -- torch.fx, modes, torch.compile -----------------------------------------------------------------------------------


def test_functional_traces_and_counts(made: Any) -> None:
    model, fast = made
    traced = make_fx(fast)(image())
    assert not [node for node in traced.graph.nodes if "batch_norm" in str(node.target)]
    assert close(traced(image(seed=2))["y"], model(image(seed=2))["y"])
    with FlopCounterMode(display=False) as theirs:
        model(image())
    with FlopCounterMode(display=False) as ours:
        fast(image())
    assert 0 < ours.get_total_flops() < theirs.get_total_flops()  # the body is computed once


class Regions(nn.Module):
    """Has regions of other modes, which an exporter sees through function modes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = self.linear(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = self.linear(x)
        return fixed + low.float()


def test_calls_that_are_counted_are_captured_as_others_are() -> None:
    model, x = Regions().eval(), torch.randn(3, 4)
    fast = optimize(model, lower="eager")
    with FlopCounterMode(display=False) as counter:
        found = fast(x)
    assert close(found, model(x), 0.02)
    assert counter.get_total_flops() > 0


def test_symbolic_tracing_is_refused(made: Any) -> None:
    with pytest.raises(InputError, match=r"use result\.graph_module, which is its trace"):
        torch.fx.symbolic_trace(made[1])
    with pytest.raises(InputError, match=r"use result\.graph_module, which is its trace"):
        torch.fx.symbolic_trace(Outer(made[1]))


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * 2)["y"].relu() + 1


def test_torch_compile_runs_the_rewritten_program(made: Any) -> None:
    model, fast = made
    for compiled in (torch.compile(fast, backend="aot_eager"), torch.compile(Outer(fast), backend="aot_eager")):
        given = model if compiled._orig_mod is fast else Outer(model)
        expected, found = given(image(3)), compiled(image(3))
        assert close(found["y"], expected["y"]) if isinstance(found, dict) else close(found, expected)
    torch._dynamo.reset()
    with pytest.raises(
        torch._dynamo.exc.Unsupported, match=r"leave out fullgraph=True, or compile result\.graph_module"
    ):
        torch.compile(fast, backend="aot_eager", fullgraph=True)(image())
    with torch.no_grad():
        whole = torch.compile(fast.graph_module, backend="aot_eager", fullgraph=True)
        assert close(whole(image())["y"], model(image())["y"])


@STRICT
def test_a_result_inside_an_exported_module(made: Any, strict: bool) -> None:
    model, fast = made
    program = export(Outer(fast), (image(),), dynamic_shapes={"x": {0: Dim.DYNAMIC}}, strict=strict)
    assert close(program.module()(image(4)), Outer(model)(image(4)))


class Mapped(nn.Module):
    """Takes a dict and any number of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: dict[str, Tensor], *rest: Tensor, scale: float = 1.0, **more: Tensor) -> Tensor:
        return (self.linear(x["a"]) + sum(rest)) * scale + more["bias"]


def test_arguments_in_containers_are_exported_as_they_are() -> None:
    model, a = Mapped().eval(), torch.randn(3, 4)
    args, kwargs = ({"a": a}, a, a * 2), {"scale": 2.0, "bias": a * 3}
    fast = optimize(model, args, kwargs, lower="eager")
    for result in (fast, pickle.loads(pickle.dumps(fast))):
        assert close(export(result, args, kwargs).module()(*args, **kwargs), model(*args, **kwargs))
        with pytest.raises(torch._dynamo.exc.Unsupported, match="no arguments in containers here; pass strict=False"):
            export(result, args, kwargs, strict=True)
