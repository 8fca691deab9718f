"""The one program form: a functional ATen graph over named weights.

A :class:`Graph` is a bare ``torch.fx.Graph`` (nodes) beside the tensors that its ``get_attr`` nodes name (values).
State that the model writes is not written inside the graph: the new values are extra outputs, and :class:`Signature`
says what they are written back to. So every node is a value, and no rewrite has to think about the order of writes.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, fx
from torch.fx import GraphModule

from rewrite import compat
from rewrite.errors import GraphError
from rewrite.example import KEY as EXAMPLE
from rewrite.weights import Evaluator, WeightProgram

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class Mutation:
    """State that a call writes: a buffer or parameter by name, or one of the flat inputs by placeholder name."""

    kind: Literal["weight", "input"]
    target: str


@dataclass(frozen=True)
class Signature:
    """How flat inputs and outputs map to the user's call.

    Attributes:
        in_spec: tree of ``(args, kwargs)`` over the placeholders, in order.
        out_spec: tree of the user's result over the first ``outputs`` outputs.
        argument_names: names of the call's arguments, as in the model's ``forward``.
        outputs: how many flat outputs belong to the user; the rest are values of ``mutations``, in order.
        mutations: state written back after the call.
    """

    in_spec: compat.TreeSpec
    out_spec: compat.TreeSpec
    argument_names: tuple[str, ...]
    outputs: int
    mutations: tuple[Mutation, ...] = ()


@dataclass(eq=False)
class Graph:
    """A functional ATen program.

    Attributes:
        fx: the nodes. Placeholders are the flat inputs, ``get_attr`` targets are keys of ``weights``.
        weights: the tensors by qualified name: parameters, buffers, constants, and folded values.
        signature: the user's call.
        fake_mode: the mode of every recorded ``meta["val"]``.
        program: how the folded values among ``weights`` come from the others.
        differentiated: gradients are taken through it, so that rewrites keep those too, also where maxima tie.
    """

    fx: fx.Graph
    weights: dict[str, Tensor]
    signature: Signature
    fake_mode: compat.FakeTensorMode
    program: WeightProgram = field(default_factory=WeightProgram)
    differentiated: bool = False
    _constant: dict[Node, bool] = field(default_factory=dict, repr=False)

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> Iterator[Node]:
        """All nodes, in order."""
        return iter(self.fx.nodes)

    @property
    def inputs(self) -> list[Node]:
        """The placeholders, one for each flat input."""
        return [node for node in self.fx.nodes if node.op == "placeholder"]

    @property
    def output(self) -> Node:
        """The output node."""
        return self.fx.output_node()

    @property
    def outputs(self) -> list[Any]:
        """The flat outputs: nodes, or plain values (None, numbers), then the values of mutations."""
        return list(self.output.args[0])  # type: ignore[arg-type]

    def calls(self) -> list[Node]:
        """The operator nodes, in order."""
        return [node for node in self.fx.nodes if node.op == "call_function"]

    def is_constant(self, node: Node) -> bool:
        """Whether a node depends on weights and constants alone, so that it can be evaluated once."""
        known = self._constant.get(node)
        if known is None:
            # iterative: weight code (implicit filters) can be deeper than Python's stack
            stack = [node]
            while stack:
                top = stack[-1]
                if top in self._constant:
                    stack.pop()
                    continue
                missing = [arg for arg in top.all_input_nodes if arg not in self._constant]
                if missing and top.op == "call_function":
                    stack.extend(missing)
                    continue
                self._constant[stack.pop()] = (
                    _constant_here(top)
                    and not (top.op == "get_attr" and str(top.target) in self._state)
                    and all(self._constant[arg] for arg in top.all_input_nodes)
                )
            known = self._constant[node]
        return known

    @cached_property
    def _state(self) -> frozenset[str]:
        """The weights that a call writes, or that share memory with one: their values are not constant."""
        written = {mutation.target for mutation in self.signature.mutations if mutation.kind == "weight"}
        storages = {self.weights[name].untyped_storage().data_ptr() for name in written if name in self.weights}
        sharing = (name for name, tensor in self.weights.items() if tensor.untyped_storage().data_ptr() in storages)
        return frozenset(written.union(sharing if storages else ()))

    def value(self, node: Node) -> Tensor:
        """The real value of a constant node, in its recorded dtype; what was folded before it is not rounded twice."""
        complete = all(name in self.weights for name in self.program.sources)
        return Evaluator(self.weights.__getitem__, results=self.program.results if complete else None).rounded(node)

    # -- changing -----------------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """Forget what was derived from the nodes; to be called after a change."""
        self._constant.clear()

    def eliminate_dead(self) -> list[Node]:
        """Erase nodes without users that have no effect; returns them, last first. Placeholders stay."""
        erased = []
        for node in reversed(self.fx.nodes):
            if not node.users and (node.op == "get_attr" or (node.op == "call_function" and is_pure(node))):
                self.fx.erase_node(node)
                erased.append(node)
        if erased:
            self.touch()
        return erased

    def prune(self) -> None:
        """Forget the weights that neither the nodes, nor written state, nor the weight program need."""
        used = {str(node.target) for node in self.fx.nodes if node.op == "get_attr"}
        used.update(mutation.target for mutation in self.signature.mutations if mutation.kind == "weight")
        self.program.keep(used)
        used.update(self.program.sources)
        self.weights = {name: tensor for name, tensor in self.weights.items() if name in used}

    def sort(self) -> None:
        """Restore topological order, moving as few nodes as possible (stable)."""
        placed: set[Node] = set()
        for node in list(self.fx.nodes):
            self._place(node, placed)

    def _place(self, node: Node, placed: set[Node]) -> None:
        stack = [node]
        while stack:
            top = stack[-1]
            missing = [arg for arg in top.all_input_nodes if arg not in placed]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if top not in placed:
                placed.add(top)
                if top is not node:
                    node.prepend(top)

    def copy(self) -> Graph:
        """An independent copy of the nodes over the same tensors."""
        nodes = fx.Graph()
        mapping: dict[Node, Node] = {}
        for node in self.fx.nodes:
            mapping[node] = nodes.node_copy(node, mapping.__getitem__)
        weights, program = dict(self.weights), self.program.copy()
        return Graph(nodes, weights, self.signature, self.fake_mode, program, self.differentiated)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def to_module(self, weights: Mapping[str, Tensor] | None = None) -> GraphModule:
        """The program as a ``torch.fx.GraphModule`` with the user's signature; only weights in use become attributes.

        State that the signature lists is written with ``copy_`` before the outputs. ``weights`` overrides tensors.
        """
        tensors = {**self.weights, **(weights or {})}
        nodes = self.copy().fx
        for node in nodes.find_nodes(op="placeholder"):
            node.meta.pop(EXAMPLE, None)
        output = nodes.output_node()
        values = list(output.args[0])  # type: ignore[arg-type]
        count = self.signature.outputs
        targets = {(node.op, node.target): node for node in nodes.nodes if node.op in ("placeholder", "get_attr")}
        with nodes.inserting_before(output):
            for mutation, value in zip(self.signature.mutations, values[count:], strict=True):
                kind = "placeholder" if mutation.kind == "input" else "get_attr"
                target = targets.get((kind, mutation.target))
                if target is None:
                    target = nodes.create_node("get_attr", mutation.target)
                written = nodes.call_function(aten.copy_.default, (target, value))
                written.meta = dict(value.meta)
        output.args = (tuple(values[:count]),)
        used = {str(node.target) for node in nodes.nodes if node.op == "get_attr"}
        nodes.set_codegen(
            compat.pytree_codegen(self.signature.argument_names, self.signature.in_spec, self.signature.out_spec)
        )
        return GraphModule({name: tensors[name] for name in sorted(used)}, nodes)

    # -- invariants ---------------------------------------------------------------------------------------------------

    def check(self, shapes: bool = True) -> None:
        """Raise :class:`GraphError` unless the program is well formed, functional and completely described.

        With ``shapes``, every operator is run again on fake tensors and must give the recorded shape and dtype.
        """
        seen: set[Node] = set()
        for node in self.fx.nodes:
            late = [arg.name for arg in node.all_input_nodes if arg not in seen]
            if late:
                raise GraphError(f"'{node.name}' is used before its inputs {late} are defined")
            seen.add(node)
            if node.op == "output":
                continue
            if node.op == "get_attr":
                if str(node.target) not in self.weights:
                    raise GraphError(f"'{node.name}' names the weight '{node.target}', which the graph does not have")
            elif node.op == "call_function":
                if is_mutating(node):
                    raise GraphError(f"'{node.name}' writes to its input: {node.target} is not functional")
            elif node.op != "placeholder":
                raise GraphError(f"'{node.name}' is a {node.op}: only operators on values belong in a graph")
            if "val" not in node.meta:
                raise GraphError(f"'{node.name}' has no recorded value")
        if shapes:
            self._check_shapes()

    def _check_shapes(self) -> None:
        for node in self.fx.nodes:
            if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
                continue
            if torch.Tag.nondeterministic_seeded in node.target.tags:
                continue
            value = fake_call(self.fake_mode, node.target, node.args, node.kwargs)
            for recorded, found in zip(_tensors(node.meta["val"]), _tensors(value), strict=True):
                if recorded.dtype != found.dtype or not _same_sizes(recorded, found):
                    raise GraphError(
                        f"'{node.name}' is recorded as {recorded.dtype}{list(recorded.shape)} but gives "
                        f"{found.dtype}{list(found.shape)}"
                    )


def fake_call(mode: compat.FakeTensorMode, target: Any, args: Any, kwargs: Any) -> Any:
    """The recorded value of ``target(*args, **kwargs)``, where nodes among the arguments stand for their own."""
    args = fx.map_arg(args, lambda node: node.meta["val"])
    kwargs = fx.map_arg(kwargs, lambda node: node.meta["val"])
    # without Python's dispatcher, composite operators (pad, upsample) read a symbolic batch as the example's number
    with mode, compat.python_dispatcher(), torch.no_grad():
        return target(*args, **kwargs)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in compat.tree_flatten(value)[0] if isinstance(leaf, Tensor)]


def _same_sizes(a: Tensor, b: Tensor) -> bool:
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return a.dim() == b.dim() and all(statically_known_true(m == n) for m, n in zip(a.shape, b.shape, strict=True))


_SYMBOLIC = (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv,
             operator.mod, operator.neg, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
             operator.pow, max, min, torch.sym_max, torch.sym_min, torch.sym_float, torch.sym_int)  # fmt: skip


def is_random(node: Node) -> bool:
    """Whether a node draws random numbers; dropout in evaluation, or with probability zero, does not."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    for i, argument in enumerate(target._schema.arguments):
        if argument.name in ("train", "training", "dropout_p"):
            given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            return not (given is False or given == 0.0)
    return True


def is_mutating(node: Node) -> bool:
    """Whether a node writes to one of its inputs."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def is_pure(node: Node) -> bool:
    """Whether a node only computes its value: no randomness, no writes, no assertion, nothing unknown.

    Operators outside ATen count as pure when their schema is functional and they are declared ``pt2_compliant``.
    """
    if node.op in ("placeholder", "get_attr"):
        return True
    if node.op != "call_function":
        return False
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return target in _SYMBOLIC
    if target._schema.is_mutable or is_random(node):
        return False
    if target.namespace in ("aten", "prims"):
        return not target._opname.startswith(("_assert", "sym_constrain", "_functional_assert"))
    return torch.Tag.pt2_compliant_tag in target.tags


def _constant_here(node: Node) -> bool:
    """Whether a node would be constant if its inputs were."""
    if node.op == "get_attr":
        return isinstance(node.meta.get("val"), Tensor)
    if node.op != "call_function" or not is_pure(node):
        return False
    value = node.meta.get("val")
    if isinstance(value, Tensor):  # by far the most
        return True
    return all(isinstance(leaf, (Tensor, int, float, bool, complex)) and not isinstance(leaf, torch.SymInt)
               for leaf in compat.tree_flatten(value)[0] if leaf is not None)  # fmt: skip
