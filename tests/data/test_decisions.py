"""Tables to rows in memory: shapes, places, hashes, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gptoss_tools.chat.harmony import render
from gptoss_tools.data.decisions import as_messages, load_table
from gptoss_tools.data.table_writer import TableWriter
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


def prepared(name, **columns):
    """Rows as prepare-data writes them: messages and whatever rewards read."""
    frame = pd.DataFrame({"prompt": [json.dumps(MESSAGES)] * len(next(iter(columns.values())))})
    frame.assign(**columns).to_json(name, orient="records", lines=True)
    return name


def test_a_table_without_values_is_read_where_none_are_needed():
    path = prepared("a.jsonl", answer=["4", 5], id=[7, None])
    found = load_table(path, date="2025-01-02", values=False, columns={"answer": "exact"})
    assert (found.q, found.rewards, found.n_actions.tolist()) == (None, None, [0, 0])
    assert found.prompts == [PROMPT] * 2
    assert [found.cells(row) for row in (0, 1)] == [
        {"answer": "4", "id": 7.0},
        {"answer": 5, "id": None},
    ]
    with pytest.raises(DataError, match="neither q_action nor reward_action") as caught:
        load_table(path)
    assert "gptoss rewards" in caught.value.hint


def test_a_column_that_a_reward_reads_must_be_there():
    load = {"values": False, "columns": {"answer": "exact", "rubric": "rubric"}}
    prepared("a.jsonl", answer=["4"], rubric=["[]"])
    prepared("b.jsonl", answer=["4"])
    message = r"b\.jsonl has no column rubric, which the reward rubric reads"
    with pytest.raises(DataError, match=message) as caught:
        load_table(["a.jsonl", "b.jsonl"], **load)
    assert (
        caught.value.hint == "it has prompt, answer; gptoss prepare-data makes tables with rubric"
    )


def test_cells_of_every_kind_of_table_are_plain_values():
    prepared("a.jsonl", answer=[["4", "four"], ["5"]])
    pd.read_json("a.jsonl", lines=True, dtype=False).to_parquet("a.parquet")
    Path("a.csv").write_text('prompt,answer\n"' + PROMPT + '", none \n"' + PROMPT + '",\n')
    cells = [load_table(f"a.{kind}", values=False).cells(0) for kind in ("jsonl", "parquet")]
    assert cells == [{"answer": ["4", "four"]}] * 2
    text = load_table("a.csv", values=False)
    # a word may be the answer, whatever it means in a column of numbers
    assert [text.cells(row)["answer"] for row in (0, 1)] == [" none ", None]


def test_a_table_without_rows_is_refused():
    with pytest.raises(DataError, match=r"a\.csv: no rows"):
        load_table(table("a.csv"))


def test_the_published_tables_load(shared_data):
    found = load_table(shared_data / "tes" / "q_tables")
    assert found.q.shape == found.rewards.shape == (60, 4)
    np.testing.assert_allclose(found.rewards.sum(axis=1), 1, rtol=1e-12)


def lines(name, *records):
    """A JSONL file."""
    rows = [json.dumps({"prompt": PROMPT, **record}) + "\n" for record in records]
    Path(name).write_text("".join(rows))
    return name


TWO = {"q_action_0": 1, "q_action_1": 2}


def test_names_come_from_the_rows_and_where_these_have_none_from_the_setting():
    lines("a.jsonl", {**TWO, "actions": ["low", "high"]}, TWO)
    table("b.csv", (0, 1, 2, 3), k=3, rewards=False)
    assert load_table(["a.jsonl", "b.csv"]).names == [["low", "high"], [], []]
    usual = load_table(["a.jsonl", "b.csv"], actions=["off", " half", "full"])
    assert usual.names == [["low", "high"], ["off", "half"], ["off", "half", "full"]]
    assert load_table("b.csv").names is None


def test_a_row_of_more_actions_than_the_setting_names_is_refused():
    table("a.csv", (0, 1, 2), (0, 1, 2), k=2, rewards=False)
    table("b.csv", (0, 1, 2, 3), k=3, rewards=False)
    with pytest.raises(DataError) as caught:
        load_table(["a.csv", "b.csv"], actions=["off", "on"])
    assert str(caught.value) == "b.csv row 1 has 3 actions, and `actions` names 2"
    assert caught.value.hint == "name as many as the row with the most has, or add a column actions"


def test_the_hash_covers_names_in_any_format_and_is_the_old_one_without():
    plain = load_table(lines("a.jsonl", TWO)).sha256
    # the digest of one row as it was before there were names: length, K, prompt
    text = PROMPT.encode()
    assert plain == hashlib.sha256(f"{len(text)} 2 ".encode() + text).hexdigest()
    assert load_table(lines("a.jsonl", {**TWO, "actions": None})).sha256 == plain
    named = load_table(lines("a.jsonl", {**TWO, "actions": ["low", "high"]})).sha256
    assert named != plain
    assert load_table(lines("a.jsonl", {**TWO, "actions": "low|high "})).sha256 == named
    assert load_table("a.jsonl", actions=["other", "names"]).sha256 == named
    assert load_table(lines("a.jsonl", TWO), actions=["low", "high"]).sha256 == named
    assert load_table("a.jsonl", actions=["high", "low"]).sha256 != named


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_are_the_same_table_as_columns(suffix):
    records = [
        {"q": [1.0, 2.0, -math.inf], "rewards": [0.25, 0.75, 0.0], "note": "a"},
        {"q": [3.0, 4.0], "rewards": [None, 1.0], "note": "b"},
    ]
    with TableWriter(f"a{suffix}") as writer:
        writer.write(pd.DataFrame([{"prompt": PROMPT, **record} for record in records]))
    wide = table("b.csv", (3, 1, 2, "-inf", 0.25, 0.75, 0), (2, 3, 4, "", "", 1, ""), k=3)
    Path(wide).write_text(Path(wide).read_text().replace("soc", "n_actions"))
    found, expected = load_table(f"a{suffix}"), load_table(wide)
    np.testing.assert_array_equal(found.q, expected.q)
    np.testing.assert_array_equal(found.rewards, expected.rewards)
    assert found.n_actions.tolist() == [3, 2]
    assert found.sha256 == expected.sha256
    assert list(found.columns) == ["note"]


def test_a_bad_number_in_a_list_is_named_by_its_place():
    lines("a.jsonl", {"q": [1, 2]}, {"q": [1, "much"]})
    message = r"a\.jsonl row 2, column q\[1\]: 'much' is not a number"
    with pytest.raises(DataError, match=message):
        load_table("a.jsonl")


def test_messages_are_rendered_with_their_rows_own_effort():
    efforts = ["low", None, "high"]
    records = [{**TWO, "prompt": MESSAGES, "reasoning_effort": effort} for effort in efforts]
    lines("a.jsonl", *records, {**TWO, "reasoning_effort": "high"})
    found = load_table("a.jsonl", date="2025-01-02", reasoning_effort="medium")
    rendered = [
        render(MESSAGES, date="2025-01-02", reasoning_effort=e or "medium") for e in efforts
    ]
    assert found.prompts == [*rendered, PROMPT]  # what is rendered already stays as it is
    lines("a.jsonl", records[0], {**TWO, "reasoning_effort": "max"})
    with pytest.raises(DataError) as caught:
        load_table("a.jsonl")
    assert str(caught.value) == (
        "a.jsonl row 2, column reasoning_effort: 'max' is not one of low, medium, high"
    )


def test_messages_are_told_from_text():
    assert as_messages(json.dumps(MESSAGES)) == MESSAGES
    assert as_messages([{"role": "user", "content": "x", "thinking": None}]) == [
        {"role": "user", "content": "x"}
    ]
    for text in ("[1, 2]", "[not json", "[" * 100_000, "plain", "[]", None, 3.0):
        assert as_messages(text) is None
