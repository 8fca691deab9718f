"""A generated Triton kernel as text, with everything that it takes to compile it."""

from __future__ import annotations

import hashlib
import json
import linecache
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Source:
    """One kernel: a Python module with one function that ``triton.jit`` compiles.

    Attributes:
        text: the whole module, as a person would write it.
        function: the name of the kernel in it.
        signature: the arguments that a launch gives, in order, with their types as Triton writes them: ``"*bf16"`` for
            tensors, ``"i32"`` for sizes.
        constants: the values of the arguments that are ``tl.constexpr``.
        warps: of a program, of 32 threads.
        stages: how many loads ahead loops are pipelined.
    """

    text: str
    function: str
    signature: Mapping[str, str]
    constants: Mapping[str, int] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits that differ wherever the compiled kernel may."""
        facts = [self.text, self.function, dict(self.signature), dict(self.constants), self.warps, self.stages]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The arguments that are tensors."""
        return tuple(name for name, kind in self.signature.items() if kind.startswith("*"))

    def namespace(self) -> dict[str, Any]:
        """What the module defines, with lines that tracebacks and Triton find, and without a file.

        Raises:
            ImportError: there is no Triton.
        """
        name = f"<torch_rewrite kernel {self.function} {self.hash}>"
        linecache.cache[name] = (len(self.text), None, self.text.splitlines(keepends=True), name)
        found: dict[str, Any] = {"__name__": f"torch_rewrite_kernel_{self.hash}"}
        exec(compile(self.text, name, "exec"), found)
        return found

    def kernel(self) -> Any:
        """The function that Triton compiles when it is launched, or interprets under ``TRITON_INTERPRET=1``."""
        return self.namespace()[self.function]
