"""``OptimizedModule``: what ``optimize`` returns."""

from __future__ import annotations

import copy
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rewrite.artifact import packed
from rewrite.errors import CaptureError, RewriteError
from rewrite.files import write
from rewrite.result import recording
from rewrite.result.engine import Engine
from rewrite.result.mirror import TRAINING, Mirror, find
from rewrite.result.reading import read_through
from rewrite.result.running import Runnable
from rewrite.result.shapes import Shapes
from rewrite.result.signature import signed
from rewrite.trace.guard import unwrap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch.fx import GraphModule

    from rewrite.graph import Graph
    from rewrite.lowered import Generated, Lowered
    from rewrite.lowering import Lowering
    from rewrite.result.program import Program
    from rewrite.result.specialize import Specialization

_TREE = ("_parameters", "_buffers", "_modules")
_OWN = frozenset((*_TREE, "_engine", "_home", "_graph_module", "_non_persistent_buffers_set", *recording.RECORDED))


class OptimizedModule(Runnable, Mirror):
    """A model, rewritten for inference, with the model's signature, ``state_dict`` and attributes.

    **Whose weights.** The result computes with the model's own memory, through parameters of its own. ``to``, ``half``,
    ``load_state_dict`` and the like first give it a copy, and from then on it follows the model no longer;
    ``copy.deepcopy`` gives such a result too. So nothing done to the result reaches the model, with one exception: a
    write in place into ``result.parameters()`` while it follows. Buffers that a call writes are the result's own.

    **Changed weights.** At each call the result notices weights that were written in place, replaced, moved, loaded or
    stepped by an optimizer, and computes its folded weights again. What it cannot notice is a write through ``.data``
    or NumPy to a few elements of a large tensor, on an accelerator to any number; call :meth:`refold` after such.
    Nor does it notice new values of the model's attributes that are not tensors. A write in place while a call runs in
    another thread is a race, as it is with the model.

    Python attributes that forward reads (a norm's ``eps``, a slope) are part of the program: optimize again after a
    change of these.

    **Modes.** Gradients reach inputs that require them, never weights. Autocast and inference mode work as with the
    model. Any batch size runs on one program; other sizes are captured and compiled when they are first seen, or as
    ``on_new_shape`` says.

    **Exporters.** ``torch.export``, ``torch.onnx.export(dynamo=True)`` and ``torch.jit.trace`` record the rewritten
    program of a call that a program takes, with folded weights as constants; the batch alone may be dynamic.
    ``torch.compile`` leaves the call as it is.

    Args:
        source: the model, in evaluation mode; never changed.
        compile_program: captures, rewrites and verifies the model for the arguments of an example call, and False
            where nothing is to be measured for it.
        lowering: runs graphs; None runs them operator by operator.
        programs: the programs of the model that exist already.
        private: nobody else has the model, so the result takes its tensors over and leaves it none.
        shapes: the calls that the result is ready for, and what becomes of others.

    Raises:
        CaptureError: a part of the model cannot be captured, or is not initialized.
    """

    _engine: Engine

    def __init__(
        self,
        source: nn.Module,
        compile_program: Callable[..., Program],
        lowering: Lowering | None = None,
        programs: Iterable[Program] = (),
        private: bool = False,
        shapes: Shapes | None = None,
    ):
        source = unwrap(source)
        for name, tensor in itertools.chain(source.named_parameters(), source.named_buffers()):
            if nn.parameter.is_lazy(tensor):
                raise CaptureError(f"'{name}' is not initialized; call the model once on an example input first")
        super().__init__(source, self)
        object.__setattr__(self, "__class__", signed(type(self), source))
        engine = self.__dict__["_engine"] = Engine(source, self, compile_program, lowering, shapes or Shapes())
        for program in programs:
            engine.adopt(program)
        if private:
            engine.keep()

    # -- running ------------------------------------------------------------------------------------------------------

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._engine(args, kwargs)

    def exported(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Specialization, GraphModule]:
        """The program for a call, as a module over the very tensors of the result.

        Raises:
            InputError: no program takes the call.
        """
        return self._engine.exported(args, kwargs)

    def specialize(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        """Capture and rewrite the model for an example call, unless a program that takes it exists."""
        self._engine.announce(args, kwargs or {})

    def warmup(self, *args: Any, **kwargs: Any) -> None:
        """Compile for calls like this one, so that the first of them waits for nothing.

        Nothing else changes: neither buffers that a call writes nor random numbers. What counts is what a call is
        compiled for: sizes, strides, dtypes and devices of tensors, other arguments by value, whether a tensor
        requires a gradient, and autocast. Such calls are ready from then on, in the sense of ``on_new_shape``, and
        their compiled code is kept.

        Raises:
            InputError, CaptureError, VerificationError: as for the call itself.
        """
        self._engine.warm(args, kwargs)

    def refold(self) -> None:
        """Compute everything that was derived from weights again, whether or not a change was noticed."""
        self._engine.refresh(force=True)

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the programs, their weights and the report to a file that :func:`rewrite.load` reads.

        The file holds no code and no pickles. What is needed to run is in it, and two rows of the example inputs with
        their outputs, to check it with. A file of that name is replaced at once.

        Raises:
            ArtifactError: there is no program yet, or something in one that cannot be saved.
            OSError: the file cannot be written.
        """
        write(path, self._packed())

    def _packed(self) -> bytes:
        artifact = self._engine.artifact()
        return packed(artifact.members(), {"model": artifact.model, "pipeline": artifact.settings.pipeline})

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def report(self) -> Any:
        """What was rewritten, what was not, and why.

        Raises:
            RewriteError: the model has not been captured yet.
        """
        return self._engine.newest()[0].program.report

    @property
    def plan(self) -> Any:
        """The rewrites that were made, a :class:`~rewrite.plan.Plan` to keep and to make again.

        It is that of the first program; programs for other sizes of images have plans of their own.

        Raises:
            RewriteError: the model has not been captured yet.
        """
        return self._engine.newest()[0].program.plan

    @property
    def lowerings(self) -> tuple[Lowered, ...]:
        """What each kind of call that was seen runs on, the newest last, with the times by which it was chosen.

        Empty before the first call, after weights have changed, and for calls that run operator by operator because
        they could not be lowered.
        """
        return self._engine.lowerings

    @property
    def kernels(self) -> tuple[Generated, ...]:
        """The kernels that were written for the calls that were seen, once each: ``print(kernel.source)`` shows one.

        Empty where no lowering wrote any, as on a CPU.
        """
        found = {kernel.name: kernel for lowered in self.lowerings for kernel in lowered.kernels}
        return tuple(found.values())

    def export_kernels(self, directory: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write each of :attr:`kernels` as a file that stands alone: with a reference, a check and a benchmark.

        Args:
            directory: made where it is not there; files of the same names are written anew.

        Returns:
            The files.

        Raises:
            OSError: they cannot be written.
        """
        into = Path(directory)
        into.mkdir(parents=True, exist_ok=True)
        paths = []
        for kernel in self.kernels:
            path = into / f"{kernel.name}.py"
            write(path, kernel.standalone.encode())
            paths.append(path)
        return tuple(paths)

    def program(self) -> tuple[Graph, dict[str, Tensor]]:
        """The rewritten program as lowerings get it, and its present weights by name; neither may be changed.

        Raises:
            RewriteError: the model has not been captured yet.
        """
        special, weights = self._engine.newest()
        return special.graph, {name: tensor.detach() for name, tensor in zip(special.names, weights.plain, strict=True)}

    @property
    def graph_module(self) -> GraphModule:
        """The rewritten program in ATen operators, with folded weights as buffers.

        It is made again after weights have changed; one that was read before is not updated.

        Raises:
            RewriteError: the model has not been captured yet.
        """
        special, weights = self._engine.newest()
        known = self.__dict__.get("_graph_module")
        if known is None or known[0] is not weights:
            tensors = dict(zip(special.names, weights.plain, strict=True))
            tensors.update((name, tensors[name].clone()) for name in special.written)
            for name in special.registered.intersection(tensors):
                mine = find(self, name)
                if isinstance(mine, nn.Parameter):
                    tensors[name] = nn.Parameter(tensors[name], requires_grad=mine.requires_grad)
            known = self.__dict__["_graph_module"] = weights, special.graph.to_module(tensors)
        return known[1]

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if "_engine" not in own or name.startswith("__"):
            return super().__getattr__(name)
        if any(name in own[kind] for kind in _TREE):
            own["_engine"].observe()
            return super().__getattr__(name)
        return read_through(own["_engine"].source, name)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As in ``nn.Module``; the parts hold tensors and cannot be called."""
        self._observe()
        if "_engine" in self.__dict__:
            self._engine.prepare()
        yield from super().named_modules(*args, **kwargs)

    def named_children(self) -> Iterator[Any]:
        """As in ``nn.Module``; the parts hold tensors and cannot be called."""
        self._observe()
        yield from super().named_children()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of the model: the same keys in the same order."""
        self._observe()
        return super().state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """The lowerings that were chosen by time: ``fastest: onnxruntime (17.2 ms; inductor 18.9)``."""
        lowered = self._engine.lowerings if "_engine" in self.__dict__ else ()
        return "\n".join(f"({each})" for each in lowered if each.choice is not None)

    def _get_name(self) -> str:
        return f"Optimized{self._source_name}"

    def _observe(self) -> None:
        if "_engine" in self.__dict__:
            self._engine.observe()

    # -- changing -----------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> OptimizedModule:
        """Do nothing for ``False``.

        Raises:
            RewriteError: for ``True``: a module for inference has no training mode.
        """
        if mode:
            raise RewriteError(TRAINING)
        return self

    def stop_following(self) -> None:
        """Copy the weights; from then on changes of the model do not reach the result."""
        self._engine.stop_following()

    def changes(self, module: nn.Module, fn: Callable[[Tensor], Tensor]) -> bool:
        """Whether ``fn`` changes a tensor of a part; if so, the result follows the model no longer."""
        return self._engine.changes(module, fn)

    def __deepcopy__(self, memo: dict[int, Any]) -> OptimizedModule:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        Mirror.__init__(twin, self, twin)
        twin.__dict__.update(copy.deepcopy(self._others(), memo))
        twin.__dict__["_engine"] = self._engine.copy(twin)
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As the file that :meth:`save` writes: what is unpickled knows nothing of the model."""
        from rewrite.result.standalone import unpickled  # which makes results

        return unpickled, (self._packed(), self._engine.lowering, self._engine.shapes), self._others()

    def _others(self) -> dict[str, Any]:
        """What the caller and ``nn.Module`` have as attributes of the result."""
        own = _OWN.union(recording.constant_names(self))
        return {key: value for key, value in self.__dict__.items() if key not in own}
