"""``TransformedModule``: what ``transform`` returns."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.errors import GraphError, InputError, RewriteError
from rewrite.lowering import differentiable
from rewrite.result import call
from rewrite.result.modes import neutral
from rewrite.result.plans import Plan, Weights, execute, remember
from rewrite.result.reading import holder, kinds, read_through, refuse_export
from rewrite.result.specialize import Misfit, Specialization
from rewrite.trace.guard import unwrap

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from rewrite.lowering import Lowering
    from rewrite.result.program import Program

_SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_state_dict_hooks",
           "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")  # fmt: skip


class TransformedModule(nn.Module):
    """A rewritten model over the model's own parameters: training either of them trains both.

    The parameters, buffers and submodules *are* those of the model, so ``to``, ``half`` and ``load_state_dict`` act on
    both, and a call in training mode updates the model's running statistics. The mode is that of the capture.

    Args:
        source: the model.
        program: the model, captured and rewritten, with nothing folded that depends on weights.
        lowering: runs graphs; None runs them operator by operator.

    Raises:
        GraphError: the program has folded weights.
    """

    def __init__(self, source: nn.Module, program: Program, lowering: Lowering | None = None):
        super().__init__()
        source = unwrap(source)
        registered, attributes = kinds(source, program.graph)
        special = Specialization(program, registered, attributes)
        live = [name for name in special.graph.program.sources if name in special.reads]
        if live:
            raise GraphError(f"'{live[0]}' was folded, and transform keeps weights trainable; leave out the pass")
        self._tie(source, special, lowering)

    def _tie(self, source: nn.Module, special: Specialization, lowering: Lowering | None) -> None:
        self.__dict__.update({name: source.__dict__[name] for name in _SHARED if name in source.__dict__})
        if hasattr(source, "_version"):
            self.__dict__["_version"] = source._version
        links = [(module._modules, key, child) for module in source.modules() for key, child in module._modules.items()]
        self.__dict__.update(
            training=source.training, _source=source, _special=special, _lowering=lowering, _links=links,
            _holders={name: holder(source, name) for name in special.names}, _lock=threading.RLock(), _plans={},
            _fixed=self._fold(special),
        )  # fmt: skip

    @staticmethod
    def _fold(special: Specialization) -> dict[str, Tensor]:
        """The values that depend on no weight."""
        with neutral():
            return {**special.constants, **special.graph.program.evaluate(special.constants)}

    # -- running ------------------------------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the model computes in the mode in which it was captured.

        Raises:
            InputError: the call has other sizes or another structure than the example, the batch excepted.
            RewriteError: a submodule was replaced.
        """
        if torch.compiler.is_exporting():
            refuse_export()
        flat, structure = call.flatten(args, kwargs)
        weights = self._weights()
        plan = self._plan(flat, structure, weights)
        return execute(plan, Weights(weights, weights), flat)

    def _weights(self) -> tuple[Tensor, ...]:
        """The weights that the program takes, as the model holds them now."""
        for held, key, module in self._links:
            if held.get(key) is not module:
                raise RewriteError(f"module '{key}' was replaced after the model was transformed; transform it again")
        weights = [
            self._fixed[name] if held is None else held.get(name.rpartition(".")[2])
            for name, held in self._holders.items()
        ]
        missing = [name for name, tensor in zip(self._holders, weights, strict=True) if tensor is None]
        if missing:
            raise RewriteError(f"the model has no '{missing[0]}' any more, which its program reads; transform it again")
        return tuple(weights)

    def _plan(self, flat: list[Any], structure: call.Tree, weights: tuple[Tensor, ...]) -> Plan:
        key = call.key(flat, structure, torch.is_grad_enabled()), tuple((w.dtype, w.device, w.shape) for w in weights)
        plan = self._plans.get(key)
        if plan is None:
            with self._lock:
                self._fit(weights)
                plan = self._lower(flat, structure, weights)
                remember(self._plans, key, plan)
        return plan  # type: ignore[no-any-return]

    def _fit(self, weights: tuple[Tensor, ...]) -> None:
        special: Specialization = self._special
        try:
            fitted = special.fit(dict(zip(special.names, weights, strict=True)))
        except Misfit as misfit:
            raise RewriteError(f"the weights do not fit the transformed program: {misfit}; transform again") from None
        if fitted is not special:
            self.__dict__.update(_special=fitted, _fixed=self._fold(fitted))
            self._plans.clear()

    def _lower(self, flat: list[Any], structure: call.Tree, weights: tuple[Tensor, ...]) -> Plan:
        special: Specialization = self._special
        if not special.accepts(flat, structure, compat.is_any_autocast()):
            sizes = ", ".join(str(list(value.shape)) for value in flat if isinstance(value, Tensor))
            raise InputError(
                f"the model was not transformed for inputs like these ({sizes}): only the batch may differ from the "
                "example; call transform with such an example"
            )
        lowering: Lowering | None = self._lowering
        if lowering is None:
            return Plan(special, *special.eager, differentiate=True)
        graph = differentiable(special.graph)
        run = lowering.compile(graph, dict(zip(special.names, weights, strict=True)), flat, frozen=False)
        return Plan(special, run, graph.signature.mutations, static=lowering.static, differentiate=True)

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def report(self) -> Any:
        """What was rewritten, what was not, and why."""
        return self._special.program.report

    @property
    def plan(self) -> Any:
        """The rewrites that were made, a :class:`~rewrite.plan.Plan` to keep and to make again."""
        return self._special.program.plan

    @property
    def graph_module(self) -> GraphModule:
        """The rewritten program in ATen operators over the model's own parameters and buffers."""
        special: Specialization = self._special
        return special.graph.to_module(dict(zip(special.names, self._weights(), strict=True)))

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if "_special" not in own or name.startswith("__") or any(name in own[kind] for kind in _SHARED[:3]):
            return super().__getattr__(name)
        return read_through(own["_source"], name)

    def _get_name(self) -> str:
        return f"Transformed{self._source._get_name()}"

    # -- changing -----------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> TransformedModule:
        """Do nothing for the mode of the capture.

        Raises:
            RewriteError: for the other mode, which is another program.
        """
        if mode != self.training:
            name = {True: "training", False: "evaluation"}
            verb = {True: "train", False: "eval"}[mode]
            raise RewriteError(
                f"the model was transformed in {name[self.training]} mode, and {name[mode]} mode is another program; "
                f"call model.{verb}() and transform it again"
            )
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TransformedModule:
        twin = TransformedModule.__new__(TransformedModule)
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        twin._tie(copy.deepcopy(self._source, memo), self._special, self._lowering)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raise: its parameters are those of a model.

        Raises:
            RewriteError: always.
        """
        raise RewriteError(
            f"the transformed {self._source._get_name()} computes with the parameters of its model and cannot be "
            "pickled; pickle the model, and transform it again"
        )
