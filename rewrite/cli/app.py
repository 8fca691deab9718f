"""The commands and their options.

Commands import what they run when they run, so that ``--help`` and ``--version`` answer without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rewrite.cli import options as opt
from rewrite.cli.session import session
from rewrite.cli.terminal import Terminal
from rewrite.lowered import Lower
from rewrite.versions import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESULTS = "What is printed and written"

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 what was asked for failed (verification, a check, bisect without a culprit), 2 wrong "
           "usage or a model or input that does not fit, 130 interrupted. Results go to stdout, progress and errors to "
           "stderr.",
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", rich_help_panel=_RESULTS, help="Print data instead of text.")]
Diff = Annotated[str | None, typer.Option(
    metavar="RULE", show_default=False, rich_help_panel=_RESULTS,
    help='Print the diff of a rule or pass instead of the report; of every rewrite for "all".',
)]  # fmt: skip
Reproduce = Annotated[int | None, typer.Option(
    metavar="N", show_default=False, rich_help_panel=_RESULTS,
    help="Print rewrite number N of the diff instead, as a script that needs torch alone.",
)]  # fmt: skip


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"torch-rewrite {__version__}")
        raise typer.Exit


@app.callback()
def _commands(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Rewrite PyTorch models; every rewrite is checked against what it replaces, and the whole against the model."""


@app.command()
def optimize(
    model: opt.Model,
    inputs: opt.Inputs = None,
    model_options: opt.ModelOptions = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    seed: opt.Seed = 0,
    method: opt.Method = None,
    pipeline: opt.Steps = None,
    exclude: opt.Exclude = None,
    numerics: opt.Numerics = "default",
    tune: opt.Tune = None,
    budget: opt.Budget = None,
    verify: opt.Verify = "default",
    fuel: Annotated[int | None, typer.Option(
        metavar="N", show_default=False, rich_help_panel=opt.REWRITING, help="Make at most N rewrites."
    )] = None,
    plan: Annotated[Path | None, typer.Option(
        metavar="FILE", show_default=False, rich_help_panel=opt.REWRITING,
        help="Make the rewrites of this plan, which --save-plan wrote, instead of searching.",
    )] = None,
    cache: Annotated[bool, typer.Option(
        "--cache/--no-cache", rich_help_panel=opt.REWRITING, help="Use and keep programs between runs."
    )] = True,
    lower: Annotated[Lower | None, typer.Option(
        metavar="NAME", show_default=False, rich_help_panel=opt.REWRITING,
        help="Run the result once, which compiles it: on inductor, onnxruntime or openvino, operator by operator on "
             "eager, or on the fastest of them. By default it is run with --compare only, and on inductor where a "
             "compiler is found.",
    )] = None,
    compare: Annotated[bool, typer.Option(
        "--compare", rich_help_panel=_RESULTS, help="Also time the result against the model."
    )] = False,
    json: Json = False,
    diff: Diff = None,
    reproduce: Reproduce = None,
    save: Annotated[Path | None, typer.Option(
        metavar="FILE", show_default=False, rich_help_panel=_RESULTS, help="Write the result for rewrite.load."
    )] = None,
    save_plan: Annotated[Path | None, typer.Option(
        metavar="FILE", show_default=False, rich_help_panel=_RESULTS, help="Write the plan, for --plan."
    )] = None,
    report: Annotated[Path | None, typer.Option(
        metavar="FILE", show_default=False, rich_help_panel=_RESULTS,
        help="Write the report: as a page (.html), as data (.json), or as text.",
    )] = None,
    quiet: opt.Quiet = False,
    traceback: opt.Traceback = False,
) -> None:  # fmt: skip
    """Optimize a model for inference, verify it, and print the report."""
    with session(quiet, traceback) as terminal:
        from rewrite.cli import optimizing
        from rewrite.cli.reporting import Part

        subject = opt.Subject.of(model, inputs, model_options, dtype, device, seed)
        optimizing.run(
            terminal, subject, Part(json, diff, reproduce), optimizing.Files(save, save_plan, report),
            plan=plan, lower=lower, compare=compare, method=method, pipeline=pipeline, exclude=tuple(exclude or ()),
            numerics=numerics, tune=tune, budget=budget, verify=verify, fuel=fuel, cache=cache,
        )  # fmt: skip


@app.command()
def explain(
    model: opt.Model,
    inputs: opt.Inputs = None,
    model_options: opt.ModelOptions = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    seed: opt.Seed = 0,
    method: opt.Method = None,
    train: Annotated[bool, typer.Option(
        "--train", rich_help_panel=opt.CALL, help="Put the model in training mode, not in evaluation mode."
    )] = False,
    rule: Annotated[str | None, typer.Option(
        metavar="NAME", show_default=False, rich_help_panel=opt.REWRITING,
        help="Explain this rule or pass alone. Default: every exact rule.",
    )] = None,
    pipeline: opt.Steps = None,
    exclude: opt.Exclude = None,
    numerics: opt.Numerics = "default",
    verify: opt.Verify = "default",
    json: Json = False,
    quiet: opt.Quiet = False,
    traceback: opt.Traceback = False,
) -> None:  # fmt: skip
    """Say where rules began to match in a model and did not: the line, the reason and the remedy."""
    with session(quiet, traceback) as terminal:
        from rewrite.cli import explaining

        subject = opt.Subject.of(model, inputs, model_options, dtype, device, seed)
        explaining.run(terminal, subject, rule=rule, training=train, data=json, method=method, pipeline=pipeline,
                       exclude=tuple(exclude or ()), numerics=numerics, verify=verify)  # fmt: skip


@app.command()
def offers(
    model: opt.Model,
    inputs: opt.Inputs = None,
    model_options: opt.ModelOptions = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    seed: opt.Seed = 0,
    method: opt.Method = None,
    rules: Annotated[str | None, typer.Option(
        metavar="TEXT", show_default=False, rich_help_panel=opt.REWRITING,
        help='The rules that are asked, such as "merge-support, space-to-batch". Default: every choice.',
    )] = None,
    pipeline: opt.Steps = None,
    exclude: opt.Exclude = None,
    numerics: opt.Numerics = "default",
    verify: opt.Verify = "default",
    refusals: Annotated[bool, typer.Option(
        "--refusals", rich_help_panel=_RESULTS, help="Print why there are no other offers instead."
    )] = False,
    diff: Annotated[str | None, typer.Option(
        metavar="RULE", show_default=False, rich_help_panel=_RESULTS,
        help='Print the diffs of what a rule offers instead; of every offer for "all".',
    )] = None,
    json: Json = False,
    quiet: opt.Quiet = False,
    traceback: opt.Traceback = False,
) -> None:  # fmt: skip
    """List what choices could be made in a model, verified, with the estimated cost of both sides."""
    with session(quiet, traceback) as terminal:
        from rewrite.cli import offering

        subject = opt.Subject.of(model, inputs, model_options, dtype, device, seed)
        offering.run(terminal, subject, rules=rules, refusals=refusals, diff=diff, data=json, method=method,
                     pipeline=pipeline, exclude=tuple(exclude or ()), numerics=numerics, verify=verify)  # fmt: skip


@app.command()
def filters(
    model: opt.Model,
    inputs: opt.Inputs = None,
    model_options: opt.ModelOptions = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    seed: opt.Seed = 0,
    method: opt.Method = None,
    pipeline: opt.Steps = None,
    exclude: opt.Exclude = None,
    verify: opt.Verify = "default",
    json: Json = False,
    quiet: opt.Quiet = False,
    traceback: opt.Traceback = False,
) -> None:  # fmt: skip
    """Measure the filters of convolutions, before and after rewrites: which are sparse, alike, or as random ones."""
    with session(quiet, traceback) as terminal:
        from rewrite.cli import filtering

        subject = opt.Subject.of(model, inputs, model_options, dtype, device, seed)
        filtering.run(terminal, subject, data=json, method=method, pipeline=pipeline, exclude=tuple(exclude or ()),
                      verify=verify)  # fmt: skip


@app.command()
def bisect(
    model: opt.Model,
    inputs: opt.Inputs = None,
    model_options: opt.ModelOptions = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    seed: opt.Seed = 0,
    method: opt.Method = None,
    check: Annotated[str | None, typer.Option(
        metavar="MODULE:FUNCTION", show_default=False, rich_help_panel=opt.CALL,
        help="Called with the result after some rewrites and the inputs; says whether it is good, or asserts it. "
             "Default: the whole model is verified.",
    )] = None,
    pipeline: opt.Steps = None,
    exclude: opt.Exclude = None,
    numerics: opt.Numerics = "default",
    verify: opt.Verify = "off",
    lower: Annotated[Lower, typer.Option(
        metavar="NAME", rich_help_panel=opt.REWRITING,
        help="What the check runs on: eager, or inductor, onnxruntime, openvino or fastest, which compile for each "
             "run.",
    )] = "eager",
    reproduce: Annotated[Path | None, typer.Option(
        metavar="FILE", show_default=False, rich_help_panel=_RESULTS,
        help="Write the rewrite as a script that needs torch alone.",
    )] = None,
    quiet: opt.Quiet = False,
    traceback: opt.Traceback = False,
) -> None:  # fmt: skip
    """Find the first rewrite that makes a check fail."""
    with session(quiet, traceback, shown=("captured", "bisect")) as terminal:
        from rewrite.cli import bisecting

        subject = opt.Subject.of(model, inputs, model_options, dtype, device, seed)
        bisecting.run(terminal, subject, check=check, reproduce=reproduce, method=method, pipeline=pipeline,
                      exclude=tuple(exclude or ()), numerics=numerics, verify=verify, lower=lower)  # fmt: skip


@app.command()
def passes(json: Json = False, quiet: opt.Quiet = False, traceback: opt.Traceback = False) -> None:
    """List every pass and rule that a pipeline can name, plug-ins included."""
    with session(quiet, traceback) as terminal:
        from rewrite.cli import steps

        steps.run(terminal, data=json)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", show_default=False, help="What --save wrote.")],
    program: Annotated[int, typer.Option(metavar="N", help="Which of its programs.")] = 1,
    verify: Annotated[bool, typer.Option(
        "--verify", help="Load it too: each program has to give the outputs that were saved with it."
    )] = False,
    json: Json = False,
    diff: Diff = None,
    reproduce: Reproduce = None,
    plan: Annotated[bool, typer.Option("--plan", rich_help_panel=_RESULTS, help="Print the plan instead.")] = False,
    quiet: opt.Quiet = False,
    traceback: opt.Traceback = False,
) -> None:  # fmt: skip
    """Print the report of a saved result."""
    with session(quiet, traceback) as terminal:
        from rewrite.cli import saved
        from rewrite.cli.reporting import Part

        saved.run(terminal, file, Part(json, diff, reproduce, plan), number=program, verify=verify)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of the process.

    Returns:
        The exit code: 0 for success, 1 where what was asked for failed, 2 for wrong usage or a model or input that does
        not fit, 130 after Ctrl-C.
    """
    command = typer.main.get_command(app)
    try:
        return int(command.main(arguments, standalone_mode=False) or 0)
    except typer.TyperException as error:
        message = error.format_message()
        if message:  # else help was shown, for want of a command
            context = getattr(error, "ctx", None)
            hint = "" if context is None else f" (see {context.command_path} --help)"
            Terminal().fail(f"{message.rstrip('.')}{hint}")
        return error.exit_code
