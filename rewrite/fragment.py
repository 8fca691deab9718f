"""Detached fragments: the part of a graph that a match replaces, and its replacement, each a small program of its own.

Both sides of a rewrite are fragments over the same boundary values. So they can be evaluated, compared and printed
before the graph is touched.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from rewrite import evaluate
from rewrite.errors import RuleError
from rewrite.graph import Graph, fake_call, is_mutating
from rewrite.names import clashes
from rewrite.printer import fingerprint
from rewrite.provenance import KEY, Origin, module_path
from rewrite.weights import Evaluator, is_algebra, own

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rewrite.rule import Match

_SOURCE = ("stack_trace", "nn_module_stack")


@dataclass(eq=False)
class Fragment:
    """A program over boundary nodes of a graph.

    Attributes:
        fx: the nodes; a placeholder stands for each boundary node.
        inputs: boundary node of the graph to placeholder, in order.
        outputs: the results; a boundary node passed through is its placeholder.
        constants: values that the fragment brings along, by ``get_attr`` target.
        folds: for those that were computed from weights, the node of the graph that they stand for.
    """

    fx: fx.Graph = field(default_factory=fx.Graph)
    inputs: dict[Node, Node] = field(default_factory=dict)
    outputs: tuple[Node, ...] = ()
    constants: dict[str, Tensor] = field(default_factory=dict)
    folds: dict[str, Node] = field(default_factory=dict)

    def calls(self) -> list[Node]:
        """The operator nodes, in order."""
        return [node for node in self.fx.nodes if node.op == "call_function"]

    def environment(self, values: Mapping[Node, Any]) -> dict[Node, Any]:
        """What the operators start from: the values of the boundary nodes by placeholder, and the constants."""
        env: dict[Node, Any] = {stand_in: values[node] for node, stand_in in self.inputs.items()}
        env.update((node, self.constants[str(node.target)]) for node in self.fx.nodes if node.op == "get_attr")
        return env

    def evaluate(self, values: Mapping[Node, Any], double: bool = False) -> tuple[Any, ...]:
        """The outputs for given values of the boundary nodes, in the given dtypes, or in float64 throughout."""
        env = self.environment(values)
        if double:
            env = {node: evaluate.lift(value) for node, value in env.items()}
        with torch.no_grad():
            evaluate.run(self.fx.nodes, env, double)
        return tuple(env[node] for node in self.outputs)

    def evaluate_folded(self, values: Mapping[Node, Any], constant: Mapping[Node, bool]) -> tuple[Any, ...]:
        """The outputs as after folding: weight algebra in float64, rounded once, the rest in the given dtypes.

        ``constant`` says which boundary nodes are constants of the graph.
        """
        env = self.environment(values)
        dtypes = {
            node.meta["val"].dtype: env[stand_in].dtype
            for node, stand_in in self.inputs.items()
            if isinstance(env[stand_in], Tensor) and env[stand_in].dtype.is_floating_point
        }
        evaluator = Evaluator(lambda name: self.constants[name], lambda dtype: dtypes.get(dtype, dtype))
        for node, stand_in in self.inputs.items():
            if constant[node]:
                evaluator.know(stand_in, env[stand_in])
        with torch.no_grad():
            for node in self.calls():
                if is_algebra(node):
                    env[node] = evaluator.rounded(node)
            evaluate.run(self.fx.nodes, env)
        return tuple(env[node] for node in self.outputs)

    def key(self) -> tuple[Any, ...]:
        """What the fragment computes: its code with the shapes and dtypes of its boundary, without names and values."""
        boundary = tuple(_type_key(node.meta.get("val")) for node in self.inputs)
        order = {node: i for i, node in enumerate(self.fx.nodes)}
        return fingerprint(self.fx.nodes), boundary, tuple(order[node] for node in self.outputs)


def _type_key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(str(size) for size in value.shape)
    return str(value)


def extract(match: Match) -> Fragment:
    """The fragment that a match would replace."""
    fragment = Fragment()
    mapping: dict[Node, Node] = {}
    for node in match.inputs:
        mapping[node] = fragment.inputs[node] = _stand_in(fragment.fx, node)
    for node in match.nodes:
        mapping[node] = fragment.fx.node_copy(node, mapping.__getitem__)
    fragment.outputs = tuple(mapping[node] for node in match.outputs)
    return fragment


def _stand_in(nodes: fx.Graph, node: Node) -> Node:
    placeholder = nodes.placeholder(node.name)
    placeholder.meta = dict(node.meta)
    return placeholder


class Builder:
    """Builds the replacement of a match: ``g(target, *args, **kwargs)`` adds an operator and returns its node.

    Nodes of the graph can be used as arguments: boundary nodes of the match, constants, and inputs of the graph, for
    their sizes. The recorded value of each new node is computed at once, so a wrong shape fails here, inside the rule.
    """

    def __init__(self, graph: Graph, match: Match, number: int):
        self.graph = graph
        self.fragment = Fragment()
        self._match = match
        self._number = number
        self._boundary = set(match.inputs)
        self._names = tuple(node.name for node in match.nodes)
        self._constant: dict[Node, bool] = {}
        self._kept: dict[Node, Node] = {}

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Add ``target(*args, **kwargs)``, an ATen overload, and return its node."""
        args, kwargs = fx.map_arg((args, kwargs), self.use)
        value = fake_call(self.graph.fake_mode, target, args, kwargs)
        # named after the operator alone: "conv2d", where fx would say "conv2d_default"
        name = getattr(target, "_opname", None)
        node = self.fragment.fx.create_node("call_function", target, args, kwargs, name)
        if is_mutating(node):
            raise RuleError(f"rule '{self._match.rule.name}' uses {target}, which writes to its input; use the "
                            f"functional operator")  # fmt: skip
        self._constant[node] = all(self._constant[arg] for arg in node.all_input_nodes)
        node.meta.update(self._inherited())
        node.meta["val"] = value
        node.meta[KEY] = Origin(self._match.rule.name, self._number, self._names, algebra=self._constant[node])
        return node

    def _inherited(self) -> dict[str, Any]:
        anchor = self._match.outputs[-1].meta
        return {key: anchor[key] for key in _SOURCE if key in anchor}

    def use(self, node: Node) -> Node:
        """The fragment's stand-in for a boundary node of the graph; nodes of the fragment are returned as they are."""
        if node.graph is self.fragment.fx:
            return node
        known = self.fragment.inputs.get(node) or self._kept.get(node)
        if known is not None:
            return known
        constant = self.graph.is_constant(node)
        if node not in self._boundary and not constant and node.op != "placeholder":
            raise RuleError(
                f"rule '{self._match.rule.name}' reads '{node.name}', which is neither an input of its match nor a "
                f"constant; add the node that computes it to the match's inputs"
            )
        stand_in = _stand_in(self.fragment.fx, node)
        self.fragment.inputs[node] = stand_in
        self._constant[stand_in] = constant
        return stand_in

    def keep(self, node: Node) -> Node:
        """A node of the match as it is: the same operator on the same operands, with its own source and history.

        Weight code of the model stays the model's: it is not evaluated in float64 as new algebra is.
        """
        kept = self._kept[node] = self.fragment.fx.node_copy(node, self.use)
        self._constant[kept] = self.graph.is_constant(node)
        return kept

    def again(self, node: Node, operands: Mapping[Node, Node]) -> Node:
        """The operator of a node of the match over other operands, with its own source.

        Operands that are not named are the boundary's.
        """
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda operand: operands.get(operand, operand))
        made = self(node.target, *args, **kwargs)
        made.meta.update({key: node.meta[key] for key in (*_SOURCE, "torch_fn") if key in node.meta})
        return made

    def fold(self, node: Node, name: str) -> Node:
        """A new weight that holds the value of a constant node of the graph, computed now and again at each refold."""
        storages = {tensor.untyped_storage().data_ptr() for tensor in self.graph.weights.values()}
        value = own(self.graph.value(node), storages)
        folded = self.fragment.fx.create_node("get_attr", name)
        folded.meta.update({key: node.meta[key] for key in _SOURCE if key in node.meta})
        folded.meta["val"] = self.graph.fake_mode.from_tensor(value, static_shapes=True)
        self._constant[folded] = True
        self.fragment.constants[name] = value
        self.fragment.folds[name] = node
        return folded

    def bring(self, role: str, tensor: Tensor) -> Node:
        """A new weight of its own, as approximations fit it; nothing that is there computes it.

        Args:
            role: what it is, at the end of its name, which begins with the path of the match's module.
            tensor: its value; copied. A parameter where it has a floating-point dtype.
        """
        path, anchor = module_path(self._match.anchor), self._match.anchor.name
        base = f"{path}.{anchor}" if path else anchor  # a module may be called several times
        known = {*self.graph.weights, *self.fragment.constants}
        places = itertools.chain((base, anchor), (f"{base}_{i}" for i in itertools.count(1)))
        name = next(f"{place}.{role}" for place in places if not clashes(f"{place}.{role}", known))
        copied = tensor.detach().clone(memory_format=torch.contiguous_format)
        value = nn.Parameter(copied) if copied.is_floating_point() else copied
        brought = self.fragment.fx.create_node("get_attr", name)
        brought.meta.update(self._inherited())
        brought.meta["val"] = self.graph.fake_mode.from_tensor(value.detach(), static_shapes=True)
        self._constant[brought] = True
        self.fragment.constants[name] = value
        return brought

    def finish(self, result: Node | Sequence[Node]) -> Fragment:
        """The finished fragment with the results that the rule returned, checked against the match's outputs."""
        results = (result,) if isinstance(result, Node) else tuple(result)
        wanted = self._match.outputs
        if len(results) != len(wanted):
            raise RuleError(f"rule '{self._match.rule.name}' returned {len(results)} values for {len(wanted)} outputs")
        self.fragment.outputs = tuple(self.use(node) for node in results)
        for old, new in zip(wanted, self.fragment.outputs, strict=True):
            _same_type(self._match.rule.name, old, new)
        return self.fragment


def _same_type(rule: str, old: Node, new: Node) -> None:
    a, b = old.meta["val"], new.meta["val"]
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return
    if a.dtype != b.dtype or a.dim() != b.dim() or [str(n) for n in a.shape] != [str(n) for n in b.shape]:
        raise RuleError(
            f"rule '{rule}' replaced '{old.name}' of {a.dtype}{list(a.shape)} by a value of {b.dtype}{list(b.shape)}"
        )
