"""The reward format: exact, partial, none; and nothing that costs nothing pays."""

from __future__ import annotations

import pytest
from answers_lab import answered, earned
from hypothesis import given, settings
from hypothesis import strategies as st

GOOD = "<reasoning>2 and 2</reasoning>\n<answer>4</answer>"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (GOOD, 2.0),
        (f"\n {GOOD} \n", 2.0),
        ("<reasoning>line\nline</reasoning><answer>4</answer>", 2.0),
        (f"Sure! {GOOD}", 0.5),  # something around it
        (f"{GOOD} I hope this helps", 0.5),
        (f"{GOOD}{GOOD}", -1.0),  # neither pair is there once
        ("<answer>4</answer><reasoning>2 and 2</reasoning>", 0.5),  # the wrong order
        ("<reasoning>so <answer>4</answer></reasoning>", 0.5),  # one inside the other
        ("<answer>4</answer>", 0.5),
        ("<reasoning>2 and 2</reasoning> 4", 0.5),
        ("<reasoning> </reasoning>\n<answer>\n</answer>", -1.0),  # empty, which the seed paid 2.0
        ("<reasoning></reasoning><answer>4</answer>", 0.5),
        ("<answer>", -1.0),  # a tag alone, which the seed paid 0.5
        ("</answer>4<answer>", -1.0),
        ("4", -1.0),
        ("", -1.0),
        (None, -1.0),
    ],
)
def test_what_each_structure_earns(said, expected):
    assert earned("format", answered(said)) == [expected]


def test_a_message_that_was_cut_off_has_no_structure_yet():
    assert earned("format", answered(GOOD, cut=True)) == [-1.0]


def test_tags_and_rewards_are_settings():
    own = {"reasoning_tags": ["[[", "]]"], "answer_tags": ["((", "))"]}
    answers = answered("[[why]] ((4))"), answered("((4))"), answered(GOOD)
    assert earned("format", *answers, format_rewards=[1, 0, -3], **own) == [1.0, 0.0, -3.0]


TAGS = ["<reasoning>", "</reasoning>", "<answer>", "</answer>"]


@settings(deadline=None)
@given(st.lists(st.sampled_from([*TAGS, " ", "\n"])))
def test_tags_without_a_word_between_them_never_pay(parts):
    assert earned("format", answered("".join(parts))) == [-1.0]


word = st.text(st.characters(categories=["L", "N"]), min_size=1)


@settings(deadline=None)
@given(word, word, st.text(" \n\t"), st.text(" \n\t"))
def test_white_space_around_the_pairs_changes_nothing(why, what, around, between):
    said = f"{around}<reasoning>{why}</reasoning>{between}<answer>{what}</answer>{around}"
    assert earned("format", answered(said)) == [2.0]
