"""What a file holds: programs, the weights that they run on, and what it takes to check them again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rewrite import compat
from rewrite.artifact.boundary import refusing
from rewrite.artifact.literals import decode, encode
from rewrite.artifact.names import DAMAGED, is_attribute, weight_name
from rewrite.artifact.tensors import pack, unpack
from rewrite.artifact.trees import tree_of
from rewrite.artifact.writing import graphs_data
from rewrite.errors import ArtifactError
from rewrite.plan import Plan
from rewrite.recipe import Settings
from rewrite.report import Report
from rewrite.report.json import restored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from rewrite.graph import Graph

_MEMBERS = {"programs.json", "plan.json", "report.json", "weights.safetensors", "samples.safetensors"}


@dataclass(frozen=True)
class StoredProgram:
    """One program without the weights of the model.

    Attributes:
        graphs: the graphs ``"captured"`` and ``"rewritten"`` as JSON.
        report: of the run that made it.
        one_row, value_rules, plan, identity: as in :class:`~rewrite.result.Program`.
        decided: the names of the buffers on whose values Python decided in forward.
        constants: the tensors that belong to the program alone, by name.
        sample: flat inputs of a call.
        outputs: all flat outputs for it, values of mutations last.
    """

    graphs: Mapping[str, Any]
    report: Report
    one_row: bool = True
    value_rules: tuple[str, ...] = ()
    plan: Plan | None = None
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    sample: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] = ()
    identity: str | None = None
    decided: tuple[str, ...] = ()

    @property
    def weights(self) -> dict[str, Mapping[str, Any]]:
        """What the captured graph records of each weight that it reads, by name: dtype, shape, stride and device."""
        return {node["target"]: node["value"]["tensor"] for node in self._given("captured") if node["kind"] == "weight"}

    @property
    def takes(self) -> list[str]:
        """The flat inputs for people: ``float32[N, 3, 224, 224]``, where N is any batch; other values as they are."""
        leaves = zip((node["value"] for node in self._given("captured") if node["kind"] == "input"), self.sample,
                     strict=True)  # fmt: skip
        return [_tensor_text(value["tensor"]) if isinstance(leaf, Tensor) else repr(leaf) for value, leaf in leaves]

    @property
    def devices(self) -> frozenset[str]:
        """The names of the devices that inputs and weights were on."""
        values = [node["value"] for name in ("captured", "rewritten") for node in self._given(name)]
        return frozenset(value["tensor"]["device"] for value in values if isinstance(value, dict) and "tensor" in value)

    def _given(self, graph: str) -> list[Mapping[str, Any]]:
        """The nodes of inputs and weights."""
        return [node for node in self.graphs["graphs"][graph]["nodes"] if node["kind"] != "call"]

    def inputs(self, device: torch.device | None = None) -> list[Any]:
        """The sample on a device, by default the recorded one."""
        recorded = [node["value"] for node in self._given("captured") if node["kind"] == "input"]
        return [
            leaf.to(device or value["tensor"]["device"]) if isinstance(leaf, Tensor) else leaf
            for leaf, value in zip(self.sample, recorded, strict=True)
        ]

    def example(self, device: torch.device | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The sample as positional and keyword arguments."""
        spec = tree_of(self.graphs["graphs"]["captured"]["signature"]["in"])
        args, kwargs = compat.tree_unflatten(self.inputs(device), spec)
        return tuple(args), dict(kwargs)


@dataclass(frozen=True)
class Artifact:
    """A result, ready to be written.

    Attributes:
        model: the name of the model's class.
        settings: how its programs were made.
        programs: at least one.
        weights: what the programs read besides their constants, by name; parameters as such. The names are unique over
            all programs.
        attributes: plain values that the model has as attributes.
    """

    model: str
    settings: Settings
    programs: tuple[StoredProgram, ...]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def members(self) -> dict[str, bytes]:
        """The contents of the files in the archive, by name.

        Raises:
            ArtifactError: a tensor or a value that cannot be saved.
        """
        constants = {
            f"program {i}/{name}": tensor
            for i, program in enumerate(self.programs)
            for name, tensor in program.constants.items()
        }
        samples: dict[str, Tensor] = {}
        programs = [
            {
                "graphs": program.graphs,
                "one_row": program.one_row,
                "value_rules": list(program.value_rules),
                "identity": program.identity,
                "decided": list(program.decided),
                "constants": list(program.constants),
                "sample": _leaves(program.sample, f"program {i}/input", samples),
                "outputs": _leaves(program.outputs, f"program {i}/output", samples),
            }
            for i, program in enumerate(self.programs)
        ]
        weights, layout = pack({**self.weights, **constants})
        drawn, sample_layout = pack(samples)
        data = {
            "model": self.model,
            "settings": {**vars(self.settings), "exclude": list(self.settings.exclude)},
            "attributes": {key: encode(value) for key, value in self.attributes.items()},
            "programs": programs,
            "weights": layout,
            "samples": sample_layout,
        }
        plans = [program.plan for program in self.programs]
        return {
            "programs.json": _json(data),
            "plan.json": _json([None if plan is None else json.loads(plan.to_json()) for plan in plans]),
            "report.json": _json([program.report.to_dict() for program in self.programs]),
            "weights.safetensors": weights,
            "samples.safetensors": drawn,
        }

    @classmethod
    def of(cls, members: Mapping[str, bytes]) -> Artifact:
        """The artifact of :meth:`members`, its tensors in main memory.

        Raises:
            ArtifactError: a member is missing or malformed.
        """
        with refusing("the file is not as this version writes it"):
            if members.keys() != _MEMBERS:
                raise ArtifactError(f"the archive holds {sorted(members)} instead of {sorted(_MEMBERS)}; {DAMAGED}")
            data = json.loads(members["programs.json"])
            tensors = unpack(members["weights.safetensors"], data["weights"])
            samples = unpack(members["samples.safetensors"], data["samples"])
            reports = [Report.from_dict(report) for report in json.loads(members["report.json"])]
            texts = [None if plan is None else json.dumps(plan) for plan in json.loads(members["plan.json"])]
            plans = [None if text is None else Plan.from_json(text) for text in texts]
            programs = tuple(
                StoredProgram(
                    each["graphs"],
                    report,
                    each["one_row"],
                    tuple(each["value_rules"]),
                    plan,
                    {name: tensors.pop(f"program {i}/{name}") for name in each["constants"]},
                    _values(each["sample"], samples),
                    _values(each["outputs"], samples),
                    each["identity"],
                    tuple(each["decided"]),
                )
                for i, (each, report, plan) in enumerate(zip(data["programs"], reports, plans, strict=True))
            )
            if not programs:
                raise ArtifactError(f"the file holds no program; {DAMAGED}")
            # what is malformed is found here, and not where it is used
            _ = [(stored.weights, stored.devices, stored.sample and stored.takes) for stored in programs]
            return cls(
                data["model"],
                restored(Settings, data["settings"]),
                programs,
                {weight_name(name): tensor for name, tensor in tensors.items()},
                {key: decode(value, _no_node) for key, value in data["attributes"].items() if is_attribute(key)},
            )


def stored_graphs(captured: Graph, rewritten: Graph) -> dict[str, Any]:
    """The graphs of a program as :class:`StoredProgram` has them.

    Raises:
        ArtifactError: something in them that cannot be saved.
    """
    return graphs_data({"captured": captured, "rewritten": rewritten})


def _tensor_text(data: Mapping[str, Any]) -> str:
    sizes = (str(size) if isinstance(size, int) else "N" for size in data["shape"])
    return f"{data['dtype']}[{', '.join(sizes)}]"


def _json(data: Any) -> bytes:
    return json.dumps(data, allow_nan=False).encode()


def _leaves(values: Sequence[Any], name: str, tensors: dict[str, Tensor]) -> list[Any]:
    """Values as JSON; tensors go into ``tensors``."""
    found = []
    for i, value in enumerate(values):
        if isinstance(value, Tensor):
            tensors[f"{name} {i}"] = value
            found.append({"tensor": f"{name} {i}"})
        else:
            found.append(encode(value))
    return found


def _values(data: Sequence[Any], tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    return tuple(
        tensors[each["tensor"]] if isinstance(each, dict) and "tensor" in each else decode(each, _no_node)
        for each in data
    )


def _no_node(name: str) -> Any:
    raise ArtifactError(f"a value is the node '{name}'; {DAMAGED}")
