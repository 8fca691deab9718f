from dataclasses import replace

import pytest

from rewrite.arithmetic import symbol
from rewrite.cost import Costs, Counts
from rewrite.driver import StepRecord
from rewrite.gain import Work
from rewrite.report.text import scaled
from rewrite.symbolic import BATCH
from rewrite.verdict import Verdict
from tests.report.records import commit, refused, report

TEXT = """\
Net (torch 2.13.0)
pipeline  fold-constants, reparameterize{max_kernel=31}, simplify

pass                           found  applied  refused  rejected  draws    time
reparameterize{max_kernel=31}      6        3        3         0      9  1.25 s
  fold-batch-norm                  3        3        0         0
  merge-parallel                   3        0        3         0
    refused 3, 2 of them: 'relu_2' (net.py:4, stages.2) is also read elsewhere: 'stride' (net.py:91)
simplify                           1        0        0         1      1  0.50 s
  rejected 1: error 3 times the bound at channel 7 (net.py:99, head)
found nothing  fold-constants (0.01 s)

                                 before    after  change
weight-bearing operators              9        3   -67 %
operators                            20       11   -45 %
parameters                       8.31 M   7.03 M   -15 %
weights                         33.2 MB  28.1 MB   -15 %
FLOPs per sample                 2.73 G   2.50 G    -8 %
activations written per sample  1.00 MB   500 kB   -50 %

verification  the whole model agrees with the source; its error is 0.12 of what is allowed (2 draws,
              0.80 s)
time  2.60 s: capture 2.10 s, passes 0.50 s

note  one note"""


def test_the_whole_report():
    assert str(report()) == TEXT
    assert repr(report()) == TEXT


def test_what_is_proportional_to_the_batch_is_said_by_a_number():
    counts = Counts(flops=12 * BATCH, activation_bytes=0)
    assert str(report(costs=Costs(counts, counts))) == TEXT


def test_what_is_not_has_a_formula():
    height = symbol("H")
    before, after = Counts(flops=12 * BATCH + 5, activation_bytes=4 * BATCH), Counts(flops=12 * BATCH)
    lines = str(report(costs=Costs(before, after))).splitlines()
    assert [line for line in lines if "call of N" in line] == ["FLOPs per call of N samples  12*N + 5 -> 12*N"]
    wide = Counts(flops=12 * BATCH, activation_bytes=4 * BATCH * height)
    assert "activations written per call of N samples  4*H*N -> 4*N" in str(report(costs=Costs(wide, before)))
    long = Counts(flops=sum((symbol(f"s{i}") for i in range(70)), 12 * BATCH))
    assert "samples  12*N -> a long formula (report.costs)" in str(report(costs=Costs(after, long)))


def test_a_batch_that_is_fixed_has_no_formula():
    counts = Counts(flops=12, activation_bytes=4)
    assert "12 ->" not in str(report(costs=Costs(counts, counts), per_sample=False))
    free = Counts(flops=12 * symbol("H"))
    assert "FLOPs per call  12*H -> 12" in str(report(costs=Costs(free, counts), per_sample=False))


def test_refusals_of_no_gain_are_not_counted():
    gainful = refused("add_1", "too wide")
    free = replace(refused("view_1", "a view", rule="merge-reshapes"), gain=Work())
    made = report(records=[StepRecord("simplify", refused=[gainful, free])])
    assert "refused 1: too wide" in str(made)
    assert "merge-reshapes" not in str(made)
    assert len(made.refusals()) == 2
    assert "found nothing  simplify" in str(report(records=[StepRecord("simplify", refused=[free])]))


def test_one_of_several_refusals_is_said_to_be_one():
    others = [refused("add_1", "too wide"), refused("add_2", "too deep")]
    assert "refused 2, one of them: too wide" in str(report(records=[StepRecord("simplify", refused=others)]))


def test_counts_of_a_fixed_batch_are_those_of_a_call():
    text = str(report(per_sample=False))
    assert "FLOPs per call" in text
    assert "activations written per call" in text
    assert "per sample" not in text


def test_html_is_the_text_escaped():
    shown = report(notes=("a < b",))._repr_html_()
    assert "a &lt; b" in shown
    assert shown.startswith("<pre>Net")


def test_no_line_passes_a_hundred_columns():
    record = StepRecord(
        "choose{" + ", ".join(f"option_{i}={i}" for i in range(20)) + "}",
        commits=[commit(1, 0, rule="a-rule-with-a-name-that-goes-on-and-on-" + "and-on" * 9)],
        refused=[refused("add", "because " * 30, remedy="do " * 30)],
    )
    text = str(report(records=[record] * 20, pipeline=", ".join([record.step] * 5), notes=("word " * 60,)))
    assert max(map(len, text.splitlines())) <= 100


def test_a_rejected_model_is_said_so():
    text = str(report(model_verdict=Verdict(False, "output 0 differs by 0.5 at row 3", draws=1)))
    assert "does NOT agree with the source: output 0 differs by 0.5 at row 3 (1 draw, 0.00 s)" in " ".join(text.split())


def test_what_was_not_done_is_not_claimed():
    text = str(report(model_verdict=None, records=[], time={}, notes=(), versions={}))
    assert "was not compared" in text
    assert text.startswith("Net\n")
    for absent in ("found", "time  ", "note"):
        assert absent not in text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_999, "10.0 kB"), (99_950, "100 kB"), (999_499, "999 kB"),
     (999_500, "1.00 MB"), (1_234_567_890, "1.23 GB"), (10**15, "1.00 PB"), (10**19, "1.00e+04 PB")],
)  # fmt: skip
def test_numbers_have_three_digits_and_a_prefix(number: int, text: str):
    assert scaled(number, "B") == text
