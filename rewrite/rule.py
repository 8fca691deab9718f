"""Rules, and what they find: matches, and misses with their reasons.

A rule is a frozen dataclass; its fields are its options. The declarative way to find matches is a
:mod:`rewrite.pattern`; rules over trees, siblings and chains write :meth:`Rule.find` themselves. Either way a match
passes the same checks.
"""

from __future__ import annotations

import enum
import operator
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rewrite.errors import RuleError
from rewrite.graph import is_pure, is_random
from rewrite.provenance import called, describe, module_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch.fx import Node

    from rewrite.crossover import Crossover
    from rewrite.fragment import Builder
    from rewrite.graph import Graph
    from rewrite.ops import View
    from rewrite.pattern import Pattern


class Fidelity(enum.Enum):
    """How equal a rewrite is to what it replaces."""

    BITWISE = "bitwise"
    """The same bits."""
    ELEMENTWISE = "elementwise"
    """Equal in real arithmetic; the rounding error of each element is bounded by that element's own terms."""
    NORMWISE = "normwise"
    """Equal in real arithmetic; rounding errors and non-finite values spread over the tensor, as in an FFT."""
    APPROXIMATE = "approximate"
    """Another value within a declared budget. Never runs unless named."""
    STRUCTURAL = "structural"
    """Another function, to be trained. Never runs unless named."""

    @property
    def exact(self) -> bool:
        """Whether the result is equal in real arithmetic."""
        return self not in (Fidelity.APPROXIMATE, Fidelity.STRUCTURAL)


@dataclass(frozen=True)
class Refusal:
    """Why a rule does not apply to what it found.

    Attributes:
        reason: one sentence without the culprit's name: "the norm uses batch statistics".
        culprit: the node that is in the way.
        remedy: the smallest change that would make it match, in the user's terms: "call eval() on 'norm'".
    """

    reason: str
    culprit: Node | None = None
    remedy: str = ""

    def __str__(self) -> str:
        where = f": {describe(self.culprit)}" if self.culprit is not None else ""
        return f"{self.reason}{where}" + (f" ({self.remedy})" if self.remedy else "")


@dataclass(frozen=True)
class Miss:
    """A place where a rule began to match and did not.

    Attributes:
        rule: the rule's name.
        anchor: the node that the rule looked at.
        refusal: why not.
        matched: the nodes that had matched by then, in graph order whatever order they are given in.
    """

    rule: str
    anchor: Node
    refusal: Refusal
    matched: tuple[Node, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "matched", tuple(sorted(set(self.matched))))

    def __str__(self) -> str:
        return f"{self.rule} at {describe(self.anchor)}: {self.refusal}"


@dataclass(frozen=True, eq=False)
class Match:
    """A set of nodes that a rule would replace.

    Attributes:
        rule: the rule.
        nodes: the nodes to replace, in graph order.
        outputs: those of them whose values others read, in the order in which ``rewrite`` returns their replacements.
        captures: what the rule wants to remember, by name; also readable as attributes.
        inputs: the boundary: nodes outside that the match reads, each once, in order of first use.
    """

    rule: Rule
    nodes: tuple[Node, ...]
    outputs: tuple[Node, ...]
    captures: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Node, ...] = field(init=False)

    def __post_init__(self) -> None:
        inside = set(self.nodes)
        boundary = dict.fromkeys(arg for node in self.nodes for arg in node.all_input_nodes if arg not in inside)
        object.__setattr__(self, "inputs", tuple(boundary))

    def __getattr__(self, name: str) -> Any:
        try:
            return self.captures[name]
        except KeyError:
            raise AttributeError(f"the match of '{self.rule.name}' has no capture '{name}'") from None

    @property
    def anchor(self) -> Node:
        """The node that reports name: the last output."""
        return self.outputs[-1]


@dataclass(frozen=True)
class Rule:
    """One rewrite. Subclasses are frozen dataclasses and declare ``fidelity``.

    Class attributes:
        name: in pipelines and reports; the class name in kebab case unless given.
        fidelity: how equal the result is.
        pattern: what to find, for rules that do not write ``find``.
        radius: how many users beyond a change are looked at again.
        choice: neither side is better everywhere, as of a product with a matrix and a 1x1 convolution: made only where
            a pipeline names the rule, otherwise offered as an alternative; see :mod:`rewrite.offering`.
        reads_values: the replacement holds for the present values of weights only: it is verified with these, and the
            model is rewritten anew when they change.
        rounds_weights: the weights of the replacement are equal to the model's up to a few roundings in their dtype, as
            a kernel of rank one is in float32 only; verification in float64 allows for that.
        caution: what a user should know where the rule has rewritten something, a sentence; the report says it.
        starts: what a match begins at, for people: "a batch norm behind a layer"; by default the pattern says it.
        keeps: the kinds of operators that a rewrite leaves in place, for estimates of what it gains; None where it
            leaves one, the costliest.
    """

    name: ClassVar[str] = ""
    fidelity: ClassVar[Fidelity]
    pattern: ClassVar[Pattern | None] = None
    radius: ClassVar[int] = 4
    choice: ClassVar[bool] = False
    reads_values: ClassVar[bool] = False
    rounds_weights: ClassVar[bool] = False
    caution: ClassVar[str] = ""
    starts: ClassVar[str] = ""
    keeps: ClassVar[tuple[type[View], ...] | None] = None

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()
        if not abstract and not isinstance(getattr(cls, "fidelity", None), Fidelity):
            raise RuleError(
                f"rule '{cls.name}' declares no fidelity; add for instance `fidelity = Fidelity.ELEMENTWISE` to "
                f"{cls.__name__}"
            )

    def find(self, graph: Graph, dirty: Iterable[Node]) -> Iterator[Match | Miss]:
        """Matches and misses anchored at the given nodes. The default follows ``pattern``."""
        if self.pattern is None:
            raise RuleError(f"rule '{self.name}' has neither a pattern nor a find method")
        for node in dirty:
            found = self.pattern.search(self, graph, node)
            if found is not None:
                yield found

    def at(self, node: Node, refusal: Refusal | None, **captures: Any) -> Match | Miss:
        """For ``find``: the match of one operator with these captures, or the miss where something is refused."""
        if refusal is not None:
            return Miss(self.name, node, refusal, (node,))
        return Match(self, (node,), (node,), captures)

    def check(self, match: Match) -> Refusal | None:
        """Why the rule does not apply to a match, or None where it does."""
        return None

    def rewrite(self, match: Match, g: Builder) -> Node | Sequence[Node]:
        """Build the replacement with ``g`` and return one node for each of the match's outputs."""
        raise NotImplementedError

    def crossovers(self, match: Match) -> Sequence[Crossover]:
        """From which sizes on the replacement takes fewer operations, where that depends on one: offers tell it."""
        return ()


def admit(graph: Graph, match: Match) -> Refusal | None:
    """What every match must satisfy, whatever rule found it: pure, closed and convex."""
    inside, outputs = set(match.nodes), set(match.outputs)
    for node in match.nodes:
        if not is_pure(node) or node.op != "call_function":
            return _impure(node)
        if node not in outputs:
            reader = next((user for user in node.users if user not in inside), None)
            if reader is not None:
                return read_elsewhere(node, reader, match.anchor)
    if len(outputs) > 1:
        return _convex(inside, outputs)
    return None


def _impure(node: Node) -> Refusal:
    remedy = f"keep {called(node)} out of what is to be rewritten"
    if is_random(node):
        path = module_path(node)
        remedy = f"call eval() on '{path}', or {remedy}" if path else remedy
    return Refusal("has an effect or draws random numbers, so it is never rewritten", node, remedy)


def read_elsewhere(node: Node, reader: Node, result: Node | None = None) -> Refusal:
    """The refusal of a match whose inner value ``node`` has a ``reader`` outside, which may read ``result`` instead.

    A reader that the result is computed from cannot, and to read the result of plain arithmetic would be another
    function. Without weights there is nothing else for it to read. Nor is anything said where words do not tell the
    reader from the result, as for an operator that writes in place.
    """
    source: Any = node.args[0] if node.target is operator.getitem else node
    operands = source.all_input_nodes
    has_weights = len(operands) > 1 and any(operand.op == "get_attr" for operand in operands)
    reason = f"{called(node)} is also read elsewhere"
    if called(reader) in (called(node), *([] if result is None else [called(result)])):
        return Refusal(reason, reader)
    if result is not None and (not module_path(result) or _leads_to(reader, result)):
        result = None
    if result is None and not has_weights:
        return Refusal(reason, reader)
    instead = "the value of a module of its own" if result is None else f"the value of {called(result)}"
    if result is not None and has_weights:
        instead += ", or that of a module of its own"
    does = "return" if reader.op == "output" else f"let {called(reader)} read"
    return Refusal(reason, reader, f"{does} {instead}")


def _leads_to(node: Node, result: Node) -> bool:
    """Whether ``result`` is computed from ``node``."""
    seen = {result}
    stack = [result]
    while stack:
        current = stack.pop()
        if current is node:
            return True
        operands = [operand for operand in current.all_input_nodes if operand not in seen and not operand < node]
        seen.update(operands)
        stack.extend(operands)
    return False


def _convex(inside: set[Node], outputs: set[Node]) -> Refusal | None:
    last = max(inside)
    seen: set[Node] = set()
    stack = [user for node in outputs for user in node.users if user not in inside]
    while stack:
        node = stack.pop()
        if node in inside:
            # the walk ends at the first node of the match that reads what comes from another one
            return Refusal("lies on a path that leaves the match and comes back", node,
                           f"let {called(node)} read nothing that is computed from the other results")  # fmt: skip
        if node not in seen and node < last:
            seen.add(node)
            stack.extend(node.users)
    return None
