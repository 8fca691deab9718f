"""A file of what named kernels need on each GPU, committed, so that a change that costs registers is seen.

The figures are those of one version of Triton: another allocates registers in another way, and says nothing about a
change of ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codegen.triton.resources import TENSOR_CORES, Architecture, Failure, Resources, Workers, triton_version
from codegen.triton.source import Source
from rewrite import files

_FIGURES = {
    "registers": "registers",
    "spilled": "bytes spilled",
    "shared": "bytes of shared memory",
    "tensor_memory": "columns of tensor memory",
}


@dataclass(frozen=True)
class Configuration:
    """One kernel.

    Attributes:
        source: the hash of its source.
        needs: what it needs, by the name of the architecture.
    """

    source: str
    needs: Mapping[str, Resources | Failure]


@dataclass(frozen=True)
class Gate:
    """What a file holds.

    Attributes:
        triton: the version of Triton that compiled the kernels.
        configurations: the kernels by names that stay the same while the kernels change.
    """

    triton: str
    configurations: Mapping[str, Configuration]


def measure(sources: Mapping[str, Source], architectures: Iterable[Architecture], workers: Workers) -> Gate:
    """A gate of the kernels as they are now.

    Args:
        sources: the kernels by name.
        architectures: to compile for.
        workers: who compile.

    Raises:
        ImportError: there is no Triton.
    """
    version = triton_version()
    if isinstance(version, Failure):
        raise ImportError(version.reason)
    needs: dict[str, dict[str, Resources | Failure]] = {name: {} for name in sources}
    for architecture in architectures:
        found = workers.resources(list(sources.values()), architecture)
        for name, resources in zip(sources, found, strict=True):
            needs[name][architecture.name] = resources
    return Gate(version, {name: Configuration(source.hash, needs[name]) for name, source in sources.items()})


def write(path: str | os.PathLike[str], gate: Gate) -> None:
    """Write a gate, the same bytes for the same gate: sorted, a line for each kernel on each architecture.

    Raises:
        OSError: the file cannot be written.
    """
    blocks = []
    for name, configuration in sorted(gate.configurations.items()):
        lines = [f'"source": {json.dumps(configuration.source)}']
        lines += [
            f"{json.dumps(architecture)}: {json.dumps(_plain(found), ensure_ascii=False)}"
            for architecture, found in sorted(configuration.needs.items())
        ]
        inner = ",\n".join(f"      {line}" for line in lines)
        blocks.append(f"    {json.dumps(name, ensure_ascii=False)}: {{\n{inner}\n    }}")
    inner = ",\n".join(blocks)
    text = f'{{\n  "triton": {json.dumps(gate.triton)},\n  "configurations": {{\n{inner}\n  }}\n}}\n'
    files.write(path, text.encode())


def read(path: str | os.PathLike[str]) -> Gate:
    """A gate from its file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        return Gate(str(data["triton"]), {name: _configuration(of) for name, of in data["configurations"].items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"'{os.fspath(path)}' is no gate: {type(error).__name__}: {error}") from error


def compare(old: Gate, new: Gate) -> list[str]:
    """The differences, one sentence each; none where the gates are equal.

    Args:
        old: as it was committed.
        new: as it is.
    """
    if old.triton != new.triton:
        versions = f"the gate is of Triton {old.triton} and this is Triton {new.triton}"
        return [f"{versions}, which allocate registers differently: the figures cannot be compared"]
    said = []
    for name in sorted({*old.configurations, *new.configurations}):
        before, now = old.configurations.get(name), new.configurations.get(name)
        if before is None:
            said.append(f"'{name}' is not in the gate")
        elif now is None:
            said.append(f"'{name}' is in the gate, and there is no such kernel")
        else:
            said += [f"'{name}' {what}" for what in _changes(before, now)]
    return said


def _changes(old: Configuration, new: Configuration) -> list[str]:
    """What has become of one kernel."""
    said = [f"has another source: {new.source}, and was {old.source}"] if new.source != old.source else []
    for architecture in sorted({*old.needs, *new.needs}):
        before, now = old.needs.get(architecture), new.needs.get(architecture)
        if before is None:
            said.append(f"on {architecture} is not in the gate")
        elif now is None:
            said.append(f"on {architecture} is in the gate, and was not compiled")
        else:
            said += [f"on {architecture} {what}" for what in _differences(before, now)]
    return said


def _differences(old: Resources | Failure, new: Resources | Failure) -> list[str]:
    """How the figures differ; two failures are alike, whatever they say."""
    if isinstance(old, Failure) or isinstance(new, Failure):
        if isinstance(new, Failure):
            return [] if isinstance(old, Failure) else [f"does not compile any more: {new.reason}"]
        return ["compiles, and did not"]
    said = [
        f"has {getattr(new, figure)} {what}, and had {getattr(old, figure)}"
        for figure, what in _FIGURES.items()
        if getattr(new, figure) != getattr(old, figure)
    ]
    if new.tensor_cores != old.tensor_cores:
        said.append(f"uses {new.tensor_cores or 'no tensor cores'}, and used {old.tensor_cores or 'no tensor cores'}")
    return said


def _plain(found: Resources | Failure) -> dict[str, Any]:
    """What a line says, without tensor memory where none is used."""
    return {name: value for name, value in asdict(found).items() if name != "tensor_memory" or value}


def _configuration(data: Mapping[str, Any]) -> Configuration:
    needs = {name: _found(of) for name, of in data.items() if name != "source"}
    return Configuration(str(data["source"]), needs)


def _found(data: Mapping[str, Any]) -> Resources | Failure:
    """One line's figures.

    Raises:
        ValueError, TypeError: they are not what a kernel may need.
    """
    if "reason" in data:
        return Failure(**data)
    found = Resources(**data)
    for name in _FIGURES:
        if type(number := getattr(found, name)) is not int or number < 0:
            raise ValueError(f"'{name}' is {number!r}")
    if found.tensor_cores not in TENSOR_CORES:
        raise ValueError(f"'tensor_cores' is {found.tensor_cores!r}")
    return found
