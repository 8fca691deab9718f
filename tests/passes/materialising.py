"""What the tests of materialised weights share: weight code is folded to the bit, and follows the model's weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rewrite import compat, optimize
from rewrite.result import OptimizedModule
from tests.programs import same_bits

Make = Callable[[], nn.Module]

# moves values about, and computes none
_MOVES = frozenset(
    ("view", "reshape", "permute", "transpose", "slice", "select", "unsqueeze", "squeeze", "expand", "clone", "getitem",
     "split", "unbind", "sym_size")
)  # fmt: skip


def seeded(make: Make, seed: int, *inputs: Any) -> nn.Module:
    """A model with weights of this seed in evaluation mode, called once if inputs are given."""
    torch.manual_seed(seed)
    model = make().eval()
    if inputs:
        run(model, *inputs)
    return model


def run(model: nn.Module, *inputs: Any) -> list[Any]:
    """The flat outputs."""
    with torch.no_grad():
        return compat.tree_flatten(model(*inputs))[0]


def fold(model: nn.Module, *inputs: Any, pipeline: str = "fold-constants") -> OptimizedModule:
    """The model with nothing but its weight code folded, which leaves the rounding of all the rest as it is."""
    return optimize(model, *inputs, pipeline=pipeline, lower="eager")


def operators(fast: OptimizedModule) -> list[str]:
    """The operators that are left, by name, without those that only move values."""
    nodes = [node for node in fast.graph_module.graph.nodes if node.op == "call_function"]
    names = [getattr(node.target, "_opname", getattr(node.target, "__name__", "")) for node in nodes]
    return [name for name in names if name not in _MOVES]


def assert_same(fast: nn.Module, model: nn.Module, *inputs: Any) -> list[Any]:
    """Both give the same bits; the outputs.

    A linear layer over strided values goes by another product of matrices, and rounds otherwise, where it is trained.
    """
    found, trained = run(fast, *inputs), [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        expected = run(model, *inputs)
    finally:
        for parameter in trained:
            parameter.requires_grad_()
    assert same_bits(found, expected)
    return expected


def assert_folds(make: Make, *inputs: Any, left: list[str], warm: bool = False) -> OptimizedModule:
    """All weight code disappears, for three seeds, without the model being changed, or captured again.

    Args:
        make: makes the model.
        inputs: of a call.
        left: the operators that depend on the input, in order.
        warm: whether the model has to be called before.
    """
    given = inputs if warm else ()
    model = seeded(make, 0, *given)
    before, attributes = copy.deepcopy(model.state_dict()), _plain(model)
    fast = fold(model, *inputs)
    assert same_bits([*model.state_dict().values()], [*before.values()])
    assert _plain(model) == attributes
    assert operators(fast) == left
    report = fast.report
    seen = [assert_same(fast, model, *inputs)]
    for seed in (1, 2):
        model.load_state_dict(seeded(make, seed, *given).state_dict())
        seen.append(assert_same(fast, model, *inputs))
    assert not same_bits(seen[0], seen[1])
    assert not same_bits(seen[1], seen[2])
    assert fast.report is report, "the model was captured again"
    return fast


def assert_follows(make: Make, *inputs: Any, warm: bool = False) -> None:
    """Folded weights follow optimizer steps and writes in place; copies keep their own; the default pipeline holds."""
    model = seeded(make, 0, *(inputs if warm else ()))
    fast = fold(model, *inputs)
    report, first = fast.report, assert_same(fast, model, *inputs)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.SGD(model.parameters(), lr=0.01), torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    ]  # fmt: skip
    for optimizer in optimizers:
        sum(_loss(leaf) for leaf in compat.tree_flatten(model(*inputs))[0]).backward()
        optimizer.step()
        optimizer.zero_grad()
        second = assert_same(fast, model, *inputs)
        assert not same_bits(first, second)
        first = second
    kept = [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    assert not same_bits(first, assert_same(fast, model, *inputs))
    assert fast.report is report, "the model was captured again"
    for each in kept:
        assert same_bits(run(each, *inputs), first)
    assert_holds(model, *inputs)


def assert_holds(model: nn.Module, *inputs: Any) -> OptimizedModule:
    """The default pipeline gives what the model gives, up to rounding, and nothing is rejected."""
    fast = optimize(model, *inputs, lower="eager")
    assert not any(record.rejections for record in fast.report.records)
    for a, b in zip(run(fast, *inputs), run(model, *inputs), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-4 * max(1.0, b.abs().max())
    return fast


def _loss(leaf: Any) -> Tensor:
    return leaf.abs().square().sum()


def _plain(model: nn.Module) -> dict[str, Any]:
    """The plain attributes of all modules."""
    kinds = (bool, int, float, str, tuple, type(None))
    return {
        f"{path}.{key}": value
        for path, module in model.named_modules()
        for key, value in module.__dict__.items()
        if isinstance(value, kinds)
    }
