"""Which action a completion chose, and every reason for having chosen none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools.chat.actions import Decision, Reason, compile_pattern, fold, parse_action
from gptoss_tools.chat.completions import Completion, Message, split_text
from gptoss_tools.errors import ConfigError

# Other work on the machine must not fail a property.
unhurried = settings(deadline=None)


def final(text, stop="return"):
    return Completion((Message("final", text),), stop)


@pytest.mark.parametrize(
    ("text", "decision"),
    [
        ("[2]", Decision(2, Reason.OK)),
        (" \n[0]\n", Decision(0, Reason.OK)),
        ("[03]", Decision(3, Reason.OK)),
        ("[4]", Decision(None, Reason.OUT_OF_RANGE)),
        ("[" + "9" * 5000 + "]", Decision(None, Reason.OUT_OF_RANGE)),
        ("[" + "0" * 5000 + "1]", Decision(1, Reason.OK)),
        ("[-1]", Decision(None, Reason.UNPARSABLE)),
        ("[1] because", Decision(None, Reason.UNPARSABLE)),
        ("[1][2]", Decision(None, Reason.UNPARSABLE)),
        ("[\N{FULLWIDTH DIGIT ONE}]", Decision(None, Reason.UNPARSABLE)),
        ("1", Decision(None, Reason.UNPARSABLE)),
        ("", Decision(None, Reason.UNPARSABLE)),
    ],
)
def test_the_whole_final_message_is_the_action(text, decision):
    assert parse_action(final(text), 4) == decision


def test_a_number_in_the_analysis_is_no_answer():
    thought = split_text("<|channel|>analysis<|message|>[1]<|return|>")
    assert parse_action(thought, 4) == Decision(None, Reason.NO_FINAL)


def test_a_generation_cut_at_the_limit_is_truncated_even_with_an_answer_in_it():
    assert parse_action(final("[1]", stop="none"), 4) == Decision(None, Reason.TRUNCATED)


def test_without_a_number_of_actions_any_index_is_one():
    assert parse_action(final("[12345]"), None) == Decision(12345, Reason.OK)


@unhurried
@given(st.integers(0, 300), st.integers(2, 200))
def test_every_index_below_the_number_of_actions_is_read_back(index, n_actions):
    found = parse_action(final(f"[{index}]"), n_actions)
    expected = Decision(index, Reason.OK) if index < n_actions else None
    assert found == (expected or Decision(None, Reason.OUT_OF_RANGE))


@unhurried
@given(st.text())
def test_no_text_is_both_valid_and_without_an_action(text):
    found = parse_action(final(text), 3)
    assert (found.action is None) == (found.reason is not Reason.OK)


def test_a_users_pattern_reads_its_group():
    pattern = r"(?:action|choice)\s*=\s*(\d+)\.?"
    assert parse_action(final("choice = 1."), 2, pattern) == Decision(1, Reason.OK)
    assert parse_action(final("[1]"), 2, pattern).reason is Reason.UNPARSABLE
    assert parse_action(final("so action=1"), 2, pattern).reason is Reason.UNPARSABLE
    assert parse_action(final("so action=1"), 2, rf"(?s:.*){pattern}").action == 1
    assert parse_action(final("one"), 2, r"(\w+)").reason is Reason.UNPARSABLE


@pytest.mark.parametrize("pattern", ["[(", r"\d", r"(\d)(\d)"])
def test_a_pattern_that_cannot_name_an_action_is_refused(pattern):
    with pytest.raises(ConfigError, match="action_pattern"):
        compile_pattern(pattern)


NAMES = ["Low", "half  load", "full"]


@pytest.mark.parametrize(
    ("text", "decision"),
    [
        ("low", Decision(0, Reason.OK)),
        ("[low]", Decision(0, Reason.OK)),
        (" [ HALF\n load ]\n", Decision(1, Reason.OK)),
        ("Half\tLoad", Decision(1, Reason.OK)),
        ("[off]", Decision(None, Reason.OUT_OF_RANGE)),
        ("[2]", Decision(None, Reason.OUT_OF_RANGE)),
        ("2", Decision(None, Reason.UNPARSABLE)),
        ("off", Decision(None, Reason.UNPARSABLE)),
        ("low.", Decision(None, Reason.UNPARSABLE)),
        ("I take [low]", Decision(None, Reason.UNPARSABLE)),
        ("[low] or [full]", Decision(None, Reason.UNPARSABLE)),
        ("[low][full]", Decision(None, Reason.UNPARSABLE)),
        ("[ ]", Decision(None, Reason.UNPARSABLE)),
        ("[", Decision(None, Reason.UNPARSABLE)),
        ("", Decision(None, Reason.UNPARSABLE)),
    ],
)
def test_with_names_the_answer_is_a_name_alone_or_in_brackets(text, decision):
    assert parse_action(final(text), 3, None, NAMES) == decision
    # what callers compile once is the same default
    assert parse_action(final(text), 3, compile_pattern(None), NAMES) == decision


def test_a_number_is_an_answer_only_where_it_is_a_name():
    numbers = ["1", "0"]  # in this order: the name decides, not the place
    assert parse_action(final("[1]"), 2, None, numbers) == Decision(0, Reason.OK)
    assert parse_action(final("0"), 2, None, numbers) == Decision(1, Reason.OK)
    assert parse_action(final("[01]"), 2, None, numbers).reason is Reason.OUT_OF_RANGE


def test_a_name_in_brackets_of_its_own_is_read_whole():
    assert parse_action(final("[a]"), 2, None, ["a", "[a]"]) == Decision(1, Reason.OK)
    assert parse_action(final("[[a]]"), 2, None, ["a", "[a]"]) == Decision(1, Reason.OK)


def test_a_users_pattern_reads_a_name_from_its_group():
    pattern = r"choice: *(.*?)\.?"
    assert parse_action(final("choice: FULL."), 3, pattern, NAMES) == Decision(2, Reason.OK)
    assert parse_action(final("choice: off"), 3, pattern, NAMES).reason is Reason.OUT_OF_RANGE
    assert parse_action(final("choice: ."), 3, pattern, NAMES).reason is Reason.UNPARSABLE
    assert parse_action(final("full"), 3, pattern, NAMES).reason is Reason.UNPARSABLE
    assert parse_action(final("x"), 3, r"x(y)?", NAMES).reason is Reason.UNPARSABLE


def test_other_reasons_come_before_the_names():
    assert parse_action(final("low", stop="none"), 3, None, NAMES).reason is Reason.TRUNCATED
    thought = split_text("<|channel|>analysis<|message|>low<|return|>")
    assert parse_action(thought, 3, None, NAMES).reason is Reason.NO_FINAL


@pytest.mark.parametrize("names", [None, []])
def test_a_row_without_names_is_answered_with_numbers(names):
    assert parse_action(final("[1]"), 2, None, names) == Decision(1, Reason.OK)
    assert parse_action(final("low"), 2, None, names).reason is Reason.UNPARSABLE


@unhurried
@given(st.lists(st.text(min_size=1).filter(fold), min_size=1, unique_by=fold), st.data())
def test_every_name_is_read_back_in_any_case_and_spacing(names, data):
    index = data.draw(st.integers(0, len(names) - 1))
    said = "  ".join(names[index].split(" ")).casefold()
    assert parse_action(final(said), None, None, names) == Decision(index, Reason.OK)
    assert parse_action(final(f"[{said}]"), None, None, names).reason is Reason.OK
