"""``torch-rewrite passes``: every step that a pipeline can name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

import passes
from rewrite.pipeline import Step, default_of, rules_of
from rewrite.report.text import narrowed, wrapped
from rewrite.rule import Rule

if TYPE_CHECKING:
    from rewrite.cli.terminal import Terminal


@dataclass(frozen=True)
class Entry:
    """A step, or a rule of one.

    Attributes:
        name: in pipelines and reports.
        kind: ``"pass"`` or ``"rule"``.
        source: the qualified name of the class.
        fidelity: how equal its results are; of a pass those of its rules, each once.
        choice: whether it is made only where it is named, because it is not better everywhere.
        options: the defaults by name, as text; None for an option that has to be given.
        summary: what it does, the first line of its docstring.
        rules: the rules of a pass.
    """

    name: str
    kind: str
    source: str
    fidelity: tuple[str, ...]
    choice: bool
    options: dict[str, str | None]
    summary: str
    rules: tuple[Entry, ...] = ()


def run(terminal: Terminal, *, data: bool) -> None:
    """Print every registered step with its options, and the default pipeline."""
    found = [_entry(step) for step in passes.registry().steps.values()]
    default = str(passes.default_pipeline())
    if data:
        terminal.put_data({"default": default, "steps": [dataclasses.asdict(entry) for entry in found]})
        return
    terminal.put_table(_table(found))
    with narrowed(terminal.columns):
        for line in wrapped("default pipeline  ", default):
            terminal.put(line)


def _entry(step: type[Step]) -> Entry:
    source = f"{step.__module__}.{step.__qualname__}"
    if issubclass(step, Rule):
        return Entry(step.name, "rule", source, (step.fidelity.value,), step.choice, _options(step), _summary(step))
    rules = tuple(_entry(type(rule)) for rule in _rules(step))
    fidelity = dict.fromkeys(value for rule in rules for value in rule.fidelity)
    choice = bool(rules) and all(rule.choice for rule in rules)
    return Entry(step.name, "pass", source, tuple(fidelity), choice, _options(step), _summary(step), rules)


def _rules(step: type[Step]) -> tuple[Rule, ...]:
    try:
        return rules_of(step())
    except Exception:  # an option has to be given, or a plug-in fails, which must not hide the others
        return ()


def _options(step: type[Step]) -> dict[str, str | None]:
    defaults = {spec.name: default_of(spec) for spec in dataclasses.fields(step) if spec.init}
    return {name: None if value is dataclasses.MISSING else repr(value) for name, value in defaults.items()}


def _summary(step: type[Step]) -> str:
    """The first line of a class's own docstring; dataclasses without one have a signature in its place."""
    text = (step.__dict__.get("__doc__") or "").strip()
    return "" if text.startswith(f"{step.__name__}(") else text.partition("\n")[0].replace("``", "`")


def _table(entries: list[Entry]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("step", no_wrap=True)
    table.add_column("fidelity")
    table.add_column("what it does, and its options", ratio=1)
    shown: set[str] = set()
    for entry in entries:
        table.add_row(Text(entry.name, "bold"), "\n".join(entry.fidelity), _about(entry, shown))
        for rule in entry.rules:
            table.add_row(f"  {rule.name}", "\n".join(rule.fidelity), _about(rule, shown))
    return table


def _about(entry: Entry, shown: set[str]) -> Text:
    """What a row says of a step, once for each; also where it comes from, if from elsewhere."""
    if entry.source in shown:
        return Text("as above", "dim")
    shown.add(entry.source)
    own = entry.source.startswith(f"{passes.__name__}.")
    options = ", ".join(f"{name}={value or '(required)'}" for name, value in entry.options.items())
    choice = "a choice: made only where it is named" if entry.choice else ""
    lines = Text(entry.summary), Text(choice), Text(options, "cyan"), Text("" if own else f"from {entry.source}", "dim")
    return Text("\n").join(filter(None, lines))
