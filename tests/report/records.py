"""A run written by hand: three blocks, two of them alike, a refused and a rejected match."""

from __future__ import annotations

from rewrite.cost import Counts
from rewrite.driver import Commit, Refused, Rejection, StepRecord
from rewrite.gain import Work
from rewrite.report import Report
from rewrite.verdict import Verdict


def commit(number: int, block: int, channels: int = 64, rule: str = "fold-batch-norm") -> Commit:
    """A batch norm of one block folded into its convolution."""
    module = f"stages.{block}"
    value = f"f32[s77, {channels}, 8, 8]"
    conv = f"aten.conv2d(x_{block}, {module}.conv.weight, None, [1, 1], 'same')"
    merged = f"aten.conv2d(x_{block}, mul_{block}, None, [1, 1], 'same')"
    return Commit(
        number=number,
        step="reparameterize",
        rule=rule,
        module=f"{module}.bn",
        source="net.py:88",
        removed=(
            f"conv2d_{block}: {value} = {conv}  # {module}.conv, net.py:88",
            f"norm_{block}: ({value}, f32[0]) = aten.norm(conv2d_{block}, 0.1)  # {module}.bn, net.py:88",
        ),
        added=(f"conv2d_{block + 9}: {value} = {merged}  # {module}.bn, net.py:88, by {rule} #{number}",),
        verdict=Verdict(True, draws=3, seconds=0.1, error=0.25),
        text="x = self.bn(self.conv(x))",
    )


def refused(node: str, reason: str, rule: str = "merge-parallel", remedy: str = "") -> Refused:
    gain = Work(10, 20, 0.1)
    return Refused(rule, node, "stages.2", "net.py:90", reason, "'stride' (net.py:91)", remedy, gain=gain)


def records() -> list[StepRecord]:
    return [
        StepRecord("fold-constants", seconds=0.01, rules=("fold-constants",)),
        StepRecord(
            "reparameterize{max_kernel=31}",
            commits=[commit(1, 0), commit(2, 1), commit(3, 2, channels=128)],
            refused=[
                refused("add_1", "the branches have different strides", remedy="give them one stride"),
                refused("add_2", "'relu_2' (net.py:4, stages.2) is also read elsewhere"),
                refused("add_3", "'relu_3' (net.py:5, stages.3) is also read elsewhere"),
            ],
            seconds=1.25,
            verify_seconds=1.0,
            draws=9,
            rules=("fold-batch-norm", "merge-parallel", "merge-branches"),
        ),
        StepRecord(
            "simplify",
            rejections=[Rejection("simplify", "simplify", "head", "net.py:99", "error 3 times the bound at channel 7")],
            seconds=0.5,
            draws=1,
        ),
    ]


def report(**changes: object) -> Report:
    settings: dict[str, object] = {
        "model_name": "Net",
        "pipeline": "fold-constants, reparameterize{max_kernel=31}, simplify",
        "records": records(),
        "before": Counts(9, 20, 8_309_384, 33_237_536, 2_730_000_000, 999_999),
        "after": Counts(3, 11, 7_030_000, 28_120_000, 2_500_000_000, 500_000),
        "model_verdict": Verdict(True, draws=2, seconds=0.8, error=0.12),
        "time": {"capture": 2.1, "passes": 0.5},
        "notes": ("one note",),
        "versions": {"torch": "2.13.0"},
    }
    return Report(**{**settings, **changes})  # type: ignore[arg-type]
