"""The options that commands share, and what they say of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

CALL, REWRITING, _OTHER = "The model and its inputs", "Rewriting", "Other"

Model = Annotated[str, typer.Argument(
    metavar="MODEL", show_default=False,
    help="timm:NAME, package.module:FACTORY or path/to/file.py:FACTORY, where FACTORY is a module, or a class or a "
         "function that makes one.",
)]  # fmt: skip
Inputs = Annotated[list[str] | None, typer.Option(
    "--input", "-i", metavar="SIZES", show_default=False, rich_help_panel=CALL,
    help="An example input, once for each: 1,3,224,224 is normal numbers; 1,128:int64 integers from 0 to 9, "
         "1,128:int64:1000 below 1000; mask=1,128:bool a keyword argument. Default: the size that a timm model names.",
)]  # fmt: skip
ModelOptions = Annotated[list[str] | None, typer.Option(
    "--model-option", metavar="NAME=VALUE", show_default=False, rich_help_panel=CALL,
    help="An argument of the factory, or of timm.create_model, such as pretrained=true.",
)]  # fmt: skip
Dtype = Annotated[str | None, typer.Option(
    metavar="DTYPE", show_default=False, rich_help_panel=CALL,
    help="Convert the model, and draw inputs, in this dtype: float16, bfloat16, ... Default: as the model is.",
)]  # fmt: skip
Device = Annotated[str | None, typer.Option(
    metavar="DEVICE", show_default=False, rich_help_panel=CALL,
    help="Move the model and the inputs there: cuda, cuda:1, ... Default: where the model is.",
)]  # fmt: skip
Seed = Annotated[int, typer.Option(
    metavar="N", rich_help_panel=CALL, help="Of the weights that a factory draws, and of the inputs."
)]  # fmt: skip
Method = Annotated[str | None, typer.Option(
    metavar="NAME", show_default=False, rich_help_panel=CALL, help="A method of the model instead of forward."
)]  # fmt: skip

Steps = Annotated[str | None, typer.Option(
    "--pipeline", metavar="TEXT", show_default=False, rich_help_panel=REWRITING,
    help='The passes to run, such as "simplify, fold-constants{floor=32}". Default: every exact pass, which "default" '
         'stands for in a text.',
)]  # fmt: skip
Exclude = Annotated[list[str] | None, typer.Option(
    metavar="NAME", show_default=False, rich_help_panel=REWRITING,
    help="A pass or rule that does not run, or the path of a module that is left as it is.",
)]  # fmt: skip
Numerics = Annotated[Literal["default", "elementwise"], typer.Option(
    metavar="NAME", rich_help_panel=REWRITING,
    help="elementwise keeps out rules that do not bound the error of each element by its own terms, even where the "
         "pipeline names them; default runs them.",
)]  # fmt: skip
Tune = Annotated[Literal["off", "quick", "full"] | None, typer.Option(
    metavar="NAME", show_default=False, rich_help_panel=REWRITING,
    help="How algorithms and layouts are chosen by time: off, quick or full. Default: TORCH_REWRITE_TUNE, else quick.",
)]  # fmt: skip
Budget = Annotated[float | None, typer.Option(
    metavar="SECONDS", show_default=False, rich_help_panel=REWRITING,
    help="How long operators may be timed for that.",
)]  # fmt: skip
Verify = Annotated[Literal["off", "default", "thorough"], typer.Option(
    metavar="LEVEL", rich_help_panel=REWRITING, help="How much is checked: off, default or thorough."
)]  # fmt: skip

Quiet = Annotated[bool, typer.Option(
    "--quiet", "-q", rich_help_panel=_OTHER, help="No progress; warnings and errors are shown all the same."
)]  # fmt: skip
Traceback = Annotated[bool, typer.Option(
    "--traceback", rich_help_panel=_OTHER, help="Show where an error came from."
)]  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """What a command works on, as the user wrote it.

    Attributes:
        model: where it comes from.
        inputs: the example.
        options: arguments of its factory.
        dtype, device: of model and inputs, None for those that the model has.
        seed: of weights and inputs.
    """

    model: str
    inputs: tuple[str, ...]
    options: tuple[str, ...]
    dtype: str | None
    device: str | None
    seed: int

    @classmethod
    def of(
        cls, model: str, inputs: list[str] | None, options: list[str] | None, dtype: str | None, device: str | None,
        seed: int,
    ) -> Subject:  # fmt: skip
        """From the parameters of a command."""
        return cls(model, tuple(inputs or ()), tuple(options or ()), dtype, device, seed)
