"""What an optimized module runs on: programs, folded weights and lowerings, replaced together when weights change."""

from __future__ import annotations

import itertools
import threading
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rewrite import compat
from rewrite.errors import RewriteError
from rewrite.events import emit
from rewrite.result import call
from rewrite.result.mirror import Mirror, Reflection, find
from rewrite.result.modes import neutral
from rewrite.result.plans import Plan, Snapshot, Weights, execute, remember
from rewrite.result.reading import attribute, kinds, place
from rewrite.result.specialize import Misfit, Specialization
from rewrite.result.staleness import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from rewrite.lowering import Lowering
    from rewrite.result.program import Program


class Engine:
    """The state of an optimized module.

    Args:
        source: the model.
        root: the result, as a tree of tensors.
        compile_program: captures, rewrites and verifies the model for an example call.
        lowering: runs graphs; None runs them operator by operator.
    """

    def __init__(
        self,
        source: nn.Module,
        root: Mirror,
        compile_program: Callable[[tuple[Any, ...], dict[str, Any]], Program],
        lowering: Lowering | None,
    ):
        self.source = source
        self.root = root
        self._compile_program = compile_program
        self._lowering = lowering
        self._lock = threading.RLock()
        self._clock = itertools.count(1)
        # set once the weights behind a frozen lowering have changed: from then on weights are arguments
        self._live = False
        self._announced = False
        self._observed = False
        self._attributes: dict[str, Tensor] = {}
        with neutral():
            self._reflection: Reflection | None = Reflection(source, root)
            self._snapshot = Snapshot(self._watch(()), {}, {})

    # -- calls --------------------------------------------------------------------------------------------------------

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call on one consistent state of the weights."""
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

    def _plan(self, key: Hashable, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Snapshot, Plan]:
        """Find or make the plan for a call; other threads that need one wait."""
        with self._lock:
            special = self.specialize(args, kwargs)
            snapshot = self._snapshot
            plan = snapshot.plans.get(key)
            if plan is None:
                flat, _ = call.flatten(args, kwargs)
                plan = self._lower(special, snapshot, flat, call.needs_gradient(flat))
                plan.used = next(self._clock)
                remember(snapshot.plans, key, plan)
            return snapshot, plan

    def _lower(self, special: Specialization, snapshot: Snapshot, flat: list[Any], differentiate: bool) -> Plan:
        lowering = self._lowering
        if differentiate or lowering is None:
            return Plan(special, *special.eager, differentiate=differentiate)
        writes = special.graph.signature.mutations
        known = special.lowered.get(lowering.name)
        if known is not None:
            return Plan(special, known, writes, arranged=True)
        weights = snapshot.weights[special]
        frozen = lowering.freezes and not self._live
        tensors = weights.plain if frozen else weights.arranged
        try:
            with neutral(autocast=True):
                started = time.perf_counter()
                run = lowering.compile(special.graph, dict(zip(special.names, tensors, strict=True)), flat, frozen)
                spent = time.perf_counter() - started
            special.program.time["lowering"] = special.program.time.get("lowering", 0.0) + spent
            sizes = [list(value.shape) for value in flat if isinstance(value, Tensor)]
            emit("lowered", f"{lowering.name} compiled for {sizes} in {spent:.2f} s", lowering=lowering.name,
                 sizes=sizes, seconds=spent, frozen=frozen)  # fmt: skip
        except Exception as error:  # the compiler is not ours, and the program runs without it
            self._lowering = None
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(
                f"{lowering.name} cannot compile the model, which runs operator by operator from now on: {first}",
                RuntimeWarning,
                stacklevel=6,
            )
            return Plan(special, *special.eager)
        if not lowering.static:
            special.lowered[lowering.name] = run
        return Plan(special, run, writes, static=lowering.static, frozen=frozen, arranged=True)

    # -- programs -----------------------------------------------------------------------------------------------------

    def specialize(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Specialization:
        """The program for a call, captured if there is none."""
        autocast = compat.is_any_autocast()
        with self._lock, neutral():
            snapshot = self.refresh()
            flat, structure = call.flatten(args, kwargs)
            for special in snapshot.weights:
                if special.accepts(flat, structure, autocast):
                    return special
            program = self._compile_program(*self._example(args, kwargs, autocast))
            return self._adopt(program)

    def _example(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], autocast: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call as the source can take it, which may have stayed in another dtype and on another device."""
        dtypes: dict[torch.dtype, torch.dtype] = {}
        devices: dict[torch.device, torch.device] = {}
        for name, theirs in itertools.chain(self.source.named_parameters(), self.source.named_buffers()):
            mine = find(self.root, name)
            if mine is not None:
                devices.setdefault(mine.device, theirs.device)
                if theirs.is_floating_point():
                    dtypes.setdefault(mine.dtype, theirs.dtype)
        if autocast and dtypes:
            wide = next(iter(dtypes.values()))
            dtypes = {torch.float16: wide, torch.bfloat16: wide} | dtypes

        def convert(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            dtype = dtypes.get(leaf.dtype, leaf.dtype) if leaf.is_floating_point() else leaf.dtype
            return leaf.to(devices.get(leaf.device, leaf.device), dtype)

        return compat.tree_map(convert, (args, kwargs))  # type: ignore[no-any-return]

    def _adopt(self, program: Program) -> Specialization:
        registered, attributes = kinds(self.source, program.graph)
        special = Specialization(program, registered, attributes)
        for name in attributes:
            self._attributes.setdefault(name, self._attribute(name).detach().clone())
        previous = self._snapshot
        specials = [*previous.weights, special]
        if self._reflection is not None and special.written:
            self._reflection.own(special.written)
        watch = self._watch(specials)
        folded = None
        if self._reflection is not None:
            folded = {name: program.graph.weights[name] for name in special.folded}
        else:
            special = self._refit(special) or special
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
            specials = self._follow_or_own(previous)
            # the watch comes first: what changes while the weights are read is noticed at the next call
            watch = self._watch(specials)
            fitting = [fit for special in specials if (fit := self._refit(special)) is not None]
            if not self._announced and any(plan.frozen for plan in previous.plans.values()):
                self._live = True
            weights = {special: held for special in fitting if (held := self._refold(special)) is not None}
            self._announced = False
            emit("refolded", f"weights changed: {len(weights)} of {len(previous.weights)} programs follow",
                 programs=len(weights), dropped=len(previous.weights) - len(weights))  # fmt: skip
            plans = {key: plan for key, plan in previous.plans.items() if plan.special in weights and not plan.frozen}
            self._snapshot = Snapshot(watch, weights, plans)
            return self._snapshot

    def _follow_or_own(self, previous: Snapshot) -> list[Specialization]:
        """Bring the tree up to date; the programs that are still those of the model."""
        if self._reflection is None:
            return list(previous.weights)
        if previous.watch.edited():
            self._own()
        elif self._reflection.same_structure():
            self._reflection.update()
        else:
            self._reflection = Reflection(self.source, self.root)
            return []
        return list(previous.weights)

    def _refit(self, special: Specialization) -> Specialization | None:
        """The specialization for the present weights, or None where the model has to be captured anew."""
        try:
            if special.program.value_rules:
                rules = ", ".join(f"'{name}'" for name in special.program.value_rules)
                raise Misfit(f"{rules} held for the weights of the model when it was optimized")
            return special.fit(self._sources(special))
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
        if self._reflection is None:
            raise RewriteError(
                f"the weights do not fit the optimized program: {misfit}; change the model instead and optimize it "
                "again"
            ) from None

    def _sources(self, special: Specialization) -> dict[str, Tensor]:
        found = {}
        for name in special.reads:
            tensor = find(self.root, name) if name in special.registered else self._attribute(name)
            if tensor is None:
                raise Misfit(f"there is no '{name}' any more")
            found[name] = tensor.detach()
        return found

    def _attribute(self, name: str) -> Tensor:
        return attribute(self.source, name) if self._reflection is not None else self._attributes[name]

    def _weights(self, special: Specialization, folded: dict[str, Tensor] | None = None) -> Weights:
        sources = self._sources(special)
        tensors = special.fold(sources) if folded is None else {**special.constants, **sources, **folded}
        return self._arranged(special, tuple(tensors[name].detach() for name in special.names))

    def _arranged(self, special: Specialization, plain: tuple[Tensor, ...]) -> Weights:
        if not self._live or self._lowering is None:
            return Weights(plain, plain)
        named = self._lowering.arrange(special.graph, dict(zip(special.names, plain, strict=True)))
        return Weights(plain, tuple(named[name] for name in special.names))

    def _watch(self, specials: Iterable[Specialization]) -> Watch:
        tree = self.source if self._reflection is not None else self.root
        specials = list(specials)
        written = {name for special in specials for name in special.written}
        written |= self._reflection.owned if self._reflection is not None else set()
        excluded = {id(find(tree, name)) for name in written}
        attributes = {name for special in specials for name in special.attributes}
        places = [place(self.source, name) for name in sorted(attributes)] if self._reflection is not None else []
        watch = Watch(tree, [found for found in places if found is not None], excluded)
        if self._reflection is not None and self._observed:
            watch.also(self.root)
        return watch

    # -- whose tensors ------------------------------------------------------------------------------------------------

    @property
    def following(self) -> bool:
        """Whether the weights are those of the model."""
        return self._reflection is not None

    def observe(self) -> None:
        """From now on the caller may hold the result's tensors and give them other memory, so they are watched too."""
        with self._lock, neutral():
            if self._reflection is None:
                return
            updated = self._update()
            if updated or not self._observed:
                self._observed = True
                self._snapshot.watch.also(self.root)

    def _update(self) -> bool:
        """Let the tree follow at once where the model holds other tensors; folded weights follow at the next call."""
        watch = self._snapshot.watch
        if self._reflection is None or not watch.moved() or watch.edited() or not self._reflection.same_structure():
            return False
        self._reflection.update()
        watch.stale = True
        return True

    def stop_following(self) -> None:
        """Copy the weights, so that the result can change them, and look at the model's no longer."""
        with self._lock, neutral():
            self._announced = True
            if self._reflection is not None:
                self._update()
                self._own()
                self._snapshot.watch.stale = True

    def _own(self) -> None:
        assert self._reflection is not None
        for name in self._attributes:
            self._attributes[name] = self._attribute(name).detach().clone()
        self._reflection.own()
        self._reflection = None

    def copy(self, root: Mirror) -> Engine:
        """An engine over copies of the weights in ``root``, which does not follow the model."""
        with self._lock, neutral():
            snapshot = self.refresh()
            twin: Engine = Engine.__new__(Engine)
            twin.__dict__.update(self.__dict__)
            twin.root, twin._lock, twin._observed, twin._announced = root, threading.RLock(), False, False
            twin._reflection = Reflection(self.root, root)
            twin._reflection.own()
            twin._reflection = None
            twin._attributes = {name: self._attribute(name).detach().clone() for name in self._attributes}
            weights = {}
            for special, held in snapshot.weights.items():
                folded = {name: held.plain[i] for i, name in enumerate(special.names) if name in special.folded}
                weights[special] = twin._weights(special, folded)
            plans = {key: replace(plan) for key, plan in snapshot.plans.items()}
            twin._snapshot = Snapshot(twin._watch(weights), weights, plans)
            return twin

    def changes(self, module: nn.Module, fn: Callable[[Tensor], Tensor]) -> bool:
        """Whether ``fn`` gives another tensor than it is given for one of a module's tensors."""
        with neutral():
            for tensor in itertools.chain(module.parameters(), module.buffers()):
                given = tensor.detach()
                made = fn(given)
                if made is not given:
                    return True
        return False

    # -- reading ------------------------------------------------------------------------------------------------------

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
