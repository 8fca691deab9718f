"""A module as an ONNX model on disk."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from torch.fx import GraphModule

PACKAGES = ("onnx", "onnxscript")
"""The packages that exporting needs."""


@contextlib.contextmanager
def onnx_file(module: GraphModule, examples: Sequence[Tensor]) -> Iterator[Path]:
    """A file with the module for arguments of these sizes, which is gone at the end.

    Weights lie in a second file beside it, for a single one is limited to 2 GB.

    Raises:
        Exception: whatever the exporter raises.
    """
    with tempfile.TemporaryDirectory(prefix="torch-rewrite-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        with warnings.catch_warnings(), torch.no_grad():
            # the exporter and its packages use what torch has deprecated
            warnings.simplefilter("ignore")
            program = torch.onnx.export(module, tuple(examples), dynamo=True, verbose=False)
        assert program is not None
        program.save(path, external_data=True)
        del program
        yield path
