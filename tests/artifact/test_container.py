"""The archive: what is not what it says, whole and of this version, is refused in one sentence."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch

from rewrite.artifact.container import packed, unpacked, write
from rewrite.errors import ArtifactError

MEMBERS = {"programs.json": b"{}" * 40, "weights.safetensors": bytes(range(256))}


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def with_manifest(**changes: object) -> bytes:
    with zipfile.ZipFile(io.BytesIO(packed(MEMBERS, {}))) as file:
        manifest = json.loads(file.read("manifest.json"))
    versions = {**manifest["versions"], **changes.pop("versions", {})}  # type: ignore[dict-item]
    return archive({"manifest.json": json.dumps({**manifest, "versions": versions, **changes}).encode(), **MEMBERS})


def test_members_come_back_and_equal_contents_are_equal_files() -> None:
    data = packed(MEMBERS, {"model": "Net"})
    assert unpacked(data, "it") == MEMBERS
    assert packed(MEMBERS, {"model": "Net"}) == data
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in file.infolist())
        about = json.loads(file.read("manifest.json"))
    assert (about["format"], about["model"], about["versions"]["torch"]) == (1, "Net", torch.__version__)


def test_truncated_anywhere() -> None:
    data = packed(MEMBERS, {})
    for length in range(0, len(data), 7):
        with pytest.raises(ArtifactError, match=r"'net' (is nothing that torch-rewrite saved|is truncated or damaged)"):
            unpacked(data[:length], "'net'")


def test_a_changed_byte_anywhere() -> None:
    data = packed(MEMBERS, {})
    for place in range(0, len(data), 5):
        changed = bytearray(data)
        changed[place] ^= 0x55
        try:
            found = unpacked(bytes(changed), "it")
        except ArtifactError:
            continue
        assert found == MEMBERS, f"byte {place} is part of nothing that is read"


@pytest.mark.parametrize(
    "data",
    [b"", b"PK", b"\x93NUMPY", bytes(100), archive({"a": b""})],
    ids=["nothing", "two-bytes", "an-array", "zeros", "an-archive"],  # an archive holds the time
)
def test_something_else(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"torch-rewrite saved|truncated or damaged"):
        unpacked(data, "it")


def test_another_kind_of_archive() -> None:
    with pytest.raises(ArtifactError, match="a zip archive, but nothing that torch-rewrite saved"):
        unpacked(with_manifest(kind="other"), "it")


def test_another_format() -> None:
    with pytest.raises(ArtifactError, match=r"has format 2, .* reads format 1; .* torch-rewrite 9\.0"):
        unpacked(with_manifest(format=2, versions={"torch-rewrite": "9.0"}), "it")


def test_another_torch() -> None:
    data = with_manifest(versions={"torch": "2.99.1+cu999"})
    with pytest.raises(ArtifactError, match=r"saved with torch 2\.99\.1, .* any_torch=True"):
        unpacked(data, "it")
    assert unpacked(data, "it", any_torch=True) == MEMBERS
    local = torch.__version__.partition("+")[0] + "+other"
    assert unpacked(with_manifest(versions={"torch": local}), "it") == MEMBERS


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "net.rewrite"
    path.write_bytes(b"old")
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["net.rewrite"]
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "missing" / "net", b"new")
    with pytest.raises(IsADirectoryError):
        write(tmp_path, b"new")
    assert os.listdir(tmp_path) == ["net.rewrite"]
