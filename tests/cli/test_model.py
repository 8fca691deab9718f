"""The model of a command: where it comes from, and what it is given."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rewrite.cli.model import Example, example_of
from rewrite.cli.options import Subject
from rewrite.cli.terminal import Terminal
from rewrite.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = ("1,3,8,8",)


@pytest.fixture(autouse=True)
def _search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


def made(model: str, *options: str, inputs: tuple[str, ...] = IMAGE, training: bool = False, **more: Any) -> Example:
    given = {"dtype": None, "device": None, "seed": 0, **more}
    return example_of(Subject(model, inputs, options, **given), Terminal(quiet=True), training)


def test_classes_functions_and_modules() -> None:
    for name in ("Branches", "branches", "Timid", "MODULE"):
        example = made(f"tests.cli.nets:{name}")
        assert not any(module.training for module in example.model.modules())
        assert example.model(*example.args).shape[0] == 1


def test_in_training_mode() -> None:
    assert all(module.training for module in made("tests.cli.nets:Branches", training=True).model.modules())


def test_the_seed_decides_weights_and_inputs() -> None:
    def numbers(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        example = made("tests.cli.nets:Branches", seed=seed)
        return example.model.head.weight.detach(), example.args[0]

    for first, again, other in zip(numbers(0), numbers(0), numbers(1), strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_options_are_literals_words_or_text() -> None:
    model = made("tests.cli.nets:Branches", "width=6", "bias=False").model
    assert model.wide.weight.shape[0] == 6
    assert model.wide.bias is None
    assert made("tests.cli.nets:Branches", "bias=false").model.wide.bias is None
    with pytest.raises(InputError, match="--model-option 'width' is not NAME=VALUE"):
        made("tests.cli.nets:Branches", "width")
    with pytest.raises(InputError, match="unexpected keyword argument 'depth'; give its arguments by --model-option"):
        made("tests.cli.nets:Branches", "depth=2")
    with pytest.raises(InputError, match="is a module already and takes no --model-option"):
        made("tests.cli.nets:MODULE", "depth=2")


def test_dtype_and_device() -> None:
    example = made("tests.cli.nets:Branches", dtype="bfloat16")
    assert example.model.head.weight.dtype is example.args[0].dtype is torch.bfloat16
    assert made("tests.cli.nets:Branches", device="cpu").args[0].device.type == "cpu"
    with pytest.raises(InputError, match="--dtype int8 is no floating-point dtype"):
        made("tests.cli.nets:Branches", dtype="int8")
    for device in ("xpu:7", "nonsense"):
        with pytest.raises(InputError, match=f"--device {device} is no device of this machine; there are .*cpu"):
            made("tests.cli.nets:Branches", device=device)


def test_keyword_arguments() -> None:
    example = made("tests.cli.nets:Tokens", inputs=("1,5:int64:20", "mask=1,5:bool"))
    assert list(example.kwargs) == ["mask"]
    assert example.model(*example.args, **example.kwargs).shape == (1, 5, 4)


def test_a_model_that_says_what_it_takes() -> None:
    assert made("tests.cli.nets:Timid", inputs=()).args[0].shape == (1, 3, 8, 8)
    with pytest.raises(InputError, match="does not say what it takes; give each of its inputs"):
        made("tests.cli.nets:Branches", inputs=())


def test_models_of_timm() -> None:
    example = made("timm:test_vit", "num_classes=7", inputs=())
    assert example.args[0].shape == (1, *example.model.pretrained_cfg["input_size"])
    assert example.model.num_classes == 7
    with pytest.raises(InputError, match="timm has no model 'resnet81'; did you mean 'resnet18'"):
        made("timm:resnet81")
    with pytest.raises(InputError, match=r"timm.create_model\('test_vit'\) raises TypeError"):
        made("timm:test_vit", "colour=3")


def test_a_file_finds_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("WIDTH = 3\n")
    (tmp_path / "my_net.py").write_text(
        textwrap.dedent("""\
        from torch import nn
        from beside_it import WIDTH

        class Nets:
            small = staticmethod(lambda: nn.Conv2d(3, WIDTH, 1))
    """)
    )
    assert made(f"{tmp_path / 'my_net.py'}:Nets.small").model.out_channels == 3


def test_a_file_that_has_the_name_of_a_module(tmp_path: Path) -> None:
    path = tmp_path / "json.py"
    path.write_text("from torch import nn\nimport json\nnet = nn.Conv2d(3, len(json.dumps([1])), 1)\n")
    assert made(f"{path}:net").model.out_channels == 3
    assert sys.modules["json"].__file__ != str(path)


@pytest.mark.parametrize(("model", "words"), [
    ("tests.cli.nets", "'tests.cli.nets' is no model; write timm:NAME, package.module:FACTORY or"),
    ("tests.cli.nets:", "'tests.cli.nets:' names no object"),
    ("tests.cli.nets:Brunches", "'tests.cli.nets' has no 'Brunches'; did you mean 'Branches'"),
    ("tests.cli.nuts:Branches", r"no module 'tests.cli.nuts'; run from .* a file is named tests/cli/nuts.py"),
    ("no_such.py:net", "there is no file 'no_such.py'"),
    ("tests.cli.nets:NUMBER", "'tests.cli.nets:NUMBER' is of type int, neither a module nor a factory of one"),
    ("tests.cli.nets:number", "'tests.cli.nets:number' returns no module, but a value of type int; name"),
    ("tests.cli.nets:sized", "missing a required argument: 'width'; give its arguments by --model-option"),
    ("tests.cli.nets:broken", r"making 'tests.cli.nets:broken' raises KeyError at nets.py:\d+ .*no such weights"),
    ("tests.cli.nets:leaving", "making 'tests.cli.nets:leaving' raises SystemExit.*bye"),
])  # fmt: skip
def test_what_is_no_model(model: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        made(model)


@pytest.mark.parametrize(("text", "words"), [
    ("import no_such_thing\n", r"importing '\w+' raises ModuleNotFoundError at \w+.py:1 .*'no_such_thing'"),
    ("1 / 0\n", r"importing '\w+' raises ZeroDivisionError at \w+.py:1"),
    ("net = (\n", r"importing '\w+' raises SyntaxError"),
    ("raise SystemExit\n", r"importing '\w+' raises SystemExit"),
], ids=["import", "division", "syntax", "exit"])  # fmt: skip
def test_a_module_that_does_not_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest, text: str, words: str
) -> None:
    name = f"broken_{request.node.callspec.id}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        made(f"{name}:net")
    with pytest.raises(InputError, match=words.replace("importing", "running").replace(r"'\w+'", r"'\w+.py'")):
        made(f"{name}.py:net")
    assert name not in sys.modules
