"""Decisions as log records with data, and as lines of a file."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from rewrite import events, explain, optimize


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).eval()


def records(caplog, level, model):
    with caplog.at_level(level, logger="rewrite"):
        optimize(model, torch.randn(2, 3, 8, 8), lower="eager")
    return [record for record in caplog.records if record.name == "rewrite"]


def test_every_decision_is_an_event(caplog, model):
    found = records(caplog, logging.DEBUG, model)
    kinds = {record.event for record in found}
    assert kinds >= {"captured", "step-started", "match", "miss", "commit", "step-finished", "verified"}
    commit = next(record for record in found if record.event == "commit")
    assert commit.data["rule"] == "fold-batch-norm-after"
    assert commit.data["number"] == 1
    assert commit.data["module"] == "1"
    assert commit.data["verdict"]["accepted"]
    assert all(json.loads(json.dumps(record.data)) is not None for record in found)


def test_a_capture_is_an_event_whatever_it_is_for(caplog, model):
    with caplog.at_level(logging.INFO, logger="rewrite"):
        explain(model, torch.randn(2, 3, 8, 8))
    captured = next(record for record in caplog.records if record.event == "captured")
    assert captured.data["model"] == "Sequential"
    assert captured.data["seconds"] > 0


def test_phases_alone_at_the_level_of_information(caplog, model):
    kinds = {record.event for record in records(caplog, logging.INFO, model)}
    assert "captured" in kinds
    assert not kinds & {"match", "miss", "commit"}


def test_a_file_gets_one_line_of_json_for_each_event(tmp_path):
    path = tmp_path / "events.jsonl"
    code = """
import torch
from torch import nn
from rewrite import optimize
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
optimize(model, torch.randn(2, 3, 8, 8), lower="eager")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, events.FILE: str(path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # a file is no reason to print
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert next(line["rule"] for line in lines if line["event"] == "commit") == "fold-batch-norm-after"
    assert all({"time", "event", "level", "text"} <= line.keys() for line in lines)


def test_torch_logs_names_the_logger(tmp_path):
    code = """
import logging, os, torch, rewrite.events
print(logging.getLogger("rewrite").level)
os.environ["TORCH_LOGS"] = "+rewrite"
torch._logging._init_logs()  # as torch does when it is imported
print(logging.getLogger("rewrite").level)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TORCH_LOGS": "rewrite"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.split() == [str(logging.INFO), str(logging.DEBUG)], done.stderr
