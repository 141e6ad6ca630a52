"""Tables to rows in memory: shapes, places, hashes, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gptoss_tools.core.columns import action_columns
from gptoss_tools.core.data import as_messages, load_table
from gptoss_tools.core.harmony import render
from gptoss_tools.errors import DataError

MESSAGES = [{"role": "developer", "content": "Answer [k]."}, {"role": "user", "content": "Which?"}]
PROMPT = render(MESSAGES, date="2025-01-02")


def table(name, *rows, k=2, rewards=True, extra="soc"):
    """A CSV whose rows are (extra, q..., reward...)."""
    names = ["prompt", extra, *(f"q_action_{a}" for a in range(k))]
    names += [f"reward_action_{a}" for a in range(k)] if rewards else []
    prompt = '"' + PROMPT.replace('"', '""') + '"'
    lines = [",".join(names), *(",".join([prompt, *map(str, row)]) for row in rows)]
    Path(name).write_text("\n".join(lines) + "\n")
    return name


def test_rows_of_several_files_come_in_order_with_their_places():
    table("a.csv", (10, 1, 2, 0.25, 0.75), (20, 3, 4, 0.5, 0.5))
    table("b.csv", (30, 1, 2, 3, 0, 0, 1), k=3)
    found = load_table(["b.csv", "a.csv"])
    assert len(found) == 3
    assert [found.where(i) for i in range(3)] == ["b.csv row 1", "a.csv row 1", "a.csv row 2"]
    assert found.n_actions.tolist() == [3, 2, 2]
    np.testing.assert_array_equal(found.q, [[1, 2, 3], [1, 2, math.nan], [3, 4, math.nan]])
    np.testing.assert_array_equal(found.rewards[1], [0.25, 0.75, math.nan])
    assert found.columns["soc"].tolist() == ["30", "10", "20"]
    assert found.prompts == [PROMPT] * 3


def test_rows_say_with_n_actions_that_they_have_fewer():
    rows = [(2, 1, 2, "", 0.2, 0.8, ""), (3, 1, 2, 3, 0, 0, 1)]
    found = load_table(table("a.csv", *rows, k=3, extra="n_actions"))
    assert found.n_actions.tolist() == [2, 3]
    assert np.isnan(found.q).tolist() == [[False, False, True], [False] * 3]


@pytest.mark.parametrize("count", ["4", "1", "2.5", ""])
def test_a_number_of_actions_the_row_cannot_have_is_refused(count):
    table("a.csv", (3, 1, 2, 3, 0, 0, 1), (count, 1, 2, 3, 0, 0, 1), k=3, extra="n_actions")
    with pytest.raises(DataError, match=r"row 2, column n_actions: .* from 2 to 3"):
        load_table("a.csv")


def test_the_hash_covers_prompts_and_rewards_but_not_paths_or_other_columns():
    row = (10, 1, 2, 0.25, 0.75)
    first = load_table(table("a.csv", row)).sha256
    assert load_table(table("other.csv", (99, 7, 8, 0.25, 0.75))).sha256 == first
    assert load_table(table("a.csv", (10, 1, 2, 0.25, 0.74))).sha256 != first
    assert load_table(table("a.csv", row, row)).sha256 != first
    Path("a.csv").write_text(Path("other.csv").read_text().replace("Which", "What"))
    assert load_table("a.csv").sha256 != first


def test_the_same_rows_in_another_format_have_the_same_hash():
    table("a.csv", (10, 1, 2, 0.1, math.nan), (10, 1, 2, 1e-300, 1))
    expected = load_table("a.csv")
    names = ("q_action_0", "q_action_1", "reward_action_0", "reward_action_1")
    rows = [(1, 2, 0.1, None), (1.0, 2, 1e-300, 1)]
    records = [{"prompt": PROMPT, **dict(zip(names, row, strict=True))} for row in rows]
    Path("a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert load_table("a.jsonl").sha256 == expected.sha256


def test_messages_are_rendered_with_the_options_given():
    records = [{"prompt": p, "q_action_0": 1, "q_action_1": 2} for p in (MESSAGES, PROMPT)]
    Path("a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = load_table("a.jsonl", date="2025-01-02")
    assert found.prompts == [PROMPT, PROMPT]
    assert "Reasoning: high" in load_table("a.jsonl", reasoning_effort="high").prompts[0]
    assert found.rewards is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("prompt,", "text,", "a.csv has no column prompt"),
        ("<|start|>system", "a system", "row 1: the prompt is not in Harmony form"),
        ("<|start|>assistant", "", "row 1: the prompt does not end with"),
        ("q_action_0", "q_action_2", "the column q_action_0 is missing but q_action_2 is there"),
        ("q_action_1", "q1", "q_action_0 is the only action"),
        (",0.75", ",abc", "row 1, column reward_action_1: 'abc' is not a number"),
        (",0.75", ",inf", "row 1, reward_action_1 is infinite"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named(old, new, message):
    table("a.csv", (10, 1, 2, 0.25, 0.75))
    Path("a.csv").write_text(Path("a.csv").read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        load_table("a.csv")


def test_tables_with_and_without_rewards_do_not_mix():
    table("a.csv", (10, 1, 2, 0.25, 0.75))
    table("b.csv", (10, 1, 2), rewards=False)
    with pytest.raises(DataError, match=r"b\.csv has no reward_action columns, while other"):
        load_table(["a.csv", "b.csv"])


def test_a_table_without_rows_is_refused():
    with pytest.raises(DataError, match=r"a\.csv: no rows"):
        load_table(table("a.csv"))


def test_the_published_tables_load(shared_data):
    found = load_table(shared_data / "tes" / "q_tables")
    assert found.q.shape == found.rewards.shape == (60, 4)
    np.testing.assert_allclose(found.rewards.sum(axis=1), 1, rtol=1e-12)


def test_action_columns_are_ordered_by_number_and_look_alikes_are_left_out():
    names = [f"q_action_{i}" for i in (10, 2, 1, 0, 3, 4, 5, 6, 7, 8, 9)]
    lookalikes = ["q_action_x", "q_action_", "q_action_01", "xq_action_0"]
    assert action_columns(names + lookalikes, "q_action_", "t")[-1] == "q_action_10"
    assert action_columns(lookalikes, "q_action_", "t") == []


def test_messages_are_told_from_text():
    assert as_messages(json.dumps(MESSAGES)) == MESSAGES
    assert as_messages([{"role": "user", "content": "x", "thinking": None}]) == [
        {"role": "user", "content": "x"}
    ]
    for text in ("[1, 2]", "[not json", "plain", "[]", None, 3.0):
        assert as_messages(text) is None
