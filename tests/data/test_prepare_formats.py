"""Each published shape of dataset, with made-up content, becomes the same few columns."""

from __future__ import annotations

import json

import pytest

from gptoss_tools.data.prepare import prepare_rows
from gptoss_tools.data.rubrics import parse_rubric
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.settings import PrepareRowSettings

RUBRIC = "1. Names the river. [Hard Rule]\n2. Is written for a child. [Principle]"
ITEMS = [
    {"title": "River", "description": "Essential Criteria: Names the river.", "weight": 5},
    {"title": "Tone", "description": "Optional Criteria: Is friendly.", "weight": 1},
]
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello", "thinking": "be nice"},
    {"role": "user", "content": "Which river?"},
    {"role": "assistant", "content": "The Rhine."},
    {"role": "user", "content": "Thanks"},
]
HARMONY = "<|start|>system<|message|>x<|end|><|start|>user<|message|>go<|end|><|start|>assistant"


def asked(question):
    return [{"role": "user", "content": question}]


def report_of(*rows, **options):
    return prepare_rows(rows, PrepareRowSettings(train_fraction=1.0, **options)).report


def prepared(*rows, **options):
    return prepare_rows(rows, PrepareRowSettings(train_fraction=1.0, **options)).train


def one(row, **options):
    (found,) = prepared(row, **options)
    return found


def test_openrubrics_gives_the_instruction_and_its_rubric():
    row = one({"instruction": "Describe Cologne.", "rubric": RUBRIC, "source": "made up"})
    assert row["prompt"] == asked("Describe Cologne.")
    items = parse_rubric(row["rubric"], "here")
    assert [item.description for item in items] == [
        "Names the river.",
        "Is written for a child.",
    ]
    assert set(row) == {"prompt", "rubric", "id", "source"} and row["source"] == "made up"


@pytest.mark.parametrize(
    ("winner", "reference"),
    [("A", "first"), ("response_b", "second"), ("Response A", "first"), ("b", "second")],
)
def test_of_two_responses_the_winner_is_the_reference(winner, reference):
    row = one(
        {
            "instruction": "q",
            "response_a": "first",
            "response_b": "second",
            "winner": winner,
            "rubric": RUBRIC,
            "judge": "long",
        }
    )
    assert row["reference"] == reference and row["judge"] == "long"
    assert not row.keys() & {"winner", "response_a", "instruction"}


@pytest.mark.parametrize("winner", ["tie", "", None, 0, 1])
def test_a_winner_that_is_neither_response_is_a_reason_to_leave_the_row_out(winner):
    base = {"instruction": "q", "response_a": "x", "response_b": "y", "rubric": RUBRIC}
    report = report_of({**base, "winner": winner}, {**base, "winner": "A"})
    assert {name: entry.rows for name, entry in report.dropped.items()} == {"no winner": 1}


@pytest.mark.parametrize(
    "cells",
    [
        {"rubric": ITEMS},
        {"rubric": json.dumps(ITEMS)},
        {"rubric": {key: [item[key] for item in ITEMS] for key in ITEMS[0]}},
    ],
)
def test_rubrics_as_rewards_come_as_objects_their_text_or_lists_of_each_part(cells):
    row = one({"question": "Which river?", "reference_answer": "The Rhine.", **cells})
    items = parse_rubric(row["rubric"], "here")
    assert [(i.description, i.category, i.weight, i.title) for i in items] == [
        ("Names the river.", "Essential", 5.0, "River"),
        ("Is friendly.", "Optional", 1.0, "Tone"),
    ]
    assert row["reference"] == "The Rhine." and row["prompt"] == asked("Which river?")


def test_a_rubric_list_stands_in_for_a_missing_rubric():
    texts = [item["description"] for item in ITEMS]
    row = one({"question": "q", "reference_answer": "a", "rubric_list": texts, "rubric_count": 2})
    assert [i.category for i in parse_rubric(row["rubric"], "here")] == ["Essential", "Optional"]
    assert row["rubric_count"] == 2


PITFALL = {
    "question": "q",
    "reference_answer": "a",
    "rubric": [{"description": "Pitfall Criteria: Does not mention the sea.", "weight": -1}],
}


def test_a_pitfall_whose_polarity_cannot_be_read_is_left_out_unless_it_is_told():
    report = report_of(PITFALL, {**PITFALL, "rubric": ITEMS})
    assert report.dropped["unreadable polarity"].first == "rows row 1"
    for told, positive in (("positive", True), ("negative", False)):
        (item,) = parse_rubric(one(PITFALL, pitfalls=told)["rubric"], "here")
        assert item.positive is positive


@pytest.mark.parametrize(
    ("rubric", "reason"),
    [("", "no rubric items"), ([], "no rubric items"), ('[{"x', "unreadable rubric")],
)
def test_a_rubric_without_items_is_a_reason_to_leave_the_row_out(rubric, reason):
    good = {"instruction": "q", "rubric": RUBRIC}
    assert report_of({**good, "rubric": rubric}, good).dropped.keys() == {reason}


def test_the_final_answer_of_gsm8k_stands_after_its_mark():
    solution = "Three a day for 4 days is 3*4 = <<3*4=12>>12.\n#### 1,012 "
    row = one({"question": "How many?", "answer": solution})
    assert (row["answer"], row["reference"]) == ("1,012", solution)


@pytest.mark.parametrize("solution", ["Paris", "#### ", "12 ###", 12])
def test_without_the_mark_there_is_no_final_answer_unless_the_format_is_named(solution):
    good = {"question": "x", "answer": "#### 1"}
    row = {"question": "Where?", "answer": solution}
    report = report_of(row, good)
    assert report.dropped.keys() == {"no final answer after ####"}
    assert "question-answer" in report.dropped["no final answer after ####"].detail
    whole = one(row, data_format="question-answer")
    assert whole["answer"] == str(solution).strip() and "reference" not in whole


def test_the_last_answer_of_a_conversation_is_the_reference_and_the_rest_the_prompt():
    for column in (TALK, json.dumps(TALK)):
        row = one({"messages": column, "prompt": "Hi", "topic": "rivers"})
        assert row["prompt"] == [{"role": m["role"], "content": m["content"]} for m in TALK[:3]]
        assert (row["reference"], row["topic"]) == ("The Rhine.", "rivers")


def test_instructions_with_input_and_the_short_answer_beside_them():
    row = one({"instruction": "Name it.", "input": "A river", "output": "Rhine", "answer": "a2"})
    assert row["prompt"] == asked("Name it.\n\nA river")
    assert (row["reference"], row["answer"]) == ("Rhine", "a2")
    row = one({"instruction": "Add.", "output": "x", "answer": 4, "reference": ["left out"]})
    assert (row["answer"], row["reference"]) == ("4", "x")
    assert one({"instruction": "Name it.", "input": "", "output": "x"})["prompt"] == asked(
        "Name it."
    )


def test_prompts_and_completions_may_be_harmony_text():
    row = one({"prompt": HARMONY, "completion": "gone"})
    assert (row["prompt"], row["reference"]) == (HARMONY, "gone")


def test_tables_of_values_pass_through_as_they_are():
    row = {"prompt": HARMONY, "q_action_0": 0.1, "q_action_1": 2, "actions": ["a", "b"], "x": None}
    assert one(row) == row
    assert one({**row, "q_action_0": float("-inf")})["q_action_0"] == "-inf"  # as JSON can say it
    listed = {"prompt": asked("go"), "q": [1.5, 2.5], "episode": "e1"}
    assert one(listed) == listed
    with pytest.raises(ConfigError, match="row 1: a table with values per action goes through"):
        one(row, system_prompt="Be brief.")


def test_what_it_wrote_it_reads_back_as_it_is():
    first = one({"instruction": "q", "rubric": RUBRIC, "level": 3, "id": 7})
    assert first["original_id"] == 7
    assert one(first) == first


def test_a_prepared_row_must_have_something_to_measure_answers_by():
    good = {"prompt": "q", "answer": 42, "reference": None}
    report = report_of({"prompt": "r", "answer": None, "reference": " "}, good)
    assert report.dropped.keys() == {"no answer, reference or rubric"}
    assert prepared({"prompt": "r", "answer": None}, good)[0]["answer"] == "42"


def test_columns_that_cannot_be_kept_are_left_out_and_counted():
    rows = [{"question": "q", "answer": "#### 1", "tags": ["x"], "level": 2, "nothing": None}]
    rows += [{"question": "r", "answer": "#### 1", "reference": "other", "prompt": "p", "tags": []}]
    found = prepare_rows(rows, PrepareRowSettings(train_fraction=1.0))
    assert dict(found.report.columns_left_out) == {"tags": 2, "reference": 1, "prompt": 1}
    assert found.train[0]["level"] == 2 and not found.train[0].keys() & {"tags", "nothing"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": " ", "answer": "#### 1"}, "no question"),
        ({"question": None, "answer": "#### 1"}, "no question"),
        ({"question": ["x"], "answer": "#### 1"}, "no question"),
        ({"question": "say <|end|>", "answer": "#### 1"}, "special token in the prompt"),
        ({"question": "\ud800", "answer": "#### 1"}, "unreadable text"),
        ({"question": "far too long a question", "answer": "#### 1"}, "prompt longer than 20 ch"),
    ],
)
def test_a_question_that_cannot_be_asked_is_a_reason_to_leave_the_row_out(row, reason):
    report = report_of({"question": "fine", "answer": "#### 1"}, row, max_prompt_chars=20)
    (found,) = report.dropped.values()
    assert found.reason.startswith(reason) and found.first == "rows row 2"


def test_messages_that_training_would_refuse_are_left_out():
    late = [*asked("q"), {"role": "system", "content": "too late"}]
    report = report_of({"prompt": late, "answer": "1"}, {"prompt": "q", "answer": "1"})
    assert "reads only in the first place" in report.dropped["unreadable prompt"].detail


def test_the_system_prompt_and_the_request_for_tags_come_first():
    options = {
        "system_prompt": "Be brief.",
        "ask_for_tags": True,
        "answer_tags": ["[[", "]]"],
    }
    system, user = one({"question": "q", "answer": "#### 1"}, **options)["prompt"]
    assert user == {"role": "user", "content": "q"} and system["role"] == "system"
    assert system["content"].startswith("Be brief.\n\n")
    assert all(tag in system["content"] for tag in ("<reasoning>", "</reasoning>", "[[", "]]"))
    own = [{"role": "developer", "content": "Answer in French."}, *asked("q")]
    merged = one({"prompt": own, "answer": "1"}, system_prompt="Be brief.")["prompt"]
    assert merged == [
        {"role": "developer", "content": "Be brief.\n\nAnswer in French."},
        *asked("q"),
    ]
    with pytest.raises(ConfigError, match=r"contain <\|end\|>"):
        one({"prompt": "q", "answer": "1"}, system_prompt="<|end|>")


def test_the_rubric_is_in_the_prompt_only_on_request_and_before_the_question():
    row = {"instruction": "q", "rubric": RUBRIC}
    assert one(row)["prompt"] == asked("q")
    assert one(row, rubric_in_prompt=True)["prompt"] == asked(
        "Rubric:\n- Names the river.\n- Is written for a child.\n\nq"
    )


def test_instructions_change_neither_the_identity_nor_the_side_of_a_row():
    rows = [{"question": f"{n}?", "answer": "#### 1"} for n in range(40)]
    plain = prepare_rows(rows, PrepareRowSettings(train_fraction=0.5))
    told = prepare_rows(rows, PrepareRowSettings(train_fraction=0.5, system_prompt="x"))
    assert [r["id"] for r in plain.train] == [r["id"] for r in told.train] != []
    assert plain.test[0]["prompt"] != told.test[0]["prompt"]


def test_harmony_text_takes_no_instructions():
    report = report_of(
        {"prompt": HARMONY, "answer": "1"}, {"prompt": "q", "answer": "1"}, system_prompt="x"
    )
    assert report.dropped.keys() == {"the prompt is Harmony text already"}


def test_columns_of_no_known_format_are_refused_with_those_that_are_known():
    with pytest.raises(DataError, match="rows has the columns a, b, which are not") as caught:
        one({"a": 1, "b": 2})
    assert "question, reference_answer, rubric|rubric_list" in (caught.value.hint or "")
    with pytest.raises(DataError, match="not those of the format rar"):
        one({"question": "q", "answer": "#### 1"}, data_format="rar")
    with pytest.raises(ConfigError, match="unknown data format 'gsm8'"):
        one({"question": "q", "answer": "#### 1"}, data_format="gsm8")
    with pytest.raises(ConfigError, match="not registered with @data_format"):
        one({"question": "q", "answer": "#### 1"}, data_format="json:loads")
