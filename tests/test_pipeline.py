"""Pipelines are values: their text parses back to what was printed, and errors name the nearest thing that exists."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import string
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import passes
from rewrite import pipeline as pipeline_module
from rewrite.errors import PipelineError
from rewrite.pipeline import ChoicePass, Pass, Pipeline, Registry, rules_of, step_text
from rewrite.rule import Fidelity, Rule


@dataclass(frozen=True)
class Many(Pass):
    """One option of each kind."""

    count: int = 3
    ratio: float = 0.5
    flag: bool = False
    word: str = "plain"
    limit: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    names: tuple[str, ...] = ()
    mode: Literal["fast", "slow"] = "fast"

    def rules(self) -> tuple[Rule, ...]:
        return ()


@dataclass(frozen=True)
class Strict(Rule):
    """Checks its own option."""

    fidelity: ClassVar[Fidelity] = Fidelity.BITWISE
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} is not positive")


REGISTRY = Registry((*passes.STEPS, Many, Strict))

BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(1, 1000),
    "float": st.floats(allow_nan=False),
    "bool": st.booleans(),
    "str": st.text(),
    "int | None": st.none() | st.integers(1, 1000),
    "float | None": st.none() | st.floats(allow_nan=False),
    "tuple[int, ...]": st.lists(st.integers()).map(tuple),
    "tuple[str, ...]": st.lists(st.text(max_size=5), max_size=3).map(tuple),
    "Literal['fast', 'slow']": st.sampled_from(["fast", "slow"]),
}

# options that are checked
BY_STEP = {"split-support": {"square": st.integers(0, 9).map(lambda half: 2 * half + 1)}}


def step_strategy(step: type) -> st.SearchStrategy[Any]:
    options = {spec.name: BY_TYPE[spec.type.replace('"', "'")] for spec in dataclasses.fields(step)}
    return st.builds(step, **(options | BY_STEP.get(step.name, {})))


STEPS = st.sampled_from(sorted(REGISTRY.steps)).flatmap(lambda name: step_strategy(REGISTRY.steps[name]))


@given(st.lists(STEPS, max_size=5))
def test_every_pipeline_parses_back_from_its_text(steps):
    pipeline = Pipeline(tuple(steps))
    again = REGISTRY.parse(str(pipeline))
    assert again == pipeline
    assert str(again) == str(pipeline)


@given(st.text(alphabet=string.ascii_letters + string.digits + "_-+.,{}[]()'\"\\= ", max_size=12))
def test_texts_that_look_like_code_survive(word):
    step = Many(word=word, names=(word, word))
    assert REGISTRY.parse(str(Pipeline((step,)))).steps == (step,)


@given(st.text(alphabet=string.ascii_letters + "_-{}=,' ", max_size=30))
def test_any_text_is_a_pipeline_or_a_pipeline_error(text):
    with contextlib.suppress(PipelineError):
        assert REGISTRY.parse(text) == REGISTRY.parse(str(REGISTRY.parse(text)))


def test_only_options_that_differ_are_printed():
    assert step_text(Many()) == "many"
    assert step_text(Many(count=4, word="two words", limit=7)) == "many{count=4, word='two words', limit=7}"
    default = passes.default_pipeline()
    assert str(default) == ", ".join(step.name for step in default)
    assert default.steps[1].name == "reparameterize"


def test_whitespace_and_trailing_commas_do_not_matter():
    assert REGISTRY.parse(" many { count = 4 ,} ,\n strict,") == Pipeline((Many(count=4), Strict()))
    assert REGISTRY.parse("") == Pipeline(())


def test_whole_numbers_and_infinities_are_floats():
    assert REGISTRY.parse("many{ratio=2}").steps[0].ratio == 2.0
    assert type(REGISTRY.parse("many{ratio=2}").steps[0].ratio) is float
    assert REGISTRY.parse("many{ratio=-inf}").steps[0].ratio == -math.inf


def test_pipelines_add_up():
    assert Pipeline((Many(),)) + Strict() + Pipeline((Many(),)) == Pipeline((Many(), Strict(), Many()))


SHORT = Registry((*passes.STEPS, Strict), passes.default_pipeline())


def test_the_default_has_a_name_that_is_written_out():
    default = passes.default_pipeline()
    found = SHORT.parse("strict, default , strict{size=2}")
    assert found == Pipeline((Strict(), *default, Strict(2)))
    assert str(found) == f"strict, {default}, strict{{size=2}}"
    assert SHORT.parse(str(found)) == found
    assert passes.registry().parse("default") == default
    assert passes.registry(passes.live_pipeline()).parse("default") == passes.live_pipeline()


def test_the_name_of_the_default_is_known_where_there_is_one():
    with pytest.raises(PipelineError, match=r"no pass 'defualt'; did you mean 'default'\?"):
        SHORT.parse("defualt")
    with pytest.raises(PipelineError, match="'default' stands for several passes and has no options"):
        SHORT.parse("default{size=2}")
    with pytest.raises(PipelineError, match="there is no pass 'default'"):
        REGISTRY.parse("default")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("simplify", r"'simplify' is text; give the text itself as pipeline=, or .*parse"),
        (Many(), r"takes a tuple of passes and rules, not Many\(.*write Pipeline\(\(step,\)\)"),
        (("simplify",), r"'simplify' is neither a pass nor a rule; give pipeline=\['simplify', \.\.\.\]"),
        ((Many,), "is neither a pass nor a rule; write its name with parentheses"),
        ((3,), "3 is neither a pass nor a rule; pass instances"),
    ],
)
def test_what_is_no_step_is_refused_at_once(steps, message):
    with pytest.raises(PipelineError, match=message):
        Pipeline(steps)


def test_a_list_of_steps_becomes_a_tuple():
    assert Pipeline([Many(), Strict()]) == Pipeline((Many(), Strict()))  # type: ignore[arg-type]


def test_a_rule_stands_for_itself_as_a_step():
    assert rules_of(Strict(2)) == (Strict(2),)


ERRORS = {
    "simplfy": r"there is no pass 'simplfy'; did you mean 'simplify'\?",
    "fold_constants": r"there is no pass 'fold_constants'; did you mean 'fold-constants'\?",
    "zzz": "there is no pass 'zzz'; there are .*fold-constants.*simplify",
    "fold-constants{grwoth=2}": r"pass 'fold-constants' has no option 'grwoth'; did you mean 'growth'\?",
    "simplify{deep=True}": "pass 'simplify' has no option 'deep'; there are none",
    "many{count}": "'count' in 'many' is not an option; write option=value",
    "many{count=1, count=2}": "pass 'many' is given the option 'count' twice",
    "many{count=abc}": "option 'count' of pass 'many' is 'abc'; write a value of type int like its default 3",
    "many{count=True}": "option 'count' of pass 'many' is True",
    "many{count=2.5}": "option 'count' of pass 'many' is 2.5",
    "many{flag=1}": "option 'flag' of pass 'many' is 1",
    "many{sizes=3}": "option 'sizes' of pass 'many' is 3",
    "strict{size=0}": "pass 'strict' does not take these options: size=0 is not positive",
    "many{count=4": "is not a step",
    "many count": "'many count' is not a step; write name or name{option=value, ...}",
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_name_the_nearest_thing_that_exists(text):
    with pytest.raises(PipelineError, match=ERRORS[text]):
        REGISTRY.parse(text)


def plug_in(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr(pipeline_module, "entry_points", lambda group: points)


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, pipeline_module.ENTRY_POINTS)


def test_a_plug_in_brings_its_step(monkeypatch):
    plug_in(monkeypatch, point("mine", "plugged.in:Strict"))
    monkeypatch.setitem(sys.modules, "plugged.in", SimpleNamespace(Strict=Strict))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert passes.registry().steps["strict"] is Strict


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no.such.module:Thing", r"plug-in 'mine' \(no.such.module:Thing\) does not load: No module named 'no'"),
        ("math:no_such_name", r"plug-in 'mine' \(math:no_such_name\) does not load"),
        ("math:sqrt", r"plug-in 'mine' \(math:sqrt\) is not a Pass or Rule class"),
        ("passes.simplify:Simplify", "takes the name 'simplify', which exists; it is left out"),
    ],
)
def test_a_broken_plug_in_warns_with_its_name_and_harms_nothing(monkeypatch, value, message):
    plug_in(monkeypatch, point("mine", value))
    with pytest.warns(UserWarning, match=message):
        registry = passes.registry()
    assert registry.steps == Registry(passes.STEPS).steps


def test_no_plug_in_takes_the_name_of_the_default(monkeypatch):
    plug_in(monkeypatch, point("mine", "plugged.in:Named"))
    monkeypatch.setitem(sys.modules, "plugged.in", SimpleNamespace(Named=type("Named", (Strict,), {"name": "default"})))
    with pytest.warns(UserWarning, match="takes the name 'default', which exists; it is left out"):
        registry = passes.registry()
    assert registry.parse("default") == passes.default_pipeline()


def test_the_default_pipeline_is_exact_element_by_element():
    allowed = {Fidelity.BITWISE, Fidelity.ELEMENTWISE}
    default = passes.default_pipeline()
    assert all(type(step) in passes.STEPS for step in default)
    made = [step for step in default if not isinstance(step, ChoicePass)]  # what is chosen may be NORMWISE
    assert {rule.fidelity for step in made for rule in rules_of(step)} <= allowed
