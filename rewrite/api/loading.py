"""``load``: from a file to a result, checked again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewrite.api.arguments import lowering_of, pipeline_of
from rewrite.api.folding import unfolded_note
from rewrite.artifact import Artifact, refusing, unpacked
from rewrite.cache import default_cache
from rewrite.cache.keys import identity_or_none
from rewrite.compiler import Compiler
from rewrite.errors import CaptureError, InputError, PipelineError, RewriteError, VerificationError, reason_of
from rewrite.events import emit
from rewrite.recipe import Recipe
from rewrite.result import OptimizedModule, Shapes, from_artifact
from rewrite.result.modes import neutral
from rewrite.revival import check_weights, revive
from rewrite.trace import bound, check_model, unwrap

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from rewrite.artifact import StoredProgram
    from rewrite.lowered import Lower
    from rewrite.lowering import Lowering
    from rewrite.recipe import Settings
    from rewrite.result import Policy, Program


def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    method: str | None = None,
    lower: Lower | Lowering | None = None,
    any_torch: bool = False,
    on_new_shape: Policy = "compile",
) -> OptimizedModule:
    """The result that ``result.save(path)`` wrote, verified again.

    Without ``model`` the result stands alone: no code of the model is needed, it runs on the weights of the file, and
    it takes the calls that were saved, with any batch. Each program has to give the outputs that were saved with it.

    With ``model`` the result is over the model's own weights, which it follows as that of :func:`optimize` does; calls
    that were not saved are captured. Each program is compared with the model on the saved sample. Where the model is
    not the one that was saved (another attribute, other code, another device), where it holds something that cannot be
    compared, and where random numbers are drawn, the saved calls are captured anew; the log tells.

    Nothing is imported for a file, and no code of it runs: it names operators of torch that compute, and of the model
    only ``forward`` is called, or what ``method`` names. How much time and memory they need is up to the file. What
    ``report.reproduce`` writes is text of the file: to run that script is to run code of the file.

    Args:
        path: the file.
        model: the model that was saved, or one with weights of the same names, shapes and dtypes, in evaluation mode;
            not changed.
        method: with ``model``, the method that was saved, as in :func:`optimize`.
        lower: as in :func:`optimize`.
        any_torch: take a file that was saved with another torch.
        on_new_shape: as in :func:`optimize`; here the first call, or ``result.warmup(...)``, decides what is not new.

    Raises:
        ArtifactError: the file is damaged, of another format or torch, or does not fit the model.
        VerificationError: a program does not compute what it should.
        InputError: an argument does not fit, or a saved call has to be captured anew by a pipeline that no name tells.
        CaptureError: the model cannot be captured for a saved call.
        OSError: the file cannot be read.
    """
    lowering_of(lower)  # a name that is unknown is said before anything is read
    shapes = Shapes(on_new_shape)
    name = f"'{os.fspath(path)}'"
    data = Path(path).read_bytes()
    with refusing(f"{name} cannot be read", VerificationError):
        artifact = Artifact.of(unpacked(data, name, any_torch))
        lowering = lowering_of(lower, numerics=artifact.settings.numerics)
        if model is None:
            return from_artifact(artifact, lowering, name, shapes=shapes)
    saved = artifact.settings.method
    if (method or "forward") != (saved or "forward"):  # a file is not to choose what of the model is called
        raise InputError(f"method={method!r} is not what {name} was saved of; pass method={saved!r} if that is meant")
    return _over(bound(unwrap(model), method), artifact, lowering, name, shapes)


def _over(
    model: nn.Module, artifact: Artifact, lowering: Lowering | None, name: str, shapes: Shapes
) -> OptimizedModule:
    """A result over a model's own weights."""
    check_model(model, training=False)
    note = f"loaded from {name}: its matches were verified when it was made, the whole model again"
    with refusing(f"{name} cannot be read"):
        compile_program = _compiler(model, artifact.settings)
    kind = type(model).__name__
    identity, doubt = identity_or_none(model)
    programs, outdated = [], []
    for stored in artifact.programs:
        with refusing(f"{name} cannot be read"):
            args, kwargs = stored.example(_device(model))
            check_weights(model, stored)
        reason = _outdated(stored, identity, doubt)
        if reason:
            emit("load-anew", f"{kind}: a saved program is made anew: {reason}", model=kind, reason=reason)
            with neutral():
                outdated.append(compile_program(args, kwargs))
            continue
        try:
            with neutral(), refusing(f"{name} cannot be read", RewriteError):
                programs.append(
                    revive(model, stored, args, kwargs, settings=artifact.settings, phase="loading", note=note)
                )
        except (CaptureError, InputError) as error:
            raise VerificationError(
                f"{name} is no program of this {kind}: {reason_of(error)}; pass the model that was "
                "saved, or optimize this one"
            ) from error
    return OptimizedModule(model, compile_program, lowering, [*programs, *outdated], shapes=shapes)


def _outdated(stored: StoredProgram, identity: str | None, doubt: str) -> str:
    """Why a saved program is not for a model of this identity; '' where it is."""
    if stored.value_rules:
        return f"the rule '{stored.value_rules[0]}' held for the weights that the model had then"
    if stored.decided:
        return f"forward decides on the value of '{stored.decided[0]}', which the file does not have"
    if identity is None:
        return doubt
    if stored.identity is None:
        return "it draws random numbers, or the model that was saved held what cannot be compared"
    return "" if stored.identity == identity else "the model is not the one that was saved"


def _device(model: nn.Module) -> torch.device | None:
    tensors = (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.dim() > 0)
    return next((tensor.device for tensor in tensors), None)


def _compiler(model: nn.Module, settings: Settings) -> Callable[[tuple[Any, ...], dict[str, Any]], Program]:
    """What captures calls that were not saved, as the saved ones were."""
    try:
        steps = pipeline_of(settings.pipeline)
    except PipelineError as error:
        reason = str(error)

        def refuse(args: tuple[Any, ...], kwargs: dict[str, Any], tuned: bool = True) -> Program:
            raise InputError(
                f"no saved program takes this call, and others cannot be made: {reason}; optimize the model instead"
            )

        return refuse
    recipe = Recipe(
        steps, settings.exclude, settings.verify, settings.fuel, numerics=settings.numerics  # type: ignore[arg-type]
    )  # fmt: skip
    return Compiler(model, recipe, cache=default_cache(), remark=unfolded_note).compile
