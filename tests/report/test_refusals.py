import pytest

from rewrite.errors import InputError
from rewrite.report import refusals_text
from tests.report.records import refused, report


def test_all_refusals_or_those_of_a_rule_or_a_step():
    nodes = ["add_1", "add_2", "add_3"]
    assert [item.node for item in report().refusals()] == nodes
    assert [item.node for item in report().refusals("merge-parallel")] == nodes
    assert [item.node for item in report().refusals("reparameterize")] == nodes
    assert report().refusals("fold-batch-norm") == []


def test_unknown_rule_is_an_error():
    with pytest.raises(InputError, match="did you mean 'merge-parallel'"):
        report().refusals("merge-paralel")


def test_lists_print_as_text():
    made = report()
    assert str(made.refusals()) == refusals_text(made.refusals())
    assert str(made.rejections()) == "simplify at net.py:99, head: error 3 times the bound at channel 7"
    assert str(made.refusals("simplify")) == "(nothing was refused)"
    assert str(made.rejections("fold-constants")) == "(nothing was rejected)"
    assert str(made.refusals()[0]) == (
        "merge-parallel at 'add_1' (net.py:90, stages.2): the branches have different strides: 'stride' (net.py:91) "
        "(give them one stride)"
    )


def test_text_groups_by_rule_and_reason_whatever_node_the_reason_names():
    assert refusals_text(report().refusals()) == (
        "merge-parallel, 2 x: 'relu_2' (net.py:4, stages.2) is also read elsewhere: 'stride' (net.py:91)\n"
        "  at 'add_2' (net.py:90, stages.2)\n"
        "  at 'add_3' (net.py:90, stages.2)\n"
        "merge-parallel, 1 x: the branches have different strides: 'stride' (net.py:91) (give them one\n"
        "    stride)\n"
        "  at 'add_1' (net.py:90, stages.2)"
    )


def test_text_shows_some_places_of_many():
    text = refusals_text([refused(f"add_{i}", "no") for i in range(9)], places=2)
    assert text.splitlines()[-1] == "  and 7 more"
    assert text.count("  at ") == 2


def test_no_refusals_no_text():
    assert refusals_text([]) == ""
