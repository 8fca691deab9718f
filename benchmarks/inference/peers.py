"""The original model on what others offer: eager, frozen Inductor, ONNX Runtime, OpenVINO.

A model whose branches its own package merges runs in both forms. The runtimes get the settings and the memory that the
optimized model's sessions get, so that the programs alone differ.
"""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import TYPE_CHECKING

import torch

from benchmarks.inference.contender import Contender
from benchmarks.peers import onnx_runtime
from benchmarks.peers.inductor import freezing
from codegen.onnx_runtime import OnnxRuntime
from codegen.openvino import OpenVINO
from codegen.partition import Facts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from benchmarks.inference.contender import Call
    from codegen.runtime import Runtime


def peers(
    model: nn.Module, x: Tensor, folder: Path, merge: Callable[[nn.Module], nn.Module] | None = None
) -> list[Contender]:
    """The peers of one call.

    Args:
        model: the original.
        x: its argument.
        folder: where exported models may lie until the sessions are made.
        merge: makes the copy with merged branches.
    """
    found = [Contender("eager", False, "eager", lambda: partial(model, x))]
    if x.dim() == 4:
        last = partial(_channels_last, model, x)
        found.append(Contender("eager channels_last", False, "eager", last, "channels_last"))
    found += _compiled(lambda: model, x, folder, "")
    if merge is not None:
        found += _compiled(partial(merge, model), x, folder, "merged")
    return found


def _compiled(make: Callable[[], nn.Module], x: Tensor, folder: Path, variant: str) -> list[Contender]:
    """Those that compile."""
    exported = _Exported(make, x, folder / f"{variant or 'original'}.onnx")
    mark = f", {variant}" if variant else ""
    return [
        Contender(f"Inductor{mark}", False, "inductor", lambda: frozen(make(), x), variant),
        Contender(f"ONNX Runtime{mark}", False, "onnxruntime", lambda: exported.session(OnnxRuntime), variant),
        Contender(f"OpenVINO{mark}", False, "openvino", lambda: exported.session(OpenVINO), variant),
    ]


def _channels_last(model: nn.Module, x: Tensor) -> Call:
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return partial(twin, x.to(memory_format=torch.channels_last))


def frozen(model: nn.Module, x: Tensor) -> Call:
    """``torch.compile`` with freezing; images and their kernels in channels_last."""
    model = copy.deepcopy(model)
    if x.dim() == 4:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    compiled = torch.compile(model, dynamic=False)
    with freezing(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled(x)
    return partial(compiled, x)


class _Exported:
    """A model that is exported once, for all runtimes."""

    def __init__(self, make: Callable[[], nn.Module], x: Tensor, path: Path):
        self._make, self._x, self._path = make, x, path
        self._failure: Exception | None = None
        self._result: Facts | None = None

    def session(self, runtime: type[Runtime]) -> Call:
        """The call on one runtime.

        Raises:
            Exception: what the exporter or the runtime raises; the exporter's is raised for each.
        """
        x, result = self._x, self._export()
        argument = Facts(tuple(x.shape), x.stride(), x.dtype)
        run = runtime().load(self._path, [argument], [result])

        def call() -> Tensor:
            output = result.empty()
            run([x], [output])
            return output

        return call

    def _export(self) -> Facts:
        if self._failure is not None:
            raise self._failure
        if self._result is None:
            try:
                model = self._make()
                with torch.no_grad():
                    y = model(self._x).contiguous()
                onnx_runtime.export(model, (self._x,), self._path)
            except Exception as error:
                self._failure = error
                raise
            self._result = Facts(tuple(y.shape), y.stride(), y.dtype)
        return self._result
