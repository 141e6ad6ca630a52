from __future__ import annotations

import json

import pandas as pd
import pytest

from gptoss_tools.data.instruction_rows import Conversation, Instruction, Rendered
from gptoss_tools.data.instructions import load_instructions
from gptoss_tools.data.sources import read_hub
from gptoss_tools.errors import DataError, MachineError

CAPITAL = {"instruction": "Name the capital.", "input": "France", "output": "Paris"}
SUM = {"instruction": "Add 2 and 2.", "input": "", "output": "4"}
READ = [
    Instruction("Name the capital.", "France", "Paris"),
    Instruction("Add 2 and 2.", "", "4"),
]
HARMONY = "<|start|>user<|message|>go<|end|><|start|>assistant"


def write(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        pd.DataFrame(rows).to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_instructions_read_the_same_from_every_kind_of_file(tmp_path, suffix):
    found = load_instructions(write(tmp_path / f"rows{suffix}", [CAPITAL, SUM]))
    assert found.examples == READ
    assert found.places == [f"{tmp_path}/rows{suffix} row {n}" for n in (1, 2)]


def test_other_columns_are_ignored_and_the_output_is_the_answer(tmp_path):
    commonsense = [
        {**CAPITAL, "output": "the correct answer is answer2", "answer": "answer2"},
        {**SUM, "answer": "answer1"},
    ]
    found = load_instructions(write(tmp_path / "a.jsonl", commonsense))
    assert [e.output for e in found.examples] == ["the correct answer is answer2", "4"]


def test_a_missing_input_is_no_input(tmp_path):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "input": None, "output": "d"}]
    found = load_instructions(write(tmp_path / "a.jsonl", rows))
    assert [e.input for e in found.examples] == ["", ""]


def test_words_for_nothing_are_answers_like_any_other(tmp_path):
    rows = [{"instruction": "a", "output": word} for word in ("None", "n/a", "null", "NaN")]
    for suffix in (".csv", ".jsonl"):
        found = load_instructions(write(tmp_path / f"a{suffix}", rows))
        assert [e.output for e in found.examples] == ["None", "n/a", "null", "NaN"]


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
    {"role": "user", "content": "Still there?"},
]


def test_every_answer_of_a_conversation_is_an_example_with_what_was_said_before(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"messages": TALK}])
    every = load_instructions(path).examples
    assert every == [Conversation(tuple(TALK[:3])), Conversation(tuple(TALK[:5]))]
    assert load_instructions(path, turns="last").examples == every[1:]


def test_sharegpt_conversations_read_as_messages(tmp_path):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    talk = [{"from": names[m["role"]], "value": m["content"]} for m in TALK]
    rows = [{"conversations": talk, "id": "x"}]
    found = load_instructions(write(tmp_path / "a.json", rows), turns="last").examples
    assert found == [Conversation(tuple(TALK[:5]))]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_messages_may_be_json_text_in_a_cell_or_lists_in_parquet(tmp_path, suffix):
    cell = json.dumps(TALK[:3]) if suffix == ".csv" else TALK[:3]
    found = load_instructions(write(tmp_path / f"a{suffix}", [{"messages": cell}])).examples
    assert found == [Conversation(tuple(TALK[:3]))]


def test_thinking_stays_with_its_message(tmp_path):
    answer = {"role": "assistant", "content": "4", "reasoning_content": "two and two"}
    rows = [{"messages": [{"role": "user", "content": "2+2"}, answer]}]
    (found,) = load_instructions(write(tmp_path / "a.jsonl", rows)).examples
    assert found.messages[1] == {"role": "assistant", "content": "4", "thinking": "two and two"}


def test_prompts_and_completions_may_be_texts_messages_or_harmony(tmp_path):
    rows = [
        {"prompt": "2+2", "completion": " 4"},
        {"prompt": TALK[1:2], "completion": TALK[2:3]},
        {"prompt": TALK[1:2], "completion": "Hello"},
        {"prompt": HARMONY, "completion": "gone"},
    ]
    found = load_instructions(write(tmp_path / "a.jsonl", rows)).examples
    assert found == [
        Instruction("2+2", "", " 4"),
        Conversation(tuple(TALK[1:3])),
        Conversation(tuple(TALK[1:3])),
        Rendered(HARMONY, "gone"),
    ]


def test_a_prepared_table_teaches_its_references(tmp_path):
    rows = [{"prompt": TALK[:2], "answer": "x", "reference": "Hello", "id": "1"}]
    found = load_instructions(write(tmp_path / "a.jsonl", rows)).examples
    assert found == [Conversation(tuple(TALK[:3]))]
    rows[0]["reference"] = None
    with pytest.raises(DataError, match="row 1, column reference: the cell is empty"):
        load_instructions(write(tmp_path / "a.jsonl", rows))


def test_the_best_action_of_a_decision_table_is_its_answer(tmp_path):
    rows = [
        {"prompt": HARMONY, "q_action_0": -1.0, "q_action_1": -0.5, "actions": ""},
        {"prompt": HARMONY, "q_action_0": 2.0, "q_action_1": 1.5, "actions": '["off", "on"]'},
    ]
    found = load_instructions(write(tmp_path / "a.csv", rows))
    assert found.examples == [Rendered(HARMONY, "[1]"), Rendered(HARMONY, "[off]")]
    assert found.places[1] == f"{tmp_path}/a.csv row 2"


def test_folders_globs_and_single_files_add_up_and_no_file_counts_twice(tmp_path):
    write(tmp_path / "a.json", [CAPITAL])
    write(tmp_path / "b.csv", [SUM])
    write(tmp_path / ".hidden.json", [SUM])
    assert len(load_instructions(str(tmp_path))) == 2
    assert len(load_instructions([str(tmp_path), f"{tmp_path}/*.json", f"{tmp_path}/b.csv"])) == 2
    assert load_instructions(f"{tmp_path}/*.json").examples == READ[:1]


def test_max_examples_draws_the_same_rows_for_the_same_seed_in_their_order(tmp_path):
    rows = [{"instruction": f"{n:02}", "output": "x"} for n in range(50)]
    path = write(tmp_path / "a.jsonl", rows)

    def drawn(**options):
        return [e.instruction for e in load_instructions(path, **options).examples]

    few = drawn(max_examples=10, seed=1)
    assert few == sorted(few) and len(set(few)) == 10
    assert few == drawn(max_examples=10, seed=1) != drawn(max_examples=10, seed=2)
    assert drawn(max_examples=99) == drawn()


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"instruction": "a", "output": ""}, "column output: the cell is empty"),
        ({"instruction": None, "output": "b"}, "column instruction: the cell is empty"),
        ({"instruction": "a", "output": 42}, "column output: 42 is not text"),
        ({"instruction": "a", "output": "b", "input": [1]}, r"column input: \[1\] is not text"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path, row, complaint):
    path = write(tmp_path / "a.jsonl", [CAPITAL, row])
    with pytest.raises(DataError, match=rf"a\.jsonl row 2, {complaint}"):
        load_instructions(path)


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ([], "column messages: no messages"),
        ("[{", "neither messages nor their JSON text"),
        ([{"content": "a"}], "message 1 has the role None"),
        ([{"role": "pirate", "content": "a"}], "message 1 has the role 'pirate'"),
        (["hello"], "message 1 is not an object"),
        ([{"role": "user", "content": ["a"]}], "message 1, column content: .* is not text"),
        (TALK[:2], "no assistant's message follows a user's"),
        (TALK[2:4], "no assistant's message follows a user's"),
        ([TALK[1], {"role": "assistant", "content": ""}], "message 2, column content: the cell is"),
    ],
)
def test_a_wrong_conversation_is_named(tmp_path, cell, complaint):
    path = write(tmp_path / "a.jsonl", [{"messages": cell}])
    with pytest.raises(DataError, match=rf"a\.jsonl row 1.*{complaint}"):
        load_instructions(path)


def test_unknown_columns_and_formats_that_are_not_there_are_refused(tmp_path):
    path = write(tmp_path / "a.csv", [{"question": "a", "reply": "b"}])
    with pytest.raises(DataError, match=r"columns question, reply, which are not those of any"):
        load_instructions(path)
    path = write(tmp_path / "b.csv", [CAPITAL])
    with pytest.raises(DataError, match="not those of the format messages"):
        load_instructions(path, data_format="messages")


def test_a_named_format_settles_what_columns_leave_open(tmp_path):
    both = write(tmp_path / "a.csv", [{**CAPITAL, "prompt": "p", "completion": "c"}])
    assert load_instructions(both).examples == [Instruction("p", "", "c")]
    assert load_instructions(both, data_format="alpaca").examples == READ[:1]


def test_files_that_are_no_json_or_no_array_are_refused(tmp_path):
    lines = tmp_path / "a.json"
    lines.write_text('{"instruction": "a"}\n{"instruction": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as JSON") as caught:
        load_instructions(str(lines))
    assert ".jsonl" in caught.value.hint
    lines.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        load_instructions(str(lines))
    with pytest.raises(DataError, match="neither messages nor their JSON text"):
        load_instructions(write(tmp_path / "e.json", [{"messages": "[" * 100_000}]))
    with pytest.raises(DataError, match="no JSON array"):
        load_instructions(write(tmp_path / "b.json", {"data": []}))
    with pytest.raises(DataError, match="row 1 is not a JSON object"):
        load_instructions(write(tmp_path / "c.json", ["text"]))
    with pytest.raises(DataError, match=r"d\.json does not exist"):
        load_instructions(str(tmp_path / "d.json"))


def test_a_dataset_of_the_hub_reads_like_a_file(tmp_path):
    write(tmp_path / "train.jsonl", [CAPITAL, SUM])
    (frame,) = read_hub(str(tmp_path), "train")
    assert frame.to_dict("records") == [CAPITAL, SUM]
    with pytest.raises(DataError, match="no split 'test'"):
        list(read_hub(str(tmp_path), "test"))


def test_a_hub_id_out_of_reach_says_so_and_a_mistyped_path_is_no_hub_id(tmp_path, monkeypatch):
    with pytest.raises(MachineError, match="data owner/name is no file here and the Hub did not"):
        load_instructions("owner/name")
    (tmp_path / "tables").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="tables/rows does not exist"):
        load_instructions("tables/rows")


def test_an_empty_path_is_refused():
    with pytest.raises(DataError, match="a path is empty"):
        load_instructions([""])
