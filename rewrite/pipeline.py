"""Pipelines as values: ``"simplify, reparameterize{max_kernel=31}"`` parses to frozen dataclasses and prints back.

A step is a :class:`Pass` (a named group of rules that run together to a fixed point) or a single rule. Options are the
dataclass fields of the step; only those that differ from their defaults are printed.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import warnings
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from rewrite.errors import PipelineError
from rewrite.names import nearest
from rewrite.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

ENTRY_POINTS = "torch_rewrite.passes"


@dataclass(frozen=True)
class Pass:
    """A named group of rules that run together until none of them matches. Subclasses are frozen dataclasses."""

    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    def rules(self) -> tuple[Rule, ...]:
        """The rules, with this pass's options."""
        raise NotImplementedError


@dataclass(frozen=True)
class ChoicePass(Pass):
    """A pass whose rules offer alternatives to single operators; a :class:`~rewrite.select.Selection` decides.

    Without one nothing is made.
    """


Step = Pass | Rule


def rules_of(step: Step) -> tuple[Rule, ...]:
    """The rules of a step; a rule stands for itself."""
    return (step,) if isinstance(step, Rule) else step.rules()


def known_names() -> set[str]:
    """The names of every pass and rule whose class is defined so far, whether a pipeline has them or not."""
    found: set[type[Step]] = set()
    classes: list[type[Step]] = [Pass, Rule]
    while classes:
        below = classes.pop().__subclasses__()
        classes += [step for step in below if step not in found]
        found.update(below)
    return {step.name for step in found if step.name}


def step_text(step: Step) -> str:
    """A step as pipelines write it: ``name{option=value, ...}``."""
    options = [
        f"{spec.name}={_value_text(getattr(step, spec.name))}"
        for spec in dataclasses.fields(step)
        if spec.init and getattr(step, spec.name) != default_of(spec)
    ]
    return f"{step.name}{{{', '.join(options)}}}" if options else step.name


def default_of(spec: dataclasses.Field[Any]) -> Any:
    """The default of an option, ``dataclasses.MISSING`` where it has none."""
    return spec.default_factory() if spec.default_factory is not dataclasses.MISSING else spec.default


def _value_text(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w-]*", value) and parse_value(value) == value:
        return value
    return repr(value)


@dataclass(frozen=True)
class Pipeline:
    """Steps in order. ``str(pipeline)`` parses back to an equal pipeline.

    Raises:
        PipelineError: something else than passes and rules.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        given: object = self.steps
        if isinstance(given, str):
            raise PipelineError(
                f"Pipeline takes passes and rules, and {given!r} is text; give the text itself as pipeline=, or parse "
                "it with passes.registry().parse(text)"
            )
        if not isinstance(given, (tuple, list)):
            raise PipelineError(f"Pipeline takes a tuple of passes and rules, not {given!r}; write Pipeline((step,))")
        for step in given:
            if not isinstance(step, (Pass, Rule)):
                raise PipelineError(f"{step!r} is neither a pass nor a rule{_instead(step)}")
        object.__setattr__(self, "steps", tuple(given))

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __str__(self) -> str:
        return ", ".join(step_text(step) for step in self.steps)

    def __add__(self, other: Pipeline | Step) -> Pipeline:
        more = other.steps if isinstance(other, Pipeline) else (other,)
        return Pipeline(self.steps + more)


def _instead(step: Any) -> str:
    """What to write in the place of something that is no step."""
    if isinstance(step, type):
        return "; write its name with parentheses, for an instance"
    if isinstance(step, str):
        return f"; give pipeline=[{step!r}, ...], where texts are parsed, or passes.registry().parse({step!r}).steps"
    return "; pass instances"


DEFAULT = "default"


class Registry:
    """Names of steps. A registry is a value; nothing registers globally.

    Args:
        steps: classes of steps, which have names.
        default: what the name ``default`` stands for in texts: its steps, written out. None for nothing.
    """

    def __init__(self, steps: Iterable[type[Step]], default: Pipeline | None = None):
        self.steps: Mapping[str, type[Step]] = {step.name: step for step in steps}
        self.default = default

    def with_plugins(self) -> Registry:
        """This registry and the steps of other distributions (entry points in the group ``torch_rewrite.passes``).

        A plug-in that fails to load, or takes a name that exists, is left out with a warning that names it.
        """
        steps = dict(self.steps)
        for point in entry_points(group=ENTRY_POINTS):
            try:
                step = point.load()
            except Exception as error:  # a broken plug-in must not break the user
                warnings.warn(f"plug-in '{point.name}' ({point.value}) does not load: {error}", stacklevel=2)
                continue
            if not (isinstance(step, type) and issubclass(step, (Pass, Rule))):
                warnings.warn(f"plug-in '{point.name}' ({point.value}) is not a Pass or Rule class", stacklevel=2)
            elif step.name in steps or step.name == DEFAULT:
                warnings.warn(f"plug-in '{point.name}' ({point.value}) takes the name '{step.name}', which exists; "
                              f"it is left out", stacklevel=2)  # fmt: skip
            else:
                steps[step.name] = step
        return Registry(steps.values(), self.default)

    def parse(self, text: str) -> Pipeline:
        """A pipeline from its text.

        Raises:
            PipelineError: an unknown name or option (with the nearest one), or a malformed text.
        """
        return Pipeline(tuple(step for part in _split(text) for step in self._steps(part)))

    def _steps(self, text: str) -> tuple[Step, ...]:
        if self.default is None or not re.match(rf"\s*{DEFAULT}\s*(\{{|$)", text):
            return (self._step(text),)
        if text.strip() != DEFAULT:
            raise PipelineError(f"'{DEFAULT}' stands for several passes and has no options; name the pass that has")
        return self.default.steps

    def _step(self, text: str) -> Step:
        found = re.fullmatch(r"([\w-]+)\s*(?:\{(.*)\})?", text.strip(), re.DOTALL)
        if found is None:
            raise PipelineError(f"'{text.strip()}' is not a step; write name or name{{option=value, ...}}")
        name, options = found[1], found[2]
        step = self.steps.get(name)
        if step is None:
            raise PipelineError(f"there is no pass '{name}'{nearest(name, self._names())}")
        known = {spec.name: spec for spec in dataclasses.fields(step) if spec.init}
        values: dict[str, Any] = {}
        for part in _split(options or ""):
            key, equals, value = part.partition("=")
            key = key.strip()
            if not equals:
                raise PipelineError(f"'{part.strip()}' in '{name}' is not an option; write option=value")
            if key not in known:
                raise PipelineError(f"pass '{name}' has no option '{key}'{nearest(key, known)}")
            if key in values:
                raise PipelineError(f"pass '{name}' is given the option '{key}' twice; keep one of the two")
            values[key] = _typed(name, known[key], parse_value(value.strip()))
        try:
            return step(**values)
        except (TypeError, ValueError) as error:
            raise PipelineError(f"pass '{name}' does not take these options: {error}") from error

    def _names(self) -> tuple[str, ...]:
        return (*self.steps, *(() if self.default is None else (DEFAULT,)))


def parse_value(text: str) -> Any:
    """The value of an option as users write it: a Python literal, an infinity, or text."""
    if text in ("inf", "-inf"):
        return float(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _typed(step: str, spec: dataclasses.Field[Any], value: Any) -> Any:
    """The value of an option, which has to be of a type that its annotation names; a whole number is a float too."""
    default = default_of(spec)
    named = re.findall(r"\w+", re.sub(r"\[[^][]*\]", "", spec.type if isinstance(spec.type, str) else str(spec.type)))
    if type(value) is type(default) or type(value).__name__.removesuffix("Type") in named:
        return value
    if type(value) is int and type(default) is float:
        return float(value)
    like = "" if default is dataclasses.MISSING else f" like its default {default!r}"
    raise PipelineError(f"option '{spec.name}' of pass '{step}' is {value!r}; write a value of type {spec.type}{like}")


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts, depth, start = [], 0, 0
    for token in re.finditer(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[][{}(),]""", text):
        char = token[0]
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            parts.append(text[start : token.start()])
            start = token.end()
    parts.append(text[start:])
    return [part for part in parts if part.strip()]
