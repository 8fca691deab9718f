"""What kernels need is what the compilers say, whatever becomes of the processes that they run in."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen.triton import resources
from codegen.triton.resources import ARCHITECTURES, Architecture, Failure, Resources, Workers, fits
from codegen.triton.source import Source
from codegen.triton.worker import of_amd, of_nvidia, tensor_cores

pytest.importorskip("triton")

POINTWISE = """
import triton
import triton.language as tl


@triton.jit
def kernel(B: tl.constexpr, y, n, x):
    i = tl.program_id(0) * B + tl.arange(0, B)
    a = tl.load(x + i, mask=i < n).to(tl.float32)
    tl.store(y + i, FUNCTION, mask=i < n)
"""

PRODUCT = """
import triton
import triton.language as tl


@triton.jit
def kernel(x, w, y, n, K: tl.constexpr, B: tl.constexpr):
    m = tl.program_id(0) * 64 + tl.arange(0, 64)
    j = tl.arange(0, 64)
    total = tl.zeros((64, 64), tl.float32)
    for start in range(0, K, B):
        k = start + tl.arange(0, B)
        a = tl.load(x + m[:, None] * K + k[None, :], mask=(m < n)[:, None], other=0.0)
        total = tl.dot(a, tl.load(w + k[:, None] * 64 + j[None, :]), total)
    tl.store(y + m[:, None] * 64 + j[None, :], total.to(tl.bfloat16), mask=(m < n)[:, None])
"""

CROWDED = """
import triton
import triton.language as tl


@triton.jit
def kernel(x, y, T: tl.constexpr):
    i = tl.arange(0, 128)[:, None] * 64 + tl.arange(0, 64)[None, :]
    tiles = ()
    for t in tl.static_range(T):
        tiles = tiles + (tl.load(x + t * 8192 + i),)
    for t in tl.static_range(T):
        tl.store(y + t * 8192 + i, tl.exp(tiles[T - 1 - t] * tiles[0]))
"""

HOPPER = ARCHITECTURES["sm_90"]


def pointwise(function: str = "a + 1", block: int = 256, warps: int = 4) -> Source:
    text = POINTWISE.replace("FUNCTION", function)
    return Source(text, "kernel", {"x": "*fp32", "y": "*fp32", "n": "i32"}, {"B": block}, warps)


def product(block: int = 64, stages: int = 2) -> Source:
    signature = {"x": "*bf16", "w": "*bf16", "y": "*bf16", "n": "i32"}
    return Source(PRODUCT, "kernel", signature, {"K": 2048, "B": block}, 4, stages)


def crowded(tiles: int = 9) -> Source:
    return Source(CROWDED, "kernel", {"x": "*fp32", "y": "*fp32"}, {"T": tiles})


def module(text: str) -> Source:
    """A kernel whose module does something as it is read."""
    return dataclasses.replace(pointwise(), text=f"{text}\n{pointwise().text}")


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as found:
        yield found


def one(workers: Workers, source: Source, architecture: Architecture = HOPPER) -> Resources:
    """What a kernel needs that compiles."""
    (found,) = workers.resources([source], architecture)
    assert isinstance(found, Resources), found
    return found


def reason(workers: Workers, source: Source, architecture: Architecture = HOPPER) -> str:
    """Why a kernel does not compile."""
    (found,) = workers.resources([source], architecture)
    assert isinstance(found, Failure), found
    return found.reason


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_pointwise_kernel_needs_little(workers: Workers, name: str) -> None:
    found = one(workers, pointwise(), ARCHITECTURES[name])
    assert 4 < found.registers < 64
    assert found == Resources(found.registers, spilled=0, shared=0, tensor_cores="")
    assert fits(found, ARCHITECTURES[name]) == ""


@pytest.mark.parametrize(
    ("name", "instructions"), [("sm_80", "mma"), ("sm_90", "wgmma"), ("sm_100", "tcgen05"), ("gfx942", "mfma")]
)
def test_a_matrix_product_is_done_by_tensor_cores(workers: Workers, name: str, instructions: str) -> None:
    found = one(workers, product(), ARCHITECTURES[name])
    assert found.tensor_cores == instructions
    assert found.shared >= 2 * 64 * 64 * 2  # a tile of each operand
    assert found.tensor_memory == (64 if name == "sm_100" else 0)
    assert fits(found, ARCHITECTURES[name]) == ""


@pytest.mark.parametrize(("name", "least"), [("sm_90", 1000), ("sm_100", 1000), ("gfx942", 4 * 64)])
def test_a_kernel_of_too_many_values_spills(workers: Workers, name: str, least: int) -> None:
    found = one(workers, crowded(), ARCHITECTURES[name])
    assert found.spilled >= least
    assert fits(found, ARCHITECTURES[name]) == f"spills {found.spilled} bytes"
    assert fits(found, ARCHITECTURES[name], spill=found.spilled) == ""


def test_a_frame_that_nothing_spills_to_is_no_spill(workers: Workers) -> None:
    """The reduction of large numbers takes an array of seven numbers for a sine, in local memory."""
    assert one(workers, pointwise("tl.sin(a)")).spilled == 0


def test_too_much_shared_memory_compiles_and_does_not_fit(workers: Workers) -> None:
    found = one(workers, product(block=128, stages=8))
    assert found.shared > HOPPER.shared
    assert fits(found, HOPPER) == f"needs {found.shared // 1024} KB of shared memory and 227 KB are there"


def test_the_limits_themselves_fit() -> None:
    for architecture in ARCHITECTURES.values():
        most = Resources(architecture.registers, 8, architecture.shared, "mma", architecture.tensor_memory)
        assert fits(most, architecture, spill=8) == ""
        assert fits(most, architecture, spill=7) == "spills 8 bytes"
        more = dataclasses.replace(most, shared=most.shared + 1)
        there = architecture.shared // 1024
        assert fits(more, architecture) == f"needs {there + 1} KB of shared memory and {there} KB are there"
        more = dataclasses.replace(most, tensor_memory=architecture.tensor_memory + 64)
        assert "columns of tensor memory" in fits(more, architecture)


def test_programs_have_as_many_threads_where_warps_are_wider(workers: Workers) -> None:
    texts = workers.lower([pointwise(warps=8), pointwise(warps=1)], ARCHITECTURES["gfx942"])
    assert ".max_flat_workgroup_size: 256" in str(texts[0])
    assert ".max_flat_workgroup_size: 64" in str(texts[1])
    (text,) = workers.lower([pointwise(warps=8)], HOPPER)
    assert ".reqntid 256" in str(text)
    assert ".target sm_90a" in str(text)


def test_tensors_are_read_sixteen_bytes_at_a_time_whatever_the_order_of_the_signature(workers: Workers) -> None:
    """As they are by a kernel that is launched with tensors that begin where that is possible."""
    signature = dict(reversed(product().signature.items()))
    sources = [product(), dataclasses.replace(product(), signature=signature)]
    widths = [re.findall(r"cp\.async\.c\S+ .* (0x\w+)", str(text)) for text in workers.lower(sources, HOPPER)]
    assert set(widths[0]) == {"0x10"}
    assert widths[0] == widths[1]


def test_the_parts_of_what_compilers_say() -> None:
    log = """ptxas info    : Function properties for helper
    16 bytes stack frame, 24 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for kernel
    40 bytes stack frame, 12 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 56 bytes cumulative stack size"""
    assert of_nvidia("", log) == {"registers": 64, "spilled": 28}
    with pytest.raises(ValueError, match="ptxas did not tell"):
        of_nvidia("", "")
    metadata = "    .agpr_count:     0\n    .vgpr_count:     512\n    .vgpr_spill_count: 3\n"
    assert of_amd(metadata, "") == {"registers": 512, "spilled": 12}
    with pytest.raises(ValueError, match="the assembly does not tell"):
        of_amd("", "")
    assert tensor_cores("wgmma.mma_async.sync.aligned.m64n64k16; mma.sync.aligned.m16n8k16") == "wgmma"
    assert tensor_cores("wgmma.fence.sync.aligned; tcgen05.alloc.cta_group") == ""


@pytest.mark.parametrize(("source", "expected"), [
    (Source("def kernel(:\n", "kernel", {}), "SyntaxError: invalid syntax"),
    (Source("import triton", "kernel", {}), "NameError: the kernel's module has no 'kernel'"),
    (module("import source"), "ModuleNotFoundError: No module named 'source'"),
    (pointwise("nowhere(a)"), "NameError('nowhere is not defined'), in 'tl.store(y + i, nowhere(a), mask=i < n)'"),
    (pointwise(block=100), "ValueError: arange's range must be a power of 2, in 'i = tl.program_id(0)"),
    (pointwise("tl.zeros((3,), tl.float32)"), "power of 2, in 'tl.store(y + i, tl.zeros((3,), tl.float32), mask"),
    (pointwise("tl.inline_asm_elementwise('gibberish $0, $1;', '=r,r', [i], tl.int32, True, 1)"), "'gibberish'"),
    (dataclasses.replace(pointwise(), constants={}), "the kernel's arguments are ['B', 'n', 'x', 'y'], and there are"),
    (dataclasses.replace(pointwise(), constants={"B": 128, "C": 1}), "of ['B', 'C', 'n', 'x', 'y']"),
])  # fmt: skip
def test_a_kernel_that_is_wrong_says_where(workers: Workers, source: Source, expected: str) -> None:
    said = reason(workers, source)
    assert expected in said
    assert "\n" not in said
    assert "Repro" not in said
    assert tempfile.gettempdir() not in said  # it is the same each time


def test_the_assembler_complains_elsewhere_than_in_errors(workers: Workers) -> None:
    source = pointwise("tl.inline_asm_elementwise('gibberish $0, $1;', '=r,r', [i], tl.int32, True, 1)")
    assert "invalid instruction" in reason(workers, source, ARCHITECTURES["gfx942"])
    assert "invalid instruction" not in reason(workers, pointwise("nowhere(a)"))


def test_no_backend(workers: Workers) -> None:
    assert "nothing that compiles for 'abacus'" in reason(workers, pointwise(), Architecture("x", "abacus", 1, 1, 1, 1))


def test_a_compiler_that_dies_costs_one_kernel() -> None:
    with Workers() as workers:
        dies = module("import os; os.write(2, b'noise\\nLLVM ERROR: out of it\\n'); os.abort()")
        found = workers.resources([pointwise(), dies, module("raise SystemExit(3)"), product()], HOPPER)
        assert workers.started == 3
    assert isinstance(found[0], Resources)
    assert found[1] == Failure("the compiler died with signal 6: LLVM ERROR: out of it")
    assert found[2] == Failure("the compiler ended with status 3")
    assert isinstance(found[3], Resources)


def test_a_compiler_that_dies_leaves_no_image_of_its_memory(workers: Workers) -> None:
    one(workers, module("import resource; assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)"))


def test_a_compiler_that_takes_too_long_is_ended_with_its_own_processes(tmp_path: Path) -> None:
    sleeps = "import subprocess; child = subprocess.Popen(['sleep', '99'])"
    source = module(f"{sleeps}; open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); child.wait()")
    with Workers(limit=3) as workers:
        start = time.monotonic()
        found = workers.resources([source, pointwise()], HOPPER)
        assert 3 <= time.monotonic() - start < 30
    assert found[0] == Failure("the compiler took longer than 3 s")
    assert isinstance(found[1], Resources)
    command = Path("/proc", (tmp_path / "child").read_text(), "cmdline")
    while command.exists() and command.read_bytes():  # one that nobody has waited for has none
        assert time.monotonic() - start < 30
        time.sleep(0.01)


def test_a_process_ends_itself_where_nobody_does() -> None:
    request = json.loads(resources._request(module("import time; time.sleep(60)"), HOPPER, 60.0))
    line = json.dumps({**request, "alarm": 1}).encode() + b"\n"
    done = subprocess.run([sys.executable, resources._WORKER], input=line, capture_output=True, timeout=30)
    assert done.returncode == -14


def test_a_process_that_waits_does_not_end() -> None:
    request = json.loads(resources._request(Source("1 +", "f", {}), HOPPER, 60.0))
    command = [sys.executable, os.fspath(resources._WORKER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({**request, "alarm": 1}).encode() + b"\n")
        process.stdin.flush()
        assert "triton" in json.loads(process.stdout.readline())
        assert "failure" in json.loads(process.stdout.readline())
        time.sleep(1.3)
    assert process.returncode == 0


def test_results_are_in_the_order_of_the_kernels() -> None:
    sources = [module("import time; time.sleep(0.5)"), product(), Source("1 +", "f", {}), pointwise(), product()]
    with Workers(processes=2) as workers:
        found = workers.resources(sources, HOPPER)
        assert workers.started == 2
        assert workers.resources([], HOPPER) == []
    assert [type(each) for each in found] == [Resources, Resources, Failure, Resources, Resources]
    assert [each.tensor_cores for each in found if isinstance(each, Resources)] == ["", "wgmma", "", "wgmma"]


def test_what_a_kernel_prints_is_no_answer_and_it_reads_no_requests(workers: Workers) -> None:
    assert "EOFError" in reason(workers, module("input()"))
    source = module("""import os; os.write(1, b'{"failure": "no"}\\n'); print('{"failure": "no"}', flush=True)""")
    assert one(workers, source) == one(workers, pointwise())


def test_how_the_caller_uses_triton_changes_nothing(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = one(workers, product())
    monkeypatch.setenv("DISABLE_PTXAS_OPT", "1")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with Workers() as others:
        assert one(others, product()) == expected


def test_nothing_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # which has been found before
    gibberish = pointwise("tl.inline_asm_elementwise('gibberish $0, $1;', '=r,r', [i], tl.int32, True, 1)")
    with Workers() as workers:
        workers.resources([pointwise(), gibberish], HOPPER)
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_an_interrupted_call_leaves_no_process_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> list[int]:
        raise KeyboardInterrupt

    with Workers() as workers:
        with monkeypatch.context() as patched:
            patched.setattr(resources, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                workers.resources([crowded(49)], HOPPER)
        assert not workers._workers
        assert one(workers, pointwise()).registers


def test_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-I", "-S", resources._WORKER], input=b"", capture_output=True)
    assert "there is no Triton" in json.loads(done.stdout)["missing"]
    with Workers() as workers, monkeypatch.context() as patched:
        patched.setitem(sys.modules, "triton", None)
        assert reason(workers, pointwise()).startswith("there is no Triton: ")
        assert workers.lower([pointwise()], HOPPER) == workers.resources([pointwise()], HOPPER)
        assert workers.started == 0


def test_processes_without_triton_or_with_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with Workers() as workers, monkeypatch.context() as patched:
        (tmp_path / "triton.py").write_text("raise ImportError('not today')")
        patched.setenv("PYTHONPATH", str(tmp_path))
        assert reason(workers, pointwise()).endswith("there is no Triton: ImportError: not today")
        (tmp_path / "triton.py").write_text("__version__ = '1.0'")
        assert "it finds Triton 1.0, and not " in reason(workers, pointwise())


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with Workers() as workers, monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nowhere/python")
        assert reason(workers, pointwise()).startswith("kernels cannot be compiled: ")
    with pytest.raises(ValueError, match="0 processes compile nothing"):
        Workers(processes=0)


def kept_file(directory: Path) -> Path:
    """The only file in the cache."""
    (path,) = (directory / "resources").iterdir()
    return path


def test_what_kernels_need_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_REWRITE_CACHE", "1")
    monkeypatch.setenv("TORCH_REWRITE_CACHE_DIR", str(tmp_path))
    wrong = Source("1 +", "f", {})
    with Workers() as workers:
        expected = one(workers, product())
        assert one(workers, product()) == expected
        reason(workers, wrong)
    path = kept_file(tmp_path)
    with Workers() as workers:
        assert one(workers, product()) == expected
        assert workers.started == 0
        assert one(workers, product(block=32)) != expected
        assert workers.started == 1
        assert one(workers, product(), ARCHITECTURES["sm_80"]).tensor_cores == "mma"
    for other in set((tmp_path / "resources").iterdir()) - {path}:
        other.unlink()
    data = json.loads(path.read_text())
    for text in ("{", json.dumps({**data, "numbers": {**data["numbers"], "registers": -1}})):
        path.write_text(text)
        with Workers() as workers, pytest.warns(RuntimeWarning, match="cannot be used"):
            assert one(workers, product()) == expected
    for name, number in (("tensor_cores", 17), ("registres", 4)):
        path.write_text(json.dumps({**data, "numbers": {**data["numbers"], name: number}}))
        with Workers() as workers:
            assert one(workers, product()) == expected
            assert workers.started == 1
        assert kept_file(tmp_path) == path


def test_what_is_kept_is_of_one_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_REWRITE_CACHE", "1")
    monkeypatch.setenv("TORCH_REWRITE_CACHE_DIR", str(tmp_path))
    with Workers() as workers, monkeypatch.context() as patched:
        one(workers, pointwise())
        patched.setattr(resources, "triton_version", lambda: "99.0")
        workers.close()
        assert "and not 99.0" in reason(workers, pointwise())
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/nowhere/ptxas")
    with Workers() as workers:  # what another assembler says is another's
        workers.resources([pointwise()], HOPPER)
        assert workers.started == 1


def test_nothing_is_kept_where_there_is_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_REWRITE_CACHE_DIR", str(tmp_path))
    assert os.environ["TORCH_REWRITE_CACHE"] == "0"
    with Workers() as workers:
        one(workers, pointwise())
    assert not list(tmp_path.iterdir())
