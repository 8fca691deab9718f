"""Keys: equal for what a program cannot tell apart, different for anything else, and none in doubt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import passes
from rewrite.cache.fingerprint import DoubtError, Fingerprint
from rewrite.cache.keys import key_of
from rewrite.listener import Listener
from rewrite.pipeline import Pipeline
from rewrite.recipe import Recipe
from rewrite.trace import bound
from tests.cache import nets
from tests.cache.nets import small

RECIPE = Recipe(passes.default_pipeline())


def digest(model: nn.Module | None = None, *args: Any, recipe: Recipe = RECIPE, **kwargs: Any) -> str:
    return key_of(model or small(), recipe, args or (torch.zeros(2, 3, 6, 6),), kwargs).digest


def test_weights_and_inputs_may_have_other_values() -> None:
    assert digest(small(0)) == digest(small(1), torch.randn(2, 3, 6, 6)) == digest(copy.deepcopy(small(2)))
    model = small()
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert digest(model) == digest(), "gradients are no part of it"


def edited(change: Callable[[Any], Any]) -> nn.Module:
    model = small()
    change(model)
    return model


def tie(model: Any) -> None:
    model.norm.bias = model.conv.bias


def share(model: Any) -> None:
    joint = torch.zeros(8)
    model.norm.running_mean, model.norm.running_var = joint[:4], joint[4:]


def share_all(model: Any) -> None:
    joint = torch.zeros(4)
    model.norm.running_mean, model.norm.running_var = joint, joint[:]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a number": lambda m: setattr(m, "eps", 0.25),
    "the type of a number": lambda m: setattr(m, "eps", True),
    "an attribute more": lambda m: setattr(m, "more", None),
    "inside a list": lambda m: m.names.append("c"),
    "inside a tuple": lambda m: m.names.__setitem__(1, ("b", 3)),
    "an enumeration": lambda m: setattr(m, "kind", nets.Kind.B),
    "inside a dataclass": lambda m: setattr(m.options, "gain", 2.0),
    "a function": lambda m: setattr(m, "act", nn.functional.relu),
    "inside a partial": lambda m: setattr(m, "layer", nets.functools.partial(nn.LayerNorm, eps=1e-5)),
    "of a part": lambda m: setattr(m.norm, "eps", 1e-3),
    "a part": lambda m: setattr(m, "norm", nn.InstanceNorm2d(4).eval()),
    "a part more": lambda m: m.add_module("more", nn.Identity().eval()),
    "a part shared": lambda m: m.add_module("more", m.conv),
    "the mode of a part": lambda m: m.head.train(),
    "a shape": lambda m: setattr(m, "offset", torch.zeros(1)),
    "dtypes": lambda m: m.double(),
    "strides": lambda m: m.to(memory_format=torch.channels_last),
    "gradients": lambda m: m.conv.weight.requires_grad_(False),
    "a parameter for a buffer": lambda m: m.norm.register_buffer("bias2", torch.zeros(4)),
    "ties": tie,
    "shared memory": share,
    "one memory": share_all,
    "values of a tensor that is no weight": lambda m: m.offset.add_(1),
    "a function that no import gives": lambda m: setattr(m, "act", lambda x: x + 1),
    "a bound method": lambda m: setattr(m, "act", m.features),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_model(name: str) -> None:
    assert digest(edited(CHANGES[name])) != digest()
    assert digest(edited(CHANGES[name])) == digest(edited(CHANGES[name]))


def test_which_of_them_is_shared() -> None:
    def shared(*parts: str) -> nn.Module:
        model: Any = small()
        model.one, model.two = (getattr(model, part).bias for part in parts)
        return model  # type: ignore[no-any-return]

    assert digest(shared("conv", "norm")) != digest(shared("norm", "conv"))


def test_where_its_source_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = digest()
    copied = tmp_path / "nets.py"
    copied.write_bytes(Path(nets.__file__).read_bytes())
    monkeypatch.setattr(nets, "__file__", str(copied))
    assert digest() != before


def test_the_class() -> None:
    assert digest(small(kind=nets.Other)) != digest()


EXAMPLES: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((torch.zeros(3, 3, 6, 6),), {}),
    ((torch.zeros(2, 3, 6, 7),), {}),
    ((torch.zeros(2, 3, 6, 6).double(),), {}),
    ((torch.zeros(2, 3, 6, 6).to(memory_format=torch.channels_last),), {}),
    ((torch.zeros(2, 3, 6, 6, requires_grad=True),), {}),
    ((torch.zeros(2, 3, 6, 6), 1.0), {}),
    ((torch.zeros(2, 3, 6, 6), 2.0), {}),
    ((torch.zeros(2, 3, 6, 6), 1), {}),
    ((torch.zeros(2, 3, 6, 6),), {"scale": 1.0}),
    ((torch.zeros(2, 3, 6, 6),), {"shift": torch.zeros(4)}),
    (((torch.zeros(2, 3, 6, 6),),), {}),
]


def test_the_example() -> None:
    keys = [digest(), *(digest(None, *args, **kwargs) for args, kwargs in EXAMPLES)]
    assert len(set(keys)) == len(keys)


def test_an_input_that_is_given_twice_or_is_a_weight() -> None:
    model, x = small(), torch.zeros(4)
    assert digest(model, x, x) != digest(model, x, torch.zeros(4))
    assert digest(model, model.offset) != digest(model, x)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(Pipeline(RECIPE.pipeline.steps[:2])),
        Recipe(passes.registry().parse("simplify, reparameterize{max_kernel=3}, simplify, fold-constants")),
        Recipe(RECIPE.pipeline, exclude=("norm",)),
        Recipe(RECIPE.pipeline, verify="thorough"),
        Recipe(RECIPE.pipeline, verify="off"),
        Recipe(RECIPE.pipeline, fuel=3),
        Recipe(RECIPE.pipeline, numerics="elementwise"),
        Recipe(Pipeline((nets.Maximum(),))),
    ],
    ids=["steps", "option", "exclude", "thorough", "off", "fuel", "numerics", "rule"],
)
def test_the_recipe(recipe: Recipe) -> None:
    assert digest(recipe=recipe) != digest()


def test_the_method() -> None:
    model = small()
    keys = {digest(bound(model, method)) for method in (None, "features")}
    assert len(keys) == 2
    assert digest(bound(model, "forward")) == digest(model)


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("tests.cache.nets.Small", "forward", lambda self, x: x + 1),
        ("tests.cache.nets.Small", "helper", lambda self: 3),
        ("tests.cache.nets.Small", "power", 3),
        ("tests.cache.nets", "leak", lambda x, slope=None: x + 1),
        ("tests.cache.nets", "SLOPE", 0.5),
        ("rewrite.cache.keys", "FORMAT", 0),
    ],
)
def test_code_that_was_replaced(monkeypatch: pytest.MonkeyPatch, place: str, name: str, value: Any) -> None:
    model, before = small(), digest()
    monkeypatch.setattr(f"{place}.{name}", value, raising=False)
    if name == "leak":
        model.act = value
    assert _digest_or_doubt(model) != before


@pytest.mark.parametrize("value", [{"power": 3}, {"power": 2.0}])
def test_a_table_that_was_replaced(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """Only the method that reads it depends on it."""
    model, other = small(), bound(small(), "features")
    before = digest(model), digest(other)
    monkeypatch.setattr(nets, "TABLE", value)
    assert digest(model) == before[0]
    assert digest(other) != before[1]


def write_layer() -> None:
    with torch.no_grad():
        nets.LAYER.weight.add_(1)


@pytest.mark.parametrize(
    "change",
    [
        lambda: nets.WEIGHTS.add_(1),
        lambda: nets.ARRAY.__iadd__(1),
        lambda: nets.CONFIG.depth["a"].append(2),
        lambda: setattr(nets.CONFIG, "more", 1),
        write_layer,
        lambda: nets.HALF.keywords.update(by=0.25),
        lambda: setattr(nets.cached.__wrapped__, "__defaults__", (3,)),
    ],
    ids=["tensor", "array", "list", "attribute", "layer", "partial", "function"],
)
def test_globals_that_were_written(change: Callable[[], Any]) -> None:
    model = bound(small(), "configure")
    before = digest(model)
    assert digest(model) == before
    change()
    assert digest(model) != before


def _digest_or_doubt(model: nn.Module) -> str:
    try:
        return digest(model)
    except DoubtError as doubt:
        return str(doubt)


def test_the_code_of_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(Pipeline((nets.Maximum(),)))
    before = digest(recipe=recipe)
    monkeypatch.setattr(nets.Maximum, "rewrite", lambda self, match, g: match.x)
    assert digest(recipe=recipe) != before


def test_versions_and_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest()
    monkeypatch.setattr("rewrite.cache.keys.versions", lambda: {"torch": "2.99"})
    assert digest() != before
    monkeypatch.undo()
    model = small()
    torch.set_default_dtype(torch.float64)
    try:
        assert digest(model, torch.zeros(2, 3, 6, 6, dtype=torch.float32)) != before
    finally:
        torch.set_default_dtype(torch.float32)
    assert digest() == before


# -- doubt ------------------------------------------------------------------------------------------------------------


class Held(nn.Module):
    __slots__ = ("held",)

    def __init__(self) -> None:
        super().__init__()
        self.held = iter([])


class Wrapped(Tensor):
    pass


def weird(model: Any, value: Any) -> nn.Module:
    model.more = value
    return model


DOUBTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "hook": (lambda: edited(lambda m: m.head.register_forward_hook(lambda *_: None)), "Small.head has hooks"),
    "pre-hook": (lambda: edited(lambda m: m.register_forward_pre_hook(lambda *_: None)), "Small has hooks"),
    "forward": (lambda: edited(lambda m: setattr(m.head, "forward", m.head.forward)), "Small.head has a forward"),
    "object": (lambda: weird(small(), iter([])), r"Small.more is a builtins.list_iterator"),
    "module with slots": (lambda: weird(small(), Held()), "Small.more.held is a builtins.list_iterator"),
    "generator": (lambda: weird(small(), torch.Generator()), "Generator"),
    "subclass": (lambda: weird(small(), torch.ones(2).as_subclass(Wrapped)), "no plain tensor"),
    "sparse": (lambda: weird(small(), torch.eye(2).to_sparse()), "no plain tensor"),
    "set of objects": (lambda: weird(small(), {nets.CONFIG}), "Small.more is a builtins.set"),
}


@pytest.mark.parametrize("name", DOUBTS)
def test_what_no_key_can_hold(name: str) -> None:
    make, words = DOUBTS[name]
    with pytest.raises(DoubtError, match=words):
        digest(make())


def test_classes_that_a_function_made() -> None:
    def made(factor: float) -> type[nn.Module]:
        class Inner(nets.Small):
            def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
                return factor * self.conv(x)

        return Inner

    first, again, other = (digest(small(kind=made(factor))) for factor in (2.0, 2.0, 3.0))
    assert first == again
    assert first != other


def test_which_of_two_classes_of_one_name() -> None:
    def made(factor: float) -> Any:
        return type("Inner", (nets.Small,), {"forward": lambda self, x: factor * self.conv(x)})

    def acting(factor: float) -> Any:
        return lambda x: factor * x

    def key(order: tuple[int, ...], make: Callable[[float], Any], part: Callable[[Any], Any]) -> str:
        kinds = [make(2.0), make(3.0)]
        return digest(weird(small(), [part(kinds[i]) for i in order]))

    orders = [(0, 1, 0), (0, 1, 1), (1, 0, 0)]
    for make, part in ((made, lambda kind: kind().eval()), (made, lambda kind: kind), (acting, lambda act: act)):
        assert len({key(order, make, part) for order in orders}) == len(orders)


def test_a_module_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(nets, "__file__")
    with pytest.raises(DoubtError, match=r"'tests\.cache\.nets' has no source file"):
        digest()


def test_what_is_at_work_around_the_call() -> None:
    with pytest.raises(DoubtError, match="listeners"):
        digest(recipe=Recipe(RECIPE.pipeline, listeners=(Listener(),)))
    with torch.device("cpu"), pytest.raises(DoubtError, match="a mode of torch"):
        digest(small())
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(DoubtError, match="hooks for all modules"):
            digest()
    finally:
        handle.remove()


def test_a_list_that_holds_itself() -> None:
    def looped() -> list[Any]:
        found: list[Any] = [1]
        found.append(found)
        return found

    assert digest(weird(small(), looped())) == digest(weird(small(), looped()))


def test_pieces_of_text_do_not_run_together() -> None:
    first, second = Fingerprint(), Fingerprint()
    first.text("ab", "c")
    second.text("a", "bc")
    assert first.hexdigest() != second.hexdigest()
