"""Which actions a row has, what they are called, and how hard it is to be thought about."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools.chat.actions import fold
from gptoss_tools.data.columns import action_columns, action_names, row_actions, row_efforts
from gptoss_tools.data.tables import numbers
from gptoss_tools.errors import DataError

# Other work on the machine must not fail a property.
unhurried = settings(deadline=None)

WIDE = {"q_action_0": [1, 2], "q_action_1": [3, 4], "q_action_2": [5, None]}


def frame(**columns):
    return pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in columns.items()})


def problems(**columns):
    """Everything that is reported, in order."""
    found = []
    row_actions(frame(**columns), "t", 1, lambda *problem: found.append(problem))
    return found


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        (["low", "high"], ["low", "high"]),
        ('["low", " high"]', ["low", "high"]),
        (" low |Half load| full", ["low", "Half load", "full"]),
        ("[a] | [b]", ["[a]", "[b]"]),
        ("none|all", ["none", "all"]),
        (["日", "夜"], ["日", "夜"]),
        (None, []),
        ("  ", []),
        ([], []),
        (float("nan"), []),
    ],
)
def test_names_are_a_list_or_its_json_or_text_with_bars(cell, names):
    assert action_names(cell) == names


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("low", "'low' is the only action, and a decision needs two"),
        (["low"], "'low' is the only action, and a decision needs two"),
        ("none", "'none' is the only action, and a decision needs two"),
        ("low|", "a name is empty"),
        (["low", " "], "a name is empty"),
        ("Half load|on|half  LOAD", "'Half load' and 'half  LOAD' are the same name"),
        ([0, 50], "0 is not text, and a name is"),
        ("[0, 50]", "0 is not text, and a name is"),
        (["low", None], "None is not text, and a name is"),
        (3.5, "3.5 is neither a list of names nor names separated by |"),
        ({"low": 1}, "{'low': 1} is neither a list of names nor names separated by |"),
    ],
)
def test_names_that_cannot_be_told_apart_or_said_are_refused(cell, message):
    with pytest.raises(DataError) as caught:
        action_names(cell)
    assert str(caught.value) == message


@unhurried
@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(fold),
        min_size=2,
        unique_by=fold,
    )
)
def test_every_list_of_different_names_survives_json(names):
    stripped = [name.strip() for name in names]
    assert action_names(json.dumps(names)) == action_names(names) == stripped


def test_a_row_has_as_many_actions_as_it_names():
    found = row_actions(frame(actions=["a|b|c", "on|off"], **WIDE), "t")
    assert found.counts.tolist() == [3, 2]
    assert found.names == [["a", "b", "c"], ["on", "off"]]
    assert found.q == ["q_action_0", "q_action_1", "q_action_2"]
    assert not found.in_lists


def test_a_row_without_names_is_numbered_beside_rows_that_have_them():
    found = row_actions(frame(actions=["a|b|c", None], **WIDE), "t")
    assert found.counts.tolist() == [3, 3]
    assert found.names == [["a", "b", "c"], []]


def test_lists_say_how_many_actions_their_rows_have():
    found = row_actions(frame(q=[[1, 2, "-inf"], "[3, 4]"], rewards=[[0, 1, 0], [0.5, None]]), "t")
    assert found.counts.tolist() == [3, 2]
    assert (found.q, found.rewards) == (
        ["q[0]", "q[1]", "q[2]"],
        ["rewards[0]", "rewards[1]", "rewards[2]"],
    )
    assert found.in_lists
    q = np.stack([numbers(found.frame, name, "t") for name in found.q], axis=1)
    np.testing.assert_array_equal(q, [[1, 2, -np.inf], [3, 4, np.nan]])
    assert "q" not in found.frame and "rewards" not in found.frame


def test_beside_columns_per_action_the_names_q_and_rewards_are_free():
    found = row_actions(frame(q=[0.5, 0.6], rewards=["x", "y"], **WIDE), "t")
    assert (found.q, found.rewards, found.in_lists) == (list(WIDE), [], False)
    assert "q" in found.frame and "rewards" in found.frame


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"n_actions": [3, 2], "actions": ["a|b|c", "a|b|c"], **WIDE},
            "x.csv row 8, column actions: 3 actions, where the row has 2",
        ),
        (
            {"actions": ["a|b|c", "a|b|c|d"], **WIDE},
            "x.csv row 8, column actions: 4 names, where there are values for 3 actions",
        ),
        (
            {"actions": ["a|b", "a|b"], **WIDE},
            "x.csv row 7, column q_action_2: a value, but the row names only 2 actions",
        ),
        (
            {"actions": [None, "A | a"], **WIDE},
            "x.csv row 8, column actions: 'A' and 'a' are the same name",
        ),
        (
            {"n_actions": ["3", "2.5"], **WIDE},
            "x.csv row 8, column n_actions: '2.5' is not a whole number from 2 to 3",
        ),
        (
            {"q": [[1, 2], [1, 2]], "actions": ["a|b", "a|b|c"]},
            "x.csv row 8, column actions: 3 names, where there are values for 2 actions",
        ),
        (
            {"q": [[1, 2, 3], [1, 2]], "actions": ["a|b", "a|b"]},
            "x.csv row 7, column actions: 2 actions, where the row has 3",
        ),
        (
            {"q": [[1, 2, 3], [1, 2]], "n_actions": [3, 3]},
            "x.csv row 8, column n_actions: 3 actions, where the row has 2",
        ),
        (
            {"q": [[1, 2], [1, 2, 3]], "rewards": [[0, 1], [0, 1]]},
            "x.csv row 8, column rewards: 2 actions, where the row has 3",
        ),
        (
            {"q": [[1, 2], [1]]},
            "x.csv row 8, column q: [1] is not a list of two or more numbers",
        ),
        (
            {"q": [[1, 2], None]},
            "x.csv row 8, column q: None is not a list of two or more numbers",
        ),
        (
            {"q": [0.5, 0.6]},
            "x.csv row 7, column q: 0.5 is not a list of two or more numbers",
        ),
    ],
)
def test_columns_that_do_not_agree_name_row_and_column(columns, message):
    with pytest.raises(DataError) as caught:
        row_actions(frame(**columns), "x.csv", 7)
    assert str(caught.value) == message


def test_columns_beyond_a_row_may_hold_anything_where_n_actions_says_how_many():
    found = row_actions(frame(n_actions=[2, 2], actions=["a|b", None], **WIDE), "t")
    assert found.counts.tolist() == [2, 2]


def test_all_problems_can_be_collected():
    assert problems(n_actions=[9, 3], actions=["a|b|c", "a|a"], **WIDE) == [
        (1, "n_actions", "9 is not a whole number from 2 to 3"),
        (2, "actions", "'a' and 'a' are the same name"),
    ]


def test_without_values_there_are_no_actions():
    found = row_actions(frame(actions=["a|b", "c"], n_actions=["x", "y"]), "t")
    assert (found.q, found.rewards, found.counts.tolist()) == ([], [], [0, 0])


def test_action_columns_are_ordered_by_number_and_look_alikes_are_left_out():
    names = [f"q_action_{i}" for i in (10, 2, 1, 0, 3, 4, 5, 6, 7, 8, 9)]
    lookalikes = ["q_action_x", "q_action_", "q_action_01", "xq_action_0"]
    assert action_columns(names + lookalikes, "q_action_", "t")[-1] == "q_action_10"
    assert action_columns(lookalikes, "q_action_", "t") == []


def test_an_empty_effort_is_the_usual_one():
    cells = ["low", None, " ", "high", float("nan")]
    expected = ["low", "medium", "medium", "high", "medium"]
    assert row_efforts(frame(reasoning_effort=cells), "medium", "t") == expected
    assert row_efforts(frame(x=[1, 2]), "high", "t") == ["high", "high"]


@pytest.mark.parametrize("cell", ["High", "none", 2, ["low"]])
def test_an_unknown_effort_names_row_and_column(cell):
    cells = frame(reasoning_effort=["low", cell])
    with pytest.raises(DataError) as caught:
        row_efforts(cells, "low", "x.csv", 3)
    assert str(caught.value) == (
        f"x.csv row 4, column reasoning_effort: {cell!r} is not one of low, medium, high"
    )
