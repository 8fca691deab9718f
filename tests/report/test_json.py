import json
import math

import pytest
import sympy

from rewrite import InputError
from rewrite.cost import Costs, Counts
from rewrite.report import Report
from rewrite.report.json import restored
from rewrite.symbolic import BATCH
from rewrite.verdict import Verdict
from tests.report.records import report


def test_round_trip():
    data = report().to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_everything_is_in_it():
    data = report().to_dict()
    assert data["format"] == 2
    assert data["model"] == "Net"
    assert [step["step"] for step in data["steps"]] == ["fold-constants", "reparameterize{max_kernel=31}", "simplify"]
    first = data["steps"][1]["commits"][0]
    assert (first["rule"], first["number"], first["verdict"]["error"]) == ("fold-batch-norm", 1, 0.25)
    assert first["removed"] == list(report().records[1].commits[0].removed)
    assert data["steps"][1]["refused"][0]["remedy"] == "give them one stride"
    assert data["steps"][2]["rejections"][0]["module"] == "head"
    assert data["before"]["weight_bearing"] == 9
    assert data["after"]["flops"] == 2_500_000_000
    assert data["verification"]["accepted"] is True
    assert data["time"] == {"capture": 2.1, "passes": 0.5}
    assert data["notes"] == ["one note"]
    assert data["versions"] == {"torch": "2.13.0"}


def test_numbers_that_json_lacks_are_none():
    data = report(model_verdict=Verdict(False, "no", error=math.inf), time={"lowering": math.nan}).to_dict()
    assert data["verification"]["error"] is None
    assert data["time"] == {"lowering": None}
    assert report(model_verdict=None).to_dict()["verification"] is None


def test_a_report_comes_back():
    made = report()
    found = Report.from_dict(json.loads(json.dumps(made.to_dict())))
    assert found == made
    assert (str(found), str(found.diff()), found.refusals()) == (str(made), str(made.diff()), made.refusals())
    assert found.to_dict() == made.to_dict()
    assert Report.from_dict(report(model_verdict=None).to_dict()).model_verdict is None


def test_what_json_lacks_comes_back_as_nan():
    found = Report.from_dict(report(time={"lowering": math.inf}).to_dict())
    assert math.isnan(found.time["lowering"])
    assert found.to_dict()["time"] == {"lowering": None}
    assert "nan s" in str(found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 9}, "has format 9, and this version reads 2"),
        ({"steps": [{"step": 3}]}, "malformed"),
        ({"steps": 3}, "malformed"),
        ({"notes": None}, "malformed"),
        ({"model": None}, "malformed"),
    ],
)
def test_something_else_is_refused(change, words):
    with pytest.raises(InputError, match=words):
        Report.from_dict({**report().to_dict(), **change})
    with pytest.raises(InputError, match="has format None"):
        Report.from_dict([])


def test_fields_that_are_new_take_their_defaults():
    data = report().to_dict()
    for commit in data["steps"][1]["commits"]:
        del commit["text"]
    assert all(commit.text == "" for commit in Report.from_dict(data).records[1].commits)
    assert data.pop("costs") is None
    del data["per_sample"]
    assert Report.from_dict(data).per_sample
    assert not Report.from_dict({**data, "per_sample": False}).per_sample


def test_formulas_come_back():
    before = Counts(9, 20, 8_309_384, 33_237_536, 3 * BATCH + 5, sympy.Max(BATCH, 7))
    made = report(costs=Costs(before, Counts(flops=sympy.Integer(3))))
    data = json.loads(json.dumps(made.to_dict()))
    assert data["costs"]["before"] == {**data["before"], "flops": "3*N + 5", "activation_bytes": "Max(7, N)"}
    assert data["costs"]["after"]["flops"] == 3
    assert Report.from_dict(data) == made
    data["costs"]["before"]["flops"] = "__import__('os').abort()"
    with pytest.raises(InputError, match="malformed"):
        Report.from_dict(data)


def test_types_of_every_kind():
    assert restored(tuple[int, str], [1, "a"]) == (1, "a")
    assert restored(dict[str, tuple[float, ...]], {"a": [1, 2.5, None]})["a"][:2] == (1.0, 2.5)
    assert restored(int | None, None) is None
    with pytest.raises(TypeError):
        restored(int, True)
    with pytest.raises(ValueError, match="shorter"):
        restored(tuple[int, str], [1])
