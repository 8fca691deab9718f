"""What cannot be saved, and files that are damaged, of another origin, or made to do harm."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from rewrite import ArtifactError, InputError, RewriteError, VerificationError, load
from rewrite.artifact.container import packed, unpacked
from rewrite.result import OptimizedModule, Program
from rewrite.trace import capture
from tests.loading.files import eager, edit
from tests.result.programs import image, net

aten = torch.ops.aten


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no program yet"):
        eager(net()).save(tmp_path / "net")
    model = net()
    bare = OptimizedModule(model, lambda args, kwargs: Program(capture(model, args, kwargs).graph))
    bare(image())
    with pytest.raises(ArtifactError, match="without the graph that it was captured as"):
        bare.save(tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "net"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(ArtifactError, match=f"'{path}' is a zip archive, but nothing that torch-rewrite saved"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")


def programs_of(path: Path) -> Any:
    return json.loads(unpacked(path.read_bytes(), "it")["programs.json"])


def written(path: Path, original: Path, member: str, data: Any) -> Path:
    """A copy of a file with another member: bytes, or data for JSON."""
    text = data if isinstance(data, bytes) else json.dumps(data).encode()
    path.write_bytes(packed({**unpacked(original.read_bytes(), "it"), member: text}, {}))
    return path


FIELDS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "model with NUL": (("model",), "a\0b"),
    "model of a number": (("model",), 3),
    "no programs": (("programs",), []),
    "level": (("settings", "verify"), 3),
    "weight of every module": (("weights", "__class__.forward"), None),
    "no sample": (("programs", 0, "sample"), []),
    "other sample": (("programs", 0, "sample"), [3]),
    "no outputs": (("programs", 0, "outputs"), []),
    "device": (("programs", 0, "graphs", "graphs", "captured", "nodes", 0, "value", "tensor", "device"), "x"),
    "graph": (("programs", 0, "graphs", "graphs", "rewritten"), None),
}


OF_THE_MODEL = ("level", "no sample", "other sample", "device", "graph")
"""Of the fields, those that are read over a model too."""


@pytest.mark.parametrize(("name", "over"), [(name, False) for name in FIELDS] + [(name, True) for name in OF_THE_MODEL])
def test_a_field_of_another_kind(made: Any, tmp_path: Path, name: str, over: bool) -> None:
    *path, key = FIELDS[name][0]
    data = programs_of(made[2])
    target = data
    for each in path:
        target = target[each]
    target[key] = FIELDS[name][1]
    file = written(tmp_path / "net", made[2], "programs.json", data)
    with pytest.raises((ArtifactError, VerificationError)):
        load(file, net() if over else None, lower="eager")


@pytest.mark.parametrize("member", ["programs.json", "plan.json", "report.json", "weights.safetensors"])
def test_members_that_are_something_else(made: Any, tmp_path: Path, member: str) -> None:
    for data in (b"", b"[" * 100_000, b"\xff\xfe", b"1" * 5000, b"null", b"[]", b"{}", b"[[]]"):
        with pytest.raises(ArtifactError):
            load(written(tmp_path / "net", made[2], member, data))


def test_members_that_are_missing_or_too_many(made: Any, tmp_path: Path) -> None:
    members = unpacked(made[2].read_bytes(), "it")
    for changed in ({**members, "more.json": b""}, {key: each for key, each in members.items() if key != "plan.json"}):
        (tmp_path / "net").write_bytes(packed(changed, {}))
        with pytest.raises(ArtifactError, match="the archive holds"):
            load(tmp_path / "net")


def test_attributes_of_the_file_replace_nothing_of_a_module(made: Any, tmp_path: Path) -> None:
    data = programs_of(made[2])
    data["attributes"] |= {"_parameters": 3, "training": True, "forward": 4, "__class__": 5, "eval": None}
    found = load(written(tmp_path / "net", made[2], "programs.json", data), lower="eager")
    assert (found.num_classes, found.training) == (5, False)
    assert torch.equal(found.eval()(image()), made[1](image()))


def test_a_file_does_not_choose_what_of_the_model_is_called(made: Any, tmp_path: Path) -> None:
    class Logs(type(made[0])):  # type: ignore[misc]
        def log(self, *args: Any) -> Any:
            raise AssertionError

    data = programs_of(made[2])
    data["settings"]["method"] = "log"
    model = Logs().eval()
    with pytest.raises(InputError, match="method=None is not what"):
        load(written(tmp_path / "net", made[2], "programs.json", data), model, lower="eager")


def test_an_allocation_that_no_machine_can_make(made: Any, tmp_path: Path) -> None:
    data = programs_of(made[2])
    data["programs"][0]["graphs"]["graphs"]["rewritten"]["nodes"].append({
        "kind": "call", "name": "huge", "target": "aten.empty.memory_format", "args": [[1 << 50]], "kwargs": {},
        "type": f"float32[{1 << 50}]",
    })  # fmt: skip
    path = written(tmp_path / "net", made[2], "programs.json", data)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(path, lower="eager")
    with pytest.raises(RewriteError):
        load(path, net(), lower="eager")


VALUES: list[Any] = [
    None, -1, 0, 1.5, True, 1 << 63, "", "x", "s0", "a'b\n", [], [[]], {}, [0], {"node": "no"}, {"tuple": [1]},
    {"device": "meta"}, "meta", "float16", "complex64", "__class__", "operator.pow", "aten.unbind.int", [10**6, 10**6],
]  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> Any:
    """The paths of all items of JSON."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


@pytest.mark.parametrize("member", ["programs.json", "report.json", "plan.json"])
def test_any_damage_is_an_artifact_error_or_none(made: Any, tmp_path: Path, member: str) -> None:
    draw = random.Random(member)
    original = json.loads(unpacked(made[2].read_bytes(), "it")[member])
    for _ in range(60 if member == "programs.json" else 20):
        data = copy.deepcopy(original)
        *path, key = draw.choice(list(places(data)))
        target = data
        for each in path:
            target = target[each]
        if draw.random() < 0.2:
            del target[key]
        else:
            target[key] = copy.deepcopy(draw.choice(VALUES))
        file = written(tmp_path / "net", made[2], member, data)
        try:
            load(file, lower="eager")
        except (ArtifactError, VerificationError):
            continue
        except BaseException as error:
            raise AssertionError(f"{(*path, key)} became {target}") from error


def test_a_truncated_file(made: Any, tmp_path: Path) -> None:
    data = made[2].read_bytes()
    for part in (0.1, 0.5, 0.99):
        (tmp_path / "net").write_bytes(data[: int(part * len(data))])
        with pytest.raises(ArtifactError, match="is truncated or damaged"):
            load(tmp_path / "net")


def test_another_torch(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net"
    monkeypatch.setattr("rewrite.artifact.container.versions", lambda: {"torch": "2.0.1", "torch-rewrite": "0"})
    made[1].save(path)
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match=r"was saved with torch 2\.0\.1"):
        load(path)
    assert torch.equal(load(path, lower="eager", any_torch=True)(image()), made[1](image()))


def test_weights_of_another_shape(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(made[2].read_bytes())
    edit(path, lambda data: data["weights"]["fc.weight"].update(shape=[8, 5], stride=[5, 1]))
    with pytest.raises(ArtifactError, match=r"'fc.weight' is torch.float32\[5, 8\] in the file, which says"):
        load(path)
    members = unpacked(made[2].read_bytes(), "it")
    data = json.loads(members["programs.json"])
    for name in ("captured", "rewritten"):
        for node in data["programs"][0]["graphs"]["graphs"][name]["nodes"]:
            if node["target"] == "fc.weight":
                node["value"]["tensor"].update(shape=[6, 8])
            if node["target"] in ("fc.bias",):
                node["value"]["tensor"].update(shape=[6])
            node["type"] = node.get("type", "").replace(",5]", ",6]")
    path.write_bytes(packed({**members, "programs.json": json.dumps(data).encode()}, {}))
    with pytest.raises(ArtifactError, match=r"the weight 'fc.(weight|bias)' is f32\[5.*its program reads f32\[6"):
        load(path)


def test_a_program_that_computes_something_else(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "net"

    def change(data: Any) -> None:
        nodes = data["programs"][0]["graphs"]["graphs"]["rewritten"]["nodes"]
        relu = next(node for node in nodes if node.get("target") == "aten.relu.default")
        relu["target"] = "aten.silu.default"

    path.write_bytes(made[2].read_bytes())
    edit(path, change)
    with pytest.raises(VerificationError, match="does not give the outputs that were saved with it"):
        load(path)
    with pytest.raises(VerificationError, match="not equal to the model"):
        load(path, net())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without the device")
def test_a_file_of_a_device_that_is_not_here(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.write_bytes(made[2].read_bytes())
    members = unpacked(path.read_bytes(), "it")
    members["programs.json"] = members["programs.json"].replace(b'"device": "cpu"', b'"device": "cuda:0"')
    path.write_bytes(packed(members, {}))
    assert torch.equal(load(path, lower="eager")(image()), made[1](image()))
    assert torch.equal(load(path, net(), lower="eager")(image()), made[1](image()))
