"""What an optimized module runs on: programs, folded weights and lowerings, replaced together when weights change."""

from __future__ import annotations

import contextlib
import copy
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.alone import alone
from rewrite.errors import RewriteError
from rewrite.events import emit
from rewrite.result import call, glance, recording
from rewrite.result.lowerings import Lowerings
from rewrite.result.modes import neutral
from rewrite.result.ownership import Ownership, changes
from rewrite.result.plans import Plan, Snapshot, Weights, compute, execute, remember
from rewrite.result.reading import kinds
from rewrite.result.saving import artifact_of
from rewrite.result.specialize import Misfit, Specialization

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from torch.fx import GraphModule

    from rewrite.artifact import Artifact
    from rewrite.lowered import Lowered
    from rewrite.lowering import Lowering
    from rewrite.result.mirror import Mirror
    from rewrite.result.program import Program
    from rewrite.result.shapes import Shapes


class Engine:
    """The state of an optimized module.

    Args:
        source: the model.
        root: the result, as a tree of tensors.
        compile_program: captures, rewrites and verifies the model for an example call: ``(args, kwargs)``, and False
            where nothing is to be measured for it.
        lowering: runs graphs; None runs them operator by operator.
        shapes: the calls that it is ready for.
    """

    def __init__(
        self,
        source: nn.Module,
        root: Mirror,
        compile_program: Callable[..., Program],
        lowering: Lowering | None,
        shapes: Shapes,
    ):
        self.shapes = shapes
        self._compile_program = compile_program
        self._lowerings = Lowerings(lowering)
        self._lock = alone
        self._clock = itertools.count(1)
        if lowering is not None:
            glance.begin()  # whoever compiles calls often enough for the looks at the weights to be compiled too
        with neutral():
            self._ownership = Ownership(source, root)
            self._snapshot = Snapshot(self._ownership.watch(()), {}, {})

    @property
    def source(self) -> nn.Module:
        """The model."""
        return self._ownership.source

    # -- calls --------------------------------------------------------------------------------------------------------

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call on one consistent state of the weights."""
        if compat.is_recording():
            return self._record(args, kwargs)
        flat, structure = call.flatten(args, kwargs)
        snapshot = self._snapshot
        if snapshot.watch.changed():
            snapshot = self.refresh()
        differentiate = call.needs_gradient(flat)
        key = call.key(flat, structure, differentiate)
        plan = snapshot.plans.get(key)
        if plan is None:
            snapshot, plan = self._plan(key, args, kwargs)
        plan.used = next(self._clock)
        return execute(plan, snapshot.weights[plan.special], flat)

    def _plan(
        self, key: tuple[Hashable, bool, int], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Snapshot, Plan]:
        """Find or make the plan for a call; other threads that need one wait."""
        with self._lock:
            compiles = self.shapes.compiles(*call.flatten(args, kwargs))
            special = self.specialize(args, kwargs, tuned=compiles and not key[1])
            snapshot = self._snapshot
            plan = snapshot.plans.get(key)
            if plan is None:
                flat, structure = call.flatten(args, kwargs)
                plan = self._lowerings.plan(
                    special, snapshot.weights[special], flat, differentiate=key[1], compiles=compiles
                )
                if self.shapes.undecided:
                    self.shapes.announce(flat, structure)
                plan.kept, plan.used = self.shapes.ready(key[0]), next(self._clock)
                remember(snapshot.plans, key, plan)
            return snapshot, plan

    def announce(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Capture the model for a call, unless a program takes it, and be ready for such calls."""
        with self._lock:
            self.specialize(args, kwargs)
            flat, structure = call.flatten(args, kwargs)
            self.shapes.announce(flat, structure)
            kind, plans = call.kind(flat, structure), self._snapshot.plans
            for key in [key for key in plans if key[0] == kind]:
                if plans[key].static:
                    plans[key].kept = True
                else:  # it may be one that was to run operator by operator
                    del plans[key]

    def warm(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Announce a call, and lower the program for it and run it, without what a call writes."""
        with self._lock:
            self.announce(args, kwargs)
            flat, structure = call.flatten(args, kwargs)
            snapshot, plan = self._plan(call.key(flat, structure, call.needs_gradient(flat)), args, kwargs)
            # compiled code does some of its work at its first run, and programs in eager mode may write as they run
            if plan.static and not plan.differentiate:
                weights = snapshot.weights[plan.special]
                devices = {tensor.device for tensor in (*weights.plain, *flat) if isinstance(tensor, Tensor)}
                with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
                    compute(plan, weights, flat)

    # -- calls that are recorded --------------------------------------------------------------------------------------

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call operator by operator."""
        flat, _ = call.flatten(args, kwargs)
        with compat.unrecorded():
            special, weights = self._recorded(args, kwargs)
        if recording.is_traced():
            return recording.record(special, self._ownership.in_tree(special, weights.plain), flat)
        return execute(Plan(special, *special.eager, differentiate=call.needs_gradient(flat)), weights, flat)

    def exported(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, GraphModule]:
        """The program for a call, as a module over the tensors of the tree."""
        with compat.unrecorded():
            special, weights = self._recorded(args, kwargs)
            tensors = self._ownership.in_tree(special, weights.plain)
            return special, special.differentiable.to_module(dict(zip(special.names, tensors, strict=True)))

    def _recorded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, Weights]:
        """The program for a call and its present weights.

        Raises:
            InputError: no program takes the call, and its tensors have no values to make one with.
            RewriteError: weights have changed, and an exporter has put others in their place.
        """
        with self._lock:
            if not self._ownership.is_swapped():
                self.refresh()
            elif self._snapshot.watch.rewritten():
                raise RewriteError("weights have changed since the result last ran, and now it is traced; call "
                                   "result.refold() first")  # fmt: skip
            flat, structure = call.flatten(args, kwargs)
            special = self._find(flat, structure, compat.is_any_autocast())
            if special is None:
                if torch.compiler.is_exporting() or any(map(compat.is_stand_in, flat)):
                    raise recording.refusal(flat)
                special = self.specialize(args, kwargs, tuned=False)
            return special, self._snapshot.weights[special]

    def prepare(self) -> None:
        """Be ready for an exporter, which reads the tree, and then puts tensors into it that have no values."""
        if not compat.is_recording():
            return
        with self._lock, compat.unrecorded(), contextlib.suppress(RewriteError):  # the call raises it
            if not self._ownership.is_swapped():
                recording.name_constants(self._ownership.root, self.refresh())

    # -- programs -----------------------------------------------------------------------------------------------------

    def specialize(self, args: tuple[Any, ...], kwargs: dict[str, Any], tuned: bool = True) -> Specialization:
        """The program for a call, captured if there is none; not ``tuned`` where it will not be lowered."""
        autocast = compat.is_any_autocast()
        with self._lock, neutral():
            self.refresh()
            special = self._find(*call.flatten(args, kwargs), autocast)
            if special is not None:
                return special
            example = self._ownership.example(args, kwargs, autocast)
            return self.adopt(self._compile_program(*example, *(() if tuned else (False,))))

    def _find(self, flat: list[Any], structure: call.Tree, autocast: bool) -> Specialization | None:
        """The program for a call, None where there is none."""
        specials = self._snapshot.weights
        return next((special for special in specials if special.accepts(flat, structure, autocast)), None)

    def adopt(self, program: Program) -> Specialization:
        """Take over a program of the model."""
        with self._lock, neutral():
            special = Specialization(program, *kinds(self.source, program.graph))
            self._ownership.adopt(special)
            previous = self._snapshot
            watch = self._ownership.watch([*previous.weights, special])
            folded = None
            if self.following:
                folded = {name: program.graph.weights[name] for name in special.folded}
            else:
                special = self._refit(special) or special
                special.ready = None  # it was lowered with the weights of the model
            weights = {**previous.weights, special: self._weights(special, folded)}
            self._snapshot = Snapshot(watch, weights, dict(previous.plans))
            # the watch from before the capture tells of a change since
            if previous.watch.changed():
                self._snapshot.watch.stale = True
            return special

    # -- weights ------------------------------------------------------------------------------------------------------

    def refresh(self, force: bool = False) -> Snapshot:
        """Bring everything up to date with the weights; readers see the old state or the new one, never a mixture.

        Args:
            force: also if no change was noticed.

        Raises:
            RewriteError: the result's own weights do not fit its programs.
        """
        with self._lock, neutral():
            previous = self._snapshot
            if not force and not previous.watch.changed():
                return previous
            specials = list(previous.weights) if self._ownership.follow(previous.watch) else []
            # the watch comes first: what changes while the weights are read is noticed at the next call
            watch = self._ownership.watch(specials)
            for special in specials:
                special.ready = None  # it was lowered with the weights of before
            fitting = [fit for special in specials if (fit := self._refit(special)) is not None]
            self._lowerings.weights_changed(previous.plans.values())
            weights = {special: held for special in fitting if (held := self._refold(special)) is not None}
            self._lowerings.announced = False
            emit("refolded", f"weights changed: {len(weights)} of {len(previous.weights)} programs follow",
                 programs=len(weights), dropped=len(previous.weights) - len(weights))  # fmt: skip
            plans = {key: plan for key, plan in previous.plans.items() if plan.special in weights and not plan.frozen}
            self._snapshot = Snapshot(watch, weights, plans)
            return self._snapshot

    def _refit(self, special: Specialization) -> Specialization | None:
        """The specialization for the present weights, or None where the model has to be captured anew."""
        try:
            if special.program.value_rules:
                rules = ", ".join(f"'{name}'" for name in special.program.value_rules)
                raise Misfit(f"{rules} held for the weights of the model when it was optimized")
            changed = special.program.other_decision(self._ownership.find)
            if changed:
                raise Misfit(f"forward decides on the value of '{changed}', which was another one")
            return special.fit(self._ownership.sources(special))
        except Misfit as misfit:
            self._give_up(misfit)
            return None

    def _refold(self, special: Specialization) -> Weights | None:
        """The present weights, or None where the model has to be captured anew."""
        try:
            return self._weights(special)
        except Misfit as misfit:
            self._give_up(misfit)
            return None

    def _give_up(self, misfit: Misfit) -> None:
        """Leave a program that does not fit to be captured anew.

        Raises:
            RewriteError: the weights are the result's own, and there is no model to capture.
        """
        if not self.following:
            raise RewriteError(
                f"the weights do not fit the optimized program: {misfit}; change the model instead and optimize it "
                "again"
            ) from None

    def _weights(self, special: Specialization, folded: dict[str, Tensor] | None = None) -> Weights:
        sources = self._ownership.sources(special)
        tensors = special.fold(sources) if folded is None else {**special.constants, **sources, **folded}
        return self._lowerings.arranged(special, tuple(tensors[name].detach() for name in special.names))

    # -- whose tensors ------------------------------------------------------------------------------------------------

    @property
    def following(self) -> bool:
        """Whether the weights are those of the model."""
        return self._ownership.following

    def observe(self) -> None:
        """From now on the caller may hold the result's tensors and give them other memory, so they are watched too."""
        if compat.is_recording():
            return
        with self._lock, neutral():
            self._ownership.observe(self._snapshot.watch)

    def stop_following(self) -> None:
        """Copy the weights, so that the result can change them, and look at the model's no longer."""
        with self._lock, neutral():
            self._lowerings.announced = True
            self._ownership.stop_following(self._snapshot.watch)

    def changes(self, module: nn.Module, fn: Callable[[Tensor], Tensor]) -> bool:
        """Whether ``fn`` changes a tensor of a part; if so, the result follows the model no longer."""
        if self.following and not changes(module, fn):
            return False
        self.stop_following()
        return True

    def keep(self) -> None:
        """Take over the model's tensors as they are; for a model that nobody else has."""
        with self._lock, neutral():
            self._ownership.keep()
            self._snapshot = replace(self._snapshot, watch=self._ownership.watch(list(self._snapshot.weights)))

    def copy(self, root: Mirror) -> Engine:
        """An engine over copies of the weights in ``root``, which does not follow the model."""
        with self._lock, neutral():
            snapshot = self.refresh()
            twin = copy.copy(self)
            twin._lock = alone
            twin.shapes = self.shapes.copy()
            twin._lowerings = copy.copy(self._lowerings)
            twin._lowerings.announced = False
            twin._ownership = self._ownership.copy(root)
            weights = {}
            for special, held in snapshot.weights.items():
                folded = {name: held.plain[i] for i, name in enumerate(special.names) if name in special.folded}
                weights[special] = twin._weights(special, folded)
            plans = {key: replace(plan) for key, plan in snapshot.plans.items()}
            twin._snapshot = Snapshot(twin._ownership.watch(weights), weights, plans)
            return twin

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def lowering(self) -> Lowering | None:
        """What runs graphs; None where they run operator by operator."""
        return self._lowerings.lowering

    @property
    def lowerings(self) -> tuple[Lowered, ...]:
        """What the calls that were seen run on, the newest last."""
        with self._lock:
            found = (plan.lowered for plan in self._snapshot.plans.values() if plan.lowered is not None)
            return tuple({id(lowered): lowered for lowered in found}.values())

    def artifact(self) -> Artifact:
        """All programs with their present weights, to be saved.

        Raises:
            ArtifactError: there is no program yet, or something in one that cannot be saved.
        """
        with self._lock, neutral():
            snapshot = self.refresh()
            return artifact_of(self.source, self._ownership.root, snapshot.weights)

    def newest(self) -> tuple[Specialization, Weights]:
        """The first program, with weights that are up to date.

        Raises:
            RewriteError: there is none yet.
        """
        snapshot = self.refresh()
        if not snapshot.weights:
            raise RewriteError("the model has not been captured yet; call the result once, or pass example inputs to "
                               "optimize")  # fmt: skip
        return next(iter(snapshot.weights.items()))
