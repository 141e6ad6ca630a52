"""Tables of prompts with answers and rubrics: sound ones have no problems, others all of theirs."""

from __future__ import annotations

import json
from pathlib import Path

from gptoss_tools.data.check import check

ASKED = [{"role": "user", "content": "q"}]
RUBRIC = json.dumps([{"description": "Names the river.", "positive": True}])


def lines(*rows):
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def found(**options):
    return [(p.row, p.column, p.message) for p in check(["a.jsonl"], **options)]


def test_a_table_that_prepare_data_wrote_is_sound_and_says_what_it_is(gptoss):
    lines(
        {"prompt": ASKED, "answer": "1", "rubric": None, "id": "a"},
        {"prompt": ASKED, "answer": None, "rubric": RUBRIC, "id": "b"},
        {"prompt": ASKED, "answer": 2, "rubric": None, "id": "c"},
    )
    assert found() == []
    code, out, err = gptoss("check-data", "a.jsonl")
    assert code == 0 and "a.jsonl: 3 prompts, 2 with an answer, 1 with a rubric" in out
    assert "train-grpo --data a.jsonl --reward NAME" in err


def test_every_problem_of_prompts_answers_and_rubrics_comes_at_once():
    pitfall = [{"description": "Does not mention the sea.", "category": "Pitfall"}]
    lines(
        {"prompt": ASKED, "answer": ["1"], "reference": True, "rubric": RUBRIC},
        {"prompt": "", "answer": None, "reference": " ", "rubric": None},
        {"prompt": [{"role": "pirate", "content": "q"}], "answer": "1", "rubric": pitfall},
        {"prompt": ASKED, "answer": "1", "rubric": "[]"},
    )
    assert [(row, column) for row, column, _ in found()] == [
        *((1, "answer"), (1, "reference")),
        *((2, "prompt"), (2, None)),
        *((3, "prompt"), (3, "rubric")),
        (4, "rubric"),
    ]
    said = [message for _, _, message in found()]
    assert said[0] == "list is not text" and said[1] == "bool is not text"
    assert said[3] == "no answer and no reference and no rubric, so no answer can be measured"
    assert "pirate" in said[4] and "cannot be told" in said[5] and "no items" in said[6]


def test_of_many_alike_only_the_first_are_listed():
    lines(*({"prompt": ASKED, "answer": [n]} for n in range(30)))
    messages = [message for _, _, message in found(limit=3)]
    assert len(messages) == 4 and messages[-1].startswith("... and 27 more rows like the above")


def test_decisions_may_have_answers_too_and_then_both_are_checked():
    row = {"prompt": ASKED, "q_action_0": 0, "q_action_1": 1}
    lines(
        {**row, "reward_action_0": 0, "reward_action_1": 1, "answer": None}, {**row, "answer": {}}
    )
    assert (2, "answer", "dict is not text") in found()
    assert not any("can be measured" in message for _, _, message in found())


def test_a_raw_dataset_names_the_command_that_prepares_it():
    lines({"question": "q", "answer": "#### 1"})
    assert found() == [
        (None, "prompt", "the column is missing (gptoss prepare-data makes tables of prompts)")
    ]
