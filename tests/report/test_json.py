import json
import math

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
