"""The file of an artifact: a zip archive without compression, whose manifest says what it is and has all checksums."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

from rewrite.artifact.boundary import refusing
from rewrite.errors import ArtifactError
from rewrite.versions import __version__, versions

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 2
"""Grows with every change that makes older versions of this project misread a file."""

_KIND = "torch-rewrite"
_MANIFEST = "manifest.json"
# zip archives hold a date, and equal contents are to be equal files
_DATE = (1980, 1, 1, 0, 0, 0)


def packed(members: Mapping[str, bytes], about: Mapping[str, Any]) -> bytes:
    """An archive of named members.

    Args:
        members: their contents.
        about: what else the manifest says, for people who look into the file.
    """
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = {"kind": _KIND, "format": FORMAT, "versions": versions(), **about, "sha256": sums}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in ((_MANIFEST, json.dumps(manifest, indent=1).encode()), *members.items()):
            archive.writestr(zipfile.ZipInfo(name, _DATE), data)
    return buffer.getvalue()


def unpacked(data: bytes, name: str, any_torch: bool = False) -> dict[str, bytes]:
    """The members of an archive, whose checksums agree.

    Args:
        data: the archive.
        name: what messages call it.
        any_torch: take an archive that was made with another torch.

    Raises:
        ArtifactError: something else, a damaged archive, or one of another format or torch.
    """
    if not data.startswith(b"PK"):
        raise ArtifactError(f"{name} is nothing that torch-rewrite saved")
    with refusing(f"{name} is truncated or damaged"), zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if _MANIFEST not in archive.namelist():
            raise ArtifactError(f"{name} is a zip archive, but nothing that torch-rewrite saved")
        # so no more is read than there is
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
            sum(entry.file_size for entry in entries) > len(data)
        ):
            raise ArtifactError(f"{name} is an archive with compression, and nothing that torch-rewrite saved")
        members = {entry.filename: archive.read(entry) for entry in entries}
        manifest = json.loads(members.pop(_MANIFEST))
        _check_manifest(manifest, name, any_torch)
        sums = manifest["sha256"]
        if sums.keys() != members.keys():
            raise ArtifactError(f"{name} is damaged: it holds {sorted(members)}, and not {sorted(sums)}; save it again")
        for member, content in members.items():
            if hashlib.sha256(content).hexdigest() != sums[member]:
                raise ArtifactError(f"{name} is damaged: '{member}' does not have its checksum; save it again")
        return members


def _check_manifest(manifest: Mapping[str, Any], name: str, any_torch: bool) -> None:
    if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
        raise ArtifactError(f"{name} is a zip archive, but nothing that torch-rewrite saved")
    if manifest["format"] != FORMAT:
        raise ArtifactError(
            f"{name} has format {manifest['format']}, and torch-rewrite {__version__} reads format {FORMAT}; save it "
            f"again, or load it with torch-rewrite {manifest['versions']['torch-rewrite']}"
        )
    theirs, ours = (each["torch"].partition("+")[0] for each in (manifest["versions"], versions()))
    if theirs != ours and not any_torch:
        raise ArtifactError(
            f"{name} was saved with torch {theirs}, and this is torch {ours}, whose operators may differ; save it "
            "again, or pass any_torch=True, which verifies it all the same"
        )
