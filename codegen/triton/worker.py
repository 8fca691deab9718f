"""A child process that compiles Triton kernels for GPUs that are not there, and tells what they need.

Run as a file, by ``codegen.triton.resources``: one request a line comes in, one answer a line goes out, both JSON. It
imports the standard library and Triton and nothing of this project, so that it starts in a quarter of a second.
"""

from __future__ import annotations

import contextlib
import io
import json
import linecache
import os
import re
import signal
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, BinaryIO

_LONGEST = 600
"""Characters of a reason."""

_INSTRUCTIONS = {
    "tcgen05": r"\btcgen05\.mma\b",
    "wgmma": r"\bwgmma\.mma_async\b",
    "mma": r"\bmma\.sync\b",
    "mfma": r"\bv_s?mfma",
}


def main() -> int:
    """Answer requests until there are no more; the exit status."""
    requests, answers = _channels()

    def tell(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()

    _no_core_files()
    try:
        import triton
    except Exception as error:  # also of a library that Triton links to
        tell({"missing": f"there is no Triton: {reason(error)}"})
        return 1
    tell({"triton": triton.__version__})
    for line in requests:
        request = json.loads(line)
        signal.alarm(request["alarm"])  # who asked may be gone, and could not end a compiler that does not
        tell(_answer(request))
        signal.alarm(0)
    return 0


def _channels() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for the protocol alone: whoever else prints, prints to standard error."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return os.fdopen(requests, "rb"), os.fdopen(answers, "wb")


def _no_core_files() -> None:
    """Leave no file behind when the compiler aborts."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a kernel needs, or why there is no such thing."""
    try:
        return _compile(request)
    except Exception as error:
        return {"failure": reason(error)}


def _compile(request: Mapping[str, Any]) -> dict[str, Any]:
    import triton
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = GPUTarget(*request["target"])
    if not any(found.compiler.supports_target(target) for found in backends.values()):
        return {"failure": f"Triton {triton.__version__} has nothing that compiles for '{target.backend}'"}
    function = _function(request)
    signature = _types(function.arg_names, request)
    attributes = {
        (place,): [["tt.divisibility", 16]] for place, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    source = ASTSource(fn=function, signature=signature, constexprs=request["constants"], attrs=attributes)
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as cache, contextlib.redirect_stdout(printed):
        # Each kernel in a cache of its own: what ptxas logs is printed only where it runs.
        os.environ.update(TRITON_CACHE_DIR=cache, TRITON_DUMP_PTXAS_LOG="1")
        compiled = triton.compile(source, target=target, options=request["options"])
    read, kind = (of_amd, "amdgcn") if target.backend == "hip" else (of_nvidia, "ptx")
    text = compiled.asm[kind]
    found = {
        **read(text, printed.getvalue()),
        "shared": compiled.metadata.shared,
        "tensor_memory": getattr(compiled.metadata, "tmem_size", None) or 0,
        "tensor_cores": tensor_cores(text),
    }
    return {**found, "text": text} if request["text_wanted"] else found


def _function(request: Mapping[str, Any]) -> Any:
    """The function of a kernel's module, which is read from lines that there is no file of."""
    name, text = request["name"], request["text"]
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": "kernel"}
    exec(compile(text, name, "exec"), namespace)
    if request["function"] not in namespace:
        raise NameError(f"the kernel's module has no '{request['function']}'")
    return namespace[request["function"]]


def _types(arguments: list[str], request: Mapping[str, Any]) -> dict[str, str]:
    """The types of arguments in the order of the function's own parameters."""
    types = {**request["signature"], **dict.fromkeys(request["constants"], "constexpr")}
    if types.keys() != set(arguments):
        raise TypeError(f"the kernel's arguments are {sorted(arguments)}, and there are types of {sorted(types)}")
    return {name: types[name] for name in arguments}


def of_nvidia(text: str, log: str) -> dict[str, int]:
    """Registers and spilled bytes as ``ptxas -v`` tells them.

    Args:
        text: the PTX.
        log: what ptxas said; of each function the bytes of its frame and the bytes that spills store and load.

    Raises:
        ValueError: it did not say it.
    """
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", log)]
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", log)
    if not registers or not frames:
        raise ValueError("ptxas did not tell what the kernel needs")
    return {"registers": max(registers), "spilled": sum(min(int(frame), int(stores)) for frame, stores in frames)}


def of_amd(text: str, log: str) -> dict[str, int]:
    """Registers, accumulation registers among them, and spilled bytes as the metadata in the assembly tells them.

    Args:
        text: the assembly.
        log: nothing.

    Raises:
        ValueError: it does not tell it.
    """
    registers, spilled = (re.search(rf"^\s*\.{name}:\s*(\d+)", text, re.MULTILINE)
                          for name in ("vgpr_count", "vgpr_spill_count"))  # fmt: skip
    if registers is None or spilled is None:
        raise ValueError("the assembly does not tell what the kernel needs")
    return {"registers": int(registers[1]), "spilled": 4 * int(spilled[1])}


def tensor_cores(text: str) -> str:
    """The instructions of tensor cores in PTX or AMD's assembly, the newest where there are several."""
    return next((name for name, pattern in _INSTRUCTIONS.items() if re.search(pattern, text)), "")


def reason(error: BaseException) -> str:
    """What went wrong, in one line, and in which lines of the kernel and of what it calls.

    Triton wraps what went wrong in errors that show the code up to the place, with a caret below it. The message is
    that of the innermost, and may be missing in the others. What ptxas says is followed by how to run it again.
    """
    places = []
    while True:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if "^" in lines:
            caret = lines.index("^")
            places.append(f", in '{lines[caret - 1]}'")
            lines = lines[caret + 1 :]
        if error.__cause__ is None:
            break
        error = error.__cause__
    said = " ".join(" ".join(lines).partition("Repro command")[0].split())
    said = re.sub(re.escape(tempfile.gettempdir()) + r"/[\w.]+", "file", said)  # which has another name each time
    return f"{type(error).__name__}: {said[:_LONGEST]}{''.join(places)}"


if __name__ == "__main__":
    sys.exit(main())
