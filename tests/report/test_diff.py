import pytest

from rewrite.errors import InputError
from rewrite.report.diff import diff_of
from tests.report.records import commit, report

FIRST = """\
@@ fold-batch-norm #1  stages.0.bn (net.py:88) @@ x = self.bn(self.conv(x))
- conv2d_0: f32[s0, 64, 8, 8] = aten.conv2d(x_0, stages.0.conv.weight, None, [1, 1], 'same')  # stages.0.conv
- norm_0: (f32[s0, 64, 8, 8], f32[0]) = aten.norm(conv2d_0, 0.1)
+ conv2d_9: f32[s0, 64, 8, 8] = aten.conv2d(x_0, mul_0, None, [1, 1], 'same')"""


def test_hunk_names_rule_place_and_line_and_keeps_only_what_the_header_does_not_say():
    assert str(report().diff("fold-batch-norm").hunks[0]) == FIRST


def test_diff_is_its_hunks_in_order():
    diff = report().diff()
    assert [hunk.number for hunk in diff] == [1, 2, 3]
    assert len(diff) == 3
    assert str(diff).startswith(FIRST + "\n\n@@ fold-batch-norm #2  stages.1.bn")


def test_a_step_or_a_rule_can_be_asked_for():
    made = report()
    made.records[2].commits.append(commit(4, 3, rule="drop-copy"))
    assert [hunk.number for hunk in made.diff("reparameterize")] == [1, 2, 3, 4]
    assert [hunk.number for hunk in made.diff("fold-batch-norm")] == [1, 2, 3]
    assert [hunk.number for hunk in made.diff("drop-copy")] == [4]


def test_what_ran_and_changed_nothing_has_an_empty_diff():
    for name in ("fold-constants", "merge-parallel", "simplify"):
        assert not report().diff(name)
        assert str(report().diff(name)) == f"({name} made no rewrites in this run)"
    assert str(report(records=[]).diff()) == "(no rewrites)"


def test_a_rule_that_exists_has_an_empty_diff_whatever_ran():
    assert str(report().diff("merge-branches")) == "(merge-branches made no rewrites in this run)"
    assert str(report(pipeline="simplify", records=[]).diff("merge-branches")) == (
        "(merge-branches did not run: the pipeline is simplify)"
    )


def test_only_rules_that_made_rewrites_are_suggested():
    with pytest.raises(InputError) as failure:
        report().diff("merge-paralel")
    assert "did you mean" not in str(failure.value)


def test_unknown_name_is_an_error_with_the_nearest_and_with_the_rules_that_fired():
    with pytest.raises(InputError, match=r"'fold-batchnorm'.*made by fold-batch-norm.*did you mean 'fold-batch-norm'"):
        report().diff("fold-batchnorm")
    with pytest.raises(InputError, match="no rule made a rewrite"):
        report(records=[]).diff("fold-batchnorm")


def test_collapse_folds_rewrites_that_differ_in_names_alone():
    diff = report().diff(collapse=True)
    assert [(hunk.number, hunk.alike) for hunk in diff] == [(1, ("stages.1.bn",)), (3, ())]
    assert str(diff.hunks[0]) == FIRST + "\n  and 1 more like it: stages.1.bn"


def test_collapsed_text_shows_three_places_of_many():
    text = str(diff_of([commit(n, n) for n in range(1, 22)], collapse=True))
    assert text.endswith("  and 20 more like it: stages.2.bn, stages.3.bn, stages.4.bn, ...")


@pytest.mark.parametrize(
    ("old", "new"),
    [("'same'", "'valid'"), ("[1, 1]", "[2, 2]"), ("aten.norm", "aten.other"), ("0.1)", "0.2)"), ("None", "bias"),
     ("f32", "f16"), ("(x_0, mul_0", "(mul_0, x_0")],
)  # fmt: skip
def test_collapse_keeps_apart_what_differs_in_more_than_names(old: str, new: str):
    one, other = commit(1, 0), commit(2, 0)
    fields = {side: tuple(line.replace(old, new) for line in getattr(other, side)) for side in ("removed", "added")}
    assert (fields["removed"], fields["added"]) != (other.removed, other.added)
    changed = type(other)(**{**vars(other), **fields})
    assert len(diff_of([one, changed], collapse=True)) == 2
    assert len(diff_of([one, other], collapse=True)) == 1


def test_weight_algebra_can_be_counted_instead_of_shown():
    made = commit(1, 0)
    algebra = [f"mul_{i}: f32[64] = aten.mul(a, b)  # stages.0.bn, by fold-batch-norm #1, weights only" for i in (0, 1)]
    more = type(made)(**{**vars(made), "added": (*algebra, *made.added, algebra[0])})
    shown = [line.partition(":")[0] for line in diff_of([more]).hunks[0].added]
    assert shown == ["mul_0", "mul_1", "conv2d_9", "mul_0"]
    hidden = diff_of([more], algebra=False).hunks[0].added
    rest = diff_of([made]).hunks[0].added
    assert hidden == ("... 2 operators on weights only", *rest, "... 1 operator on weights only")
    only = type(made)(**{**vars(made), "removed": algebra, "added": algebra[:1]})
    assert [hunk.added for hunk in diff_of([only, made], algebra=False)] == [rest]
    assert len(diff_of([only, made])) == 2


def test_places_that_are_not_known_leave_no_gaps():
    made = commit(1, 0)
    bare = type(made)(**{**vars(made), "module": "", "source": "", "text": ""})
    assert diff_of([bare]).hunks[0].header == "@@ fold-batch-norm #1 @@"


def test_html_escapes_and_colours_lines():
    made = commit(1, 0)
    diff = diff_of([type(made)(**{**vars(made), "text": "a < b"})])
    shown = diff._repr_html_()
    assert "a &lt; b" in shown
    assert shown.count("<span") == len(str(diff).splitlines())
