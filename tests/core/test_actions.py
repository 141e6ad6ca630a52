"""Which action a completion chose, and every reason for having chosen none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools.core.actions import Decision, Reason, compile_pattern, parse_action
from gptoss_tools.core.completions import Completion, Message, split_text
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
