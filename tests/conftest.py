"""Settings that every test shares: drawn examples, random numbers, threads and the GPU."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# bfloat16 convolutions of oneDNN read memory that nobody wrote where the processor has AMX; read at their first call
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read as triton is imported, whose own functions are interpreted then

from hypothesis import HealthCheck, register_random, settings

from codegen.native import library as native
from rewrite import cplusplus
from rewrite.files import cache_directory

GPU_TESTS = Path(__file__).parent / "gpu"

# `too_slow` measures the machine, and a model takes longer to draw than a number.
settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=10,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough",
    deadline=None,
    max_examples=300,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# A test that finds what another process left would test nothing; the tests of the cache have directories of their own.
os.environ["TORCH_REWRITE_CACHE"] = "0"
# Measurements would make tests slow, and depend on the machine; tests of the selection ask for them.
os.environ["TORCH_REWRITE_TUNE"] = "off"

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


class TorchRandom:
    """Torch's global generator, for Hypothesis to seed before each example, so that a failing example fails again."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> bytes:
        return bytes(torch.get_rng_state().tolist())

    def setstate(self, state: bytes) -> None:
        torch.set_rng_state(torch.tensor(list(state), dtype=torch.uint8))


# Hypothesis keeps only a weak reference.
TORCH_RANDOM = TorchRandom()
register_random(TORCH_RANDOM)


@pytest.fixture(scope="session", autouse=True)
def imports_are_no_garbage() -> None:
    """Take what is imported out of each search for garbage: a million objects, and tests ask for many."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where C++ of the project is kept that the processes of the tests share, without a cache too."""
    base = tmp_path_factory.getbasetemp()
    kept = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "native"
    kept.mkdir(exist_ok=True)
    directory = cplusplus._directory
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cplusplus, "_directory", lambda: directory() if cache_directory() else kept)
        yield kept


@pytest.fixture
def with_libraries(compiled_once: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a process with a cache of its own, where the C++ of the project is that was compiled."""
    if native.supported():
        native.LIBRARY.finish()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "native").symlink_to(compiled_once)
    return {**os.environ, "TORCH_REWRITE_CACHE": "1", "TORCH_REWRITE_CACHE_DIR": str(cache)}


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Make every test independent of the tests that ran before it in the same process."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in tests/gpu, and skip GPU tests where there is none."""
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch.cuda.is_available() is False")
    for item in items:
        if item.path.is_relative_to(GPU_TESTS):
            item.add_marker(pytest.mark.gpu)
        if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(skip)
