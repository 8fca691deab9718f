"""Causes: which misses are one finding, and what the text says of them."""

from __future__ import annotations

from dataclasses import replace

from rewrite.driver import Refused, Rejection, StepRecord
from rewrite.gain import Work
from rewrite.report import Explanation, explanation_of
from rewrite.report.findings import findings_of
from tests.toy_rules import NoNegation, OneRelu

WHOLE = Work(1000, 1000, 1.0)


def lines(block: int, *operators: str) -> tuple[str, ...]:
    return tuple(
        f"{name}_{block}: f32[N, {block}] = aten.{name}(x_{block})  # b.{block}, net.py:7" for name in operators
    )


def miss(node: str, rule: str = "fold", block: int = 0, seconds: float = 0.1, **changes: object) -> Refused:
    made = Refused(
        rule, node, f"b.{block}", "net.py:7", f"relu in 'b.{block}' stands between", f"'relu_{block}'",
        f"apply it before relu in 'b.{block}'", lines(block, "conv", "norm"), "y = norm(x)",
        *lines(block, "relu"), "x = relu(x)", Work(10, 20, seconds),
    )  # fmt: skip
    return replace(made, **changes)


def test_findings_at_one_node_are_the_nearest_with_the_other_rules_named():
    near = miss("norm_0", rule="fold-after")
    far = miss("norm_0", rule="fold-before", matched=lines(0, "norm"), reason="another", culprit_line="")
    for order in ([near, far], [far, near]):
        [found] = findings_of([StepRecord("fold", refused=order)], WHOLE)
        assert (found.rule, found.also, found.reason) == ("fold-after", ("fold-before",), near.reason)


def test_several_rules_that_one_node_stops_are_one_finding():
    one, other = miss("norm_0", rule="fold"), miss("add_0", rule="merge", matched=lines(0, "conv", "norm", "add"))
    [found] = findings_of([StepRecord("both", refused=[one, other])], WHOLE)
    assert (found.rule, found.also, found.places[0].node) == ("merge", ("fold",), "add_0")
    # one rule that one node stops in two places is stopped twice
    again = replace(one, node="norm_1", matched=lines(1, "norm"))
    [found] = findings_of([StepRecord("both", refused=[one, replace(again, matched=lines(1, "conv", "norm"))])], WHOLE)
    assert len(found.places) == 2


def test_what_matched_within_another_match_for_the_same_reason_is_part_of_it():
    tree = miss("add_0", rule="merge", matched=lines(0, "conv", "norm", "other", "add"))
    part = miss("other_0", matched=lines(0, "other"), culprit_line="other")
    assert len(findings_of([StepRecord("both", refused=[part, tree])], WHOLE)) == 1
    assert len(findings_of([StepRecord("both", refused=[replace(part, reason="no"), tree])], WHOLE)) == 2


def test_misses_of_different_passes_stay_apart():
    assert len(findings_of([StepRecord("a", refused=[miss("n")]), StepRecord("b", refused=[miss("n")])], WHOLE)) == 2


def test_repeated_blocks_are_one_finding_described_by_the_most_costly():
    blocks = [miss(f"norm_{i}", block=i, seconds=seconds) for i, seconds in enumerate((0.1, 0.2, 0.05))]
    other = miss("norm_3", block=3, matched=lines(3, "linear", "norm"), seconds=0.3)
    first, second = findings_of([StepRecord("fold", refused=[*blocks, other])], WHOLE)
    assert [place.module for place in first.places] == ["b.1", "b.0", "b.2"]
    assert first.matched == lines(1, "conv", "norm")
    assert (first.gain.flops, round(first.share, 6)) == (30, 0.35)
    assert [place.module for place in second.places] == ["b.3"]


def test_a_model_without_work_has_no_shares():
    assert findings_of([StepRecord("fold", refused=[miss("norm_0")])], Work())[0].share == 0


def explanation(*refused: Refused, rejections: tuple[Rejection, ...] = ()) -> Explanation:
    record = StepRecord("one-relu", refused=list(refused), rejections=list(rejections))
    return explanation_of("Net", [OneRelu(), NoNegation()], [record, StepRecord("no-negation")], WHOLE, ["a note"])


TEXT = """\
Net: 0 of 3 places match; what is blocked would save about 35 % of its nominal time
pipeline  one-relu, no-negation

rule      places  matched  blocked
one-relu       3        0        3

1. one-relu, 2 places
        at  b.1 (net.py:7): y = norm(x)
    and at  b.0 (net.py:7)
   matched  conv_1: f32[N, 1] = aten.conv(x_1)  # b.1, net.py:7
            norm_1: f32[N, 1] = aten.norm(x_1)  # b.1, net.py:7
   culprit  relu_1: f32[N, 1] = aten.relu(x_1)  # b.1, net.py:7
            x = relu(x)
   because  relu in 'b.1' stands between
    remedy  apply it before relu in 'b.1'
would save  20 FLOP, 40 B of memory traffic, 30 % of the nominal time

2. one-relu
        at  b.2 (net.py:7): y = norm(x)
   matched  conv_2: f32[N, 2] = aten.conv(x_2)  # b.2, net.py:7
  rejected  off by 3
would save  5 FLOP, 6 B of memory traffic, 5 % of the nominal time

Nothing to begin with, for none of what these start at is in the model:
  no-negation  Negation

note  a note

Savings are estimates by a nominal roofline of 100 GFLOP/s and 20.0 GB/s, for one sample. Nothing
was measured."""


def test_the_whole_text():
    rejection = Rejection("one-relu", "one-relu", "b.2", "net.py:7", "off by 3", node="n",
                          matched=lines(2, "conv"), text="y = norm(x)", gain=Work(5, 6, 0.05))  # fmt: skip
    blocks = [miss(f"norm_{i}", rule="one-relu", block=i, seconds=0.1 * (i + 1)) for i in range(2)]
    assert str(explanation(*blocks, rejections=(rejection,))) == TEXT


def test_findings_of_no_gain_are_one_line_each_at_the_end():
    free = miss("reshape_0", rule="one-relu", gain=Work())
    text = str(explanation(free))
    assert "1. one-relu" not in text
    assert "Of no gain by themselves:\n  one-relu, at b.0 (net.py:7): relu in 'b.0' stands between (apply it" in text
    assert "Savings" not in text


def test_long_matches_are_cut():
    text = str(explanation(miss("n", rule="one-relu", matched=lines(0, *(f"op{i}" for i in range(20))))))
    assert "... and 8 more" in text


def test_many_places_are_counted():
    blocks = [miss(f"norm_{i}", rule="one-relu", block=i) for i in range(9)]
    assert "b.4 (net.py:7) and 4 more" in " ".join(str(explanation(*blocks)).split())
