"""The archive: what is not what it says, whole and of this version, is refused in one sentence."""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from rewrite.artifact.container import packed, unpacked
from rewrite.errors import ArtifactError
from rewrite.files import write

MEMBERS = {"programs.json": b"{}" * 40, "weights.safetensors": bytes(range(256))}


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def manifest_of(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return file.read("manifest.json")


def with_manifest(**changes: object) -> bytes:
    manifest = json.loads(manifest_of(packed(MEMBERS, {})))
    versions = {**manifest["versions"], **changes.pop("versions", {})}  # type: ignore[dict-item]
    return archive({"manifest.json": json.dumps({**manifest, "versions": versions, **changes}).encode(), **MEMBERS})


def test_members_come_back_and_equal_contents_are_equal_files() -> None:
    data = packed(MEMBERS, {"model": "Net"})
    assert unpacked(data, "it") == MEMBERS
    assert packed(MEMBERS, {"model": "Net"}) == data
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in file.infolist())
        about = json.loads(file.read("manifest.json"))
    assert (about["format"], about["model"], about["versions"]["torch"]) == (2, "Net", torch.__version__)


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


def test_contents_that_are_whole_and_are_others() -> None:
    # the archive's own sums are right, those of the manifest are not
    data = archive({"manifest.json": manifest_of(packed(MEMBERS, {})), **MEMBERS, "programs.json": b"[]"})
    with pytest.raises(ArtifactError, match=r"'programs\.json' does not have its checksum"):
        unpacked(data, "it")


@pytest.mark.parametrize("members", [{**MEMBERS, "more": b""}, {"programs.json": MEMBERS["programs.json"]}], ids=len)
def test_more_or_fewer_members(members: dict[str, bytes]) -> None:
    with pytest.raises(ArtifactError, match="it is damaged: it holds"):
        unpacked(archive({"manifest.json": manifest_of(packed(MEMBERS, {})), **members}), "it")


def test_nothing_is_unpacked_that_is_larger_than_the_file() -> None:
    members = {**MEMBERS, "weights.safetensors": bytes(1 << 20)}
    whole = {"manifest.json": manifest_of(packed(members, {})), **members}
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(ArtifactError, match="an archive with compression"):
            unpacked(archive(whole, compression), "it")
    # one content that many entries of the directory point at
    data = archive({"manifest.json": b"{}" * 5000})
    start = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    tail = bytearray(data[end:])
    tail[8:12] = (2).to_bytes(2, "little") * 2
    tail[12:16] = (2 * (end - start)).to_bytes(4, "little")
    with pytest.raises(ArtifactError):
        unpacked(data[:start] + 2 * data[start:end] + bytes(tail), "it")


@pytest.mark.parametrize(
    "changes",
    [{"versions": {"torch": 3}}, {"sha256": ["manifest.json"]}, {"sha256": {"programs.json": None}}, {"format": {}}],
    ids=["version", "list of sums", "no sum", "format"],
)
def test_a_manifest_of_other_types(changes: Any) -> None:
    with pytest.raises(ArtifactError):
        unpacked(with_manifest(**changes), "it")


def test_an_encrypted_entry() -> None:
    data = bytearray(packed(MEMBERS, {}))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    data[6] |= 1
    with pytest.raises(ArtifactError, match="truncated or damaged"):
        unpacked(bytes(data), "it")


def test_another_format() -> None:
    with pytest.raises(ArtifactError, match=r"has format 9, .* reads format 2; .* torch-rewrite 9\.0"):
        unpacked(with_manifest(format=9, versions={"torch-rewrite": "9.0"}), "it")


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
    with pytest.raises(FileNotFoundError) as missing:
        write(tmp_path / "missing" / "net", b"new")
    assert str(missing.value) == f"[Errno 2] No such file or directory: '{tmp_path / 'missing' / 'net'}'"
    with pytest.raises(IsADirectoryError):
        write(tmp_path, b"new")
    assert os.listdir(tmp_path) == ["net.rewrite"]


def test_any_name_that_a_file_may_have(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 255)
    write(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, real = tmp_path / "link", tmp_path / "there" / "net"
    link.symlink_to(real)
    for data in (b"old", b"new"):
        write(link, data)
        assert link.is_symlink()
        assert real.read_bytes() == data


def test_a_write_that_fails_leaves_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "net"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)  # it is on the disk before it takes the name
    with pytest.raises(OSError, match="No space left"):
        write(path, b"new")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["net"])
