"""Pass diffs of small networks, compared line by line with the files in tests/golden.

After an intended change: ``UPDATE_GOLDEN=1 python -m pytest tests/test_golden_diffs.py``, then read what git says.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rewrite.verify import MatchVerifier
from tests.corpus import randomize
from tests.golden import models
from tests.golden.run import UPDATE, report_of, same_torch

GOLDEN = Path(__file__).parent / "golden"
CHANNELS = {"ConvNet": 3, "RepVGG": 8, "MobileOne": 8, "FastViTMixer": 8}


@same_torch
@pytest.mark.parametrize("name", CHANNELS)
def test_pass_diff_is_as_before(name: str):
    x = torch.randn(2, CHANNELS[name], 8, 8)
    model = randomize(getattr(models, name)().eval(), inputs=x)
    text = f"{report_of(model, x, MatchVerifier()).diff()}\n"
    path = GOLDEN / f"{name}.diff"
    if UPDATE:
        path.write_text(text)
    assert text.splitlines() == path.read_text().splitlines()


@pytest.mark.parametrize("name", CHANNELS)
def test_pass_diff_is_the_same_for_another_object(name: str):
    x = torch.randn(2, CHANNELS[name], 8, 8)
    first, second = (str(report_of(getattr(models, name)(), x).diff()) for _ in range(2))
    assert first == second
    assert str(Path(models.__file__).parent) not in first


def test_merging_a_block_leaves_less_to_compute():
    report = report_of(randomize(models.RepVGG().eval(), inputs=torch.randn(2, 8, 8, 8)), torch.randn(2, 8, 8, 8))
    assert report.after.weight_bearing == 1
    assert report.after.flops < report.before.flops
    assert report.after.activation_bytes < report.before.activation_bytes
