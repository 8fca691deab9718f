"""Two processes that distill together."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

ROOT = Path(__file__).parents[2]
LIMIT = 150


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed training")
def test_two_processes_distill_together(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    started = subprocess.Popen(
        [*launcher, "-m", "tests.distill.together", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = started.communicate(timeout=LIMIT)[0]
    except subprocess.TimeoutExpired:
        started.send_signal(signal.SIGTERM)  # the launcher ends its processes, which killing it would leave behind
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.communicate(timeout=60)
        raise
    finally:
        started.kill()
    assert started.returncode == 0, said
    assert said.count("all of it") == 2, said
