"""``optimize`` and ``transform``: capture, rewrite, verify, and hand over a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

import passes
from rewrite import compat
from rewrite.api.arguments import call_of, lowering_of, recipe_of, require_live, require_original, target_of, tuning_of
from rewrite.api.folding import unfolded_note
from rewrite.cache import default_cache
from rewrite.compiler import Compiler
from rewrite.errors import InputError
from rewrite.result import OptimizedModule, Shapes, TransformedModule, released
from rewrite.trace import bound, unwrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rewrite.listener import Listener
    from rewrite.lowered import Lower
    from rewrite.lowering import Lowering
    from rewrite.numerics import Numerics
    from rewrite.plan import Plan
    from rewrite.recipe import Verify
    from rewrite.result import Policy
    from rewrite.select import Tune


def optimize(
    model: nn.Module,
    example_inputs: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    method: str | None = None,
    pipeline: Any = None,
    exclude: str | Iterable[str] = (),
    verify: Verify = "default",
    lower: Lower | Lowering | None = None,
    tune: Tune | None = None,
    budget: float | None = None,
    fuel: int | None = None,
    plan: Plan | str | None = None,
    numerics: Numerics = "default",
    listeners: Sequence[Listener] = (),
    release: bool = False,
    on_new_shape: Policy = "compile",
    cache: bool = True,
) -> OptimizedModule:
    """Rewrite a model for inference; the result has been checked against the model itself.

    The model is not changed. The result reads the model's own weights and notices when they change: then the folded
    weights are computed again. Any batch size runs; another image size is captured when it is first seen.

    Args:
        model: a module in evaluation mode. A module that is optimized already is returned as it is.
        example_inputs: the argument, or a tuple of the positional arguments (a list is one argument). Without any
            example the first call captures.
        example_kwargs: keyword arguments of the example call.
        method: the method that the result computes instead of ``forward``, such as timm's ``"forward_features"``.
        pipeline: passes to run: text such as ``"simplify, reparameterize{max_kernel=31}"``, a
            :class:`~rewrite.pipeline.Pipeline`, a rule or pass, or several of these. Default: every exact pass, for
            which the name ``default`` stands in a text: ``"default, merge-support, fold-constants"``. What rules
            compute from weights is folded by the ``fold-constants`` behind them.
        exclude: names of passes and rules that do not run, and paths of modules that are left as they are.
        verify: ``"default"`` checks each match and the whole model; ``"thorough"`` draws more, at full sizes; ``"off"``
            checks nothing.
        lower: ``"inductor"`` compiles with TorchInductor, ``"eager"`` runs the operators one by one.
            ``"onnxruntime"`` and ``"openvino"`` run the program in that runtime, on the CPU, once it has given on the
            call that it is compiled for what torch gives: within half of the digits, relative to the largest value of
            an output. ``"fastest"`` times all of these that are there on each kind of call, and leaves the default
            for what saves more than the noise; ``result.lowerings`` has the figures. An object with the interface of
            :class:`~rewrite.lowering.Lowering` is used as it is. Default: Inductor where a C++
            compiler is found. What fails runs operator by operator, with a warning.
        tune: how algorithms and layouts are chosen. ``"quick"`` times what the pipeline's ``select`` offers beside what
            is there, as it is lowered and for the sizes of the example, decides for the whole program at once, and
            keeps the choice if the program is faster as a whole; compiled programs call convolutions of our own where
            these are faster than the libraries'; ``"full"`` times each more often; ``"off"`` times nothing and chooses
            nothing, as on devices other than the CPU. Default: ``TORCH_REWRITE_TUNE`` of the
            environment, else ``"quick"``.
        budget: seconds that timing operators may take for one program, 20 for ``"quick"`` and 300 for ``"full"`` by
            default; what is not timed by then stays as it is. To compare the whole programs a second one is lowered.
        fuel: at most so many rewrites; :func:`rewrite.bisect` finds the one that makes a difference.
        plan: the plan of an earlier result, or its JSON: its rewrites are made again, with its pipeline and exclusions,
            and nothing is searched. Each of them, and the whole model, is still verified as ``verify`` says. The first
            example has to give the program that the plan is for; programs for other sizes of images are searched where
            the plan is not for them.
        numerics: ``"default"`` runs every rule that the pipeline names. ``"elementwise"`` keeps out those that do not
            bound the error of each element by that element's own terms, even where it names them: after a transform
            rounding, NaN and infinities reach places that they did not reach before. The report says what was kept out.
        listeners: hear every match, miss and rewrite as it happens.
        release: the result keeps copies of the weights that it still needs, and nothing of the model, whose memory is
            free as soon as you drop it. It does not follow the model, and takes calls like the example, of any batch.
        on_new_shape: what becomes of a call unlike the example and each ``result.warmup(...)``, in sizes, strides,
            dtypes, devices, other arguments or autocast: ``"compile"`` captures, where no program takes it, and
            compiles; ``"eager"`` compiles nothing, and such a call runs operator by operator (sizes that no program
            takes are captured all the same); ``"error"`` raises an ``InputError`` before anything is done. Without an
            example the first call decides.
        cache: use programs and measurements that an earlier process made, and keep these for later ones. Programs are
            checked against the model as new ones are.

    Returns:
        A module with the model's signature and ``state_dict``, and with ``report``, ``graph_module``, ``warmup()`` and
        ``refold()``.

    Raises:
        InputError: an argument does not fit; the message names the remedy.
        CaptureError: the model cannot be captured as a functional graph.
        PipelineError: an unknown pass or option.
        PlanError: the plan cannot be read, or is not for this model and example.
        VerificationError: the rewritten model as a whole is not equal to the source.
        ArtifactError: with ``release``: something in the program cannot be separated from the model.
    """
    given = example_inputs is not None or example_kwargs is not None
    if isinstance(model, OptimizedModule):
        return released(model) if release else model
    if release and not given:
        raise InputError("release=True needs an example, since nothing can be captured later; pass example_inputs")
    model = bound(unwrap(model), method)
    target = target_of(tune, cache)
    lowering = lowering_of(lower, target=target, numerics=numerics)
    recipe = recipe_of(model, pipeline, exclude, plan, verify=verify, fuel=fuel, numerics=numerics,
                       listeners=tuple(listeners), tuning=tuning_of(tune, budget, lowering, target))  # fmt: skip
    compiler = Compiler(model, recipe, cache=default_cache() if cache else None, remark=unfolded_note)
    result = OptimizedModule(model, compiler.compile, lowering, shapes=Shapes(on_new_shape))
    if given:
        result.specialize(*call_of(example_inputs, example_kwargs))
    return released(result) if release else result


def transform(
    model: nn.Module,
    example_inputs: Any,
    pipeline: Any = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    method: str | None = None,
    exclude: str | Iterable[str] = (),
    verify: Verify = "default",
    fuel: int | None = None,
    plan: Plan | str | None = None,
    numerics: Numerics = "default",
    listeners: Sequence[Listener] = (),
) -> TransformedModule:
    """Rewrite a model and keep its parameters live: the result computes with the very same ``Parameter`` objects.

    An optimizer over the model's parameters trains the result, and the other way round. Nothing is folded: the algebra
    on weights stays in the graph and is differentiated. The model's mode is kept: in training mode batch norms use and
    update their statistics, and rules that need fixed statistics do not match.

    Args:
        model: a module in training or evaluation mode; for DistributedDataParallel the module itself, whose result is
            then wrapped.
        example_inputs: a tensor, or a tuple of the positional arguments.
        pipeline: passes to run; default, also under the name ``default``: the exact passes that keep weights live.
        example_kwargs, method, exclude, verify, fuel, plan, numerics, listeners: as in :func:`optimize`.

    Raises:
        InputError, CaptureError, PipelineError, PlanError, VerificationError: as in :func:`optimize`.
        PipelineError: also for a rule that holds for the present values of the weights only.
    """
    require_original(model, "transform")
    wrapper = compat.uncompiled(model)
    if isinstance(wrapper, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise InputError(
            f"{type(wrapper).__name__} would not see the result's gradients; pass its module, and wrap what transform "
            "returns"
        )
    model = bound(unwrap(model), method)
    recipe = recipe_of(model, pipeline, exclude, plan, default=passes.live_pipeline(), verify=verify, fuel=fuel,
                       numerics=numerics, listeners=tuple(listeners))  # fmt: skip
    require_live(recipe.pipeline)
    compiler = Compiler(model, recipe, training=True)
    return TransformedModule(model, compiler.compile(*call_of(example_inputs, example_kwargs)))
