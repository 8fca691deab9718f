"""``TransformedModule``: what ``transform`` returns."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from rewrite.errors import GraphError, RewriteError
from rewrite.result.live import MODES, Live
from rewrite.result.reading import kinds, read_through
from rewrite.result.running import Runnable
from rewrite.result.signature import signed
from rewrite.result.specialize import Specialization
from rewrite.trace.guard import unwrap

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from rewrite.lowering import Lowering
    from rewrite.result.program import Program

_SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_state_dict_hooks",
           "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")  # fmt: skip


class TransformedModule(Runnable):
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

    _live: Live

    def __init__(self, source: nn.Module, program: Program, lowering: Lowering | None = None):
        super().__init__()
        source = unwrap(source)
        registered, attributes = kinds(source, program.graph)
        special = Specialization(program, registered, attributes)
        live = [name for name in special.graph.program.sources if name in special.reads]
        if live:
            raise GraphError(f"'{live[0]}' was folded, and transform keeps weights trainable; leave out the pass")
        self._tie(Live(source, special, lowering))

    def _tie(self, live: Live) -> None:
        """Take over the model's own tensors, modules and hooks of its state."""
        source = live.source
        object.__setattr__(self, "__class__", signed(TransformedModule, source))
        self.__dict__.update({name: source.__dict__[name] for name in _SHARED if name in source.__dict__})
        if hasattr(source, "_version"):
            self.__dict__["_version"] = source._version
        # one object for all the rest: exporters copy lists and dicts that they find as attributes
        self.__dict__.update(training=source.training, _live=live)

    # -- running ------------------------------------------------------------------------------------------------------

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._live(args, kwargs)

    def exported(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, GraphModule]:
        """The program for a call, as a module over the model's own parameters and buffers.

        Raises:
            InputError, RewriteError: as for a call.
        """
        return self._live.exported(args, kwargs)

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def report(self) -> Any:
        """What was rewritten, what was not, and why."""
        return self._live.special.program.report

    @property
    def plan(self) -> Any:
        """The rewrites that were made, a :class:`~rewrite.plan.Plan` to keep and to make again."""
        return self._live.special.program.plan

    @property
    def graph_module(self) -> GraphModule:
        """The rewritten program in ATen operators over the model's own parameters and buffers."""
        return self._live.module()

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if "_live" not in own or name.startswith("__") or any(name in own[kind] for kind in _SHARED[:3]):
            return super().__getattr__(name)
        return read_through(own["_live"].source, name)

    def _get_name(self) -> str:
        return f"Transformed{self._live.source._get_name()}"

    # -- changing -----------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> TransformedModule:
        """Do nothing for the mode of the capture.

        Raises:
            RewriteError: for the other mode, which is another program.
        """
        if mode != self.training:
            verb = {True: "train", False: "eval"}[mode]
            raise RewriteError(
                f"the model was transformed in {MODES[self.training]} mode, and {MODES[mode]} mode is another program; "
                f"call model.{verb}() and transform it again"
            )
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TransformedModule:
        twin = TransformedModule.__new__(TransformedModule)
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        live = self._live
        twin._tie(Live(copy.deepcopy(live.source, memo), live.special, live.lowering))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raise: its parameters are those of a model.

        Raises:
            RewriteError: always.
        """
        raise RewriteError(
            f"the transformed {self._live.source._get_name()} computes with the parameters of its model and cannot be "
            "pickled; pickle the model, and transform it again"
        )
