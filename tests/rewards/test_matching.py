"""exact, numeric and regex: hand-made answers, and numbers that Python writes itself."""

from __future__ import annotations

import math

import pytest
from answers_lab import answered, earned
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptoss_tools.errors import ConfigError
from gptoss_tools.rewards.matching import last_number


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Paris", 1.0),
        ("  paris\n", 1.0),
        ("<reasoning>Rome? no</reasoning>\n<answer> Paris </answer>", 1.0),
        ("<answer>Rome</answer> <answer>Paris</answer>", 1.0),  # the last pair counts
        ("<answer>Paris", 0.0),  # no pair: the whole text is the answer
        ("Paris, France", 0.0),
        ("", 0.0),
        (None, 0.0),
    ],
)
def test_exact_compares_what_is_in_the_answer_tags_or_everything(said, expected):
    assert earned("exact", answered(said, answer="Paris")) == [expected]


def test_an_answer_that_was_cut_off_is_none_whatever_it_holds():
    assert earned("exact", answered("Paris", cut=True, answer="Paris")) == [0.0]
    assert earned("numeric", answered("4", cut=True, answer="4")) == [0.0]


@pytest.mark.parametrize("name", ["exact", "numeric"])
@pytest.mark.parametrize("row", [{}, {"answer": None}, {"answer": "  "}])
def test_a_row_without_an_answer_masks(name, row):
    assert earned(name, answered("Paris", **row)) == [None]


def test_answers_of_tables_may_be_numbers_already():
    assert earned("exact", answered("4", answer=4)) == [1.0]
    assert earned("numeric", answered("four is 4.0", answer=4)) == [1.0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = 7\n#### 1,234", 1234.0),
        ("#### 72", 72.0),
        ("#### 1 apple of 2", 2.0),
        ("1,234,567.5", 1234567.5),
        ("1,23", 23.0),  # no thousands: two numbers
        ("-3/4", -0.75),
        ("2 3/4", 2.75),
        ("1/0", None),
        ("5.", 5.0),
        ("x = .5", 0.5),
        ("$1,234.50", 1234.5),
        ("-$5", -5.0),
        ("\u22127", -7.0),
        ("- 5 apples", 5.0),  # a list's dash
        ("3-4", 4.0),
        ("10 %", 10.0),
        ("2.5e3", 2500.0),
        ("1e999", None),
        ("9" * 5000, None),  # beyond a float
        ("H2O", 2.0),
        ("none", None),
        ("", None),
    ],
)
def test_the_last_number_is_read(text, number):
    assert last_number(text) == number


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.booleans())
@example(-0.0, True)
def test_a_number_is_read_as_it_was_written_with_or_without_thousands(value, thousands):
    text = f"the answer is {value:,.3f}." if thousands else f"is {value!r} "
    expected = float(f"{value:.3f}") if thousands else value
    assert last_number(text) == expected


@settings(deadline=None)
@given(st.text())
def test_no_text_breaks_the_reading(text):
    found = last_number(text)
    assert found is None or math.isfinite(found)


def test_numeric_allows_a_tolerance_relative_or_absolute():
    row = {"answer": "#### 1000"}
    near, far = answered("1000.5", **row), answered("1002", **row)
    assert earned("numeric", near, far) == [0.0, 0.0]
    assert earned("numeric", near, far, numeric_tolerance=1e-3) == [1.0, 0.0]  # up to 1 of 1000
    assert earned("numeric", answered("0.0005", answer="0"), numeric_tolerance=1e-3) == [1.0]


def test_a_pattern_must_match_the_whole_answer_and_its_group_the_rows():
    answers = [
        answered("(B)", answer="b"),
        answered("(A)", answer="b"),
        answered("it is (B)", answer="b"),
        answered("(C)"),  # nothing to compare with: the form is all
        answered(None, answer="b"),
    ]
    found = earned("regex", *answers, answer_pattern=r"\(([A-D])\)")
    assert found == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert earned("regex", answers[1], answer_pattern=r"\([A-D]\)") == [1.0]  # without a group


@pytest.mark.parametrize(
    ("pattern", "message"), [(None, "needs answer_pattern"), ("(", "no.* regular expression")]
)
def test_a_pattern_that_is_none_is_refused_before_training(pattern, message):
    with pytest.raises(ConfigError, match=message):
        earned("regex", answer_pattern=pattern)
