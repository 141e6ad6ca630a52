"""Every problem of every table at once, and none where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptoss_tools.data.check import check
from gptoss_tools.data.decisions import load_table
from gptoss_tools.data.score import score
from gptoss_tools.errors import DataError

PROMPT = "<|start|>user<|message|>{}<|end|><|start|>assistant"
HEADER = "prompt,optimal_action,q_action_0,q_action_1,reward_action_0,reward_action_1"


def table(name, *lines, header=HEADER):
    Path(name).write_text("\n".join([header, *lines]) + "\n")
    return name


def good(number=0):
    return f"{PROMPT.format(number)},1,0,0,0.5,0.5"


def found(*paths, **options):
    return [(p.row, p.column, p.message) for p in check(list(paths), **options)]


def test_sound_tables_have_no_problems(shared_data):
    assert found(shared_data / "tes" / "q_tables") == []
    assert found(table("x.csv", good(1), good(2))) == []


@pytest.mark.parametrize("method", ["boltzmann", "regret", "minmax", "rank"])
def test_what_calc_reward_writes_is_sound(shared_data, method, tmp_path):
    for source in (shared_data / "tes" / "q_tables").glob("*.csv"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    score([tmp_path], method=method)
    assert found(tmp_path) == []


def test_values_masked_on_purpose_are_no_problem():
    table(
        "x.csv",
        f"{PROMPT},1,,0,3",
        f"{PROMPT},,1,0,",
        header="prompt,n,q_action_0,q_action_1,q_action_2",
    )
    score(["x.csv"], missing="mask")
    assert found("x_with_reward.csv") == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (",0,0,0,.5,.5", ("prompt", "the prompt is empty")),
        ("user: x,0,0,0,.5,.5", ("prompt", "the prompt is not in Harmony form: run gptoss")),
        ("a <|end|> b,0,0,0,.5,.5", ("prompt", "the prompt contains <|end|>")),
        ("<|start|>user<|message|>x,0,0,0,.5,.5", ("prompt", "the prompt does not end with")),
        (f"{PROMPT},0,zz,0,.5,.5", ("q_action_0", "'zz' is not a number")),
        (f"{PROMPT},0,0,,.5,.5", ("q_action_1", "the value is missing")),
        (f"{PROMPT},0,inf,0,1,0", ("q_action_0", "the value is +inf")),
        (f"{PROMPT},,-inf,-inf,.5,.5", (None, "no q_action has a finite value")),
        (f"{PROMPT},0,0,0,inf,.5", ("reward_action_0", "the reward is infinite")),
        (f"{PROMPT},0,0,0,,.5", ("reward_action_0", "the reward is missing though q_action_0")),
        (f"{PROMPT},0,0,0,.5,.6", (None, "the rewards sum to 1.1, not to 1")),
        (f"{PROMPT},1,0,1,.7,.3", (None, "the rewards do not fit the Q values")),
        (f"{PROMPT},0,0,1,.3,.7", ("optimal_action", "action 0 is not the best: action 1 is")),
        (f"{PROMPT},2,0,1,.3,.7", ("optimal_action", "2 is not one of the row's actions")),
    ],
)
def test_each_problem_names_row_and_column(line, problem):
    table("x.csv", good(1), good(2), line, good(3))
    column, message = problem
    assert any(
        row == 3 and where == column and text.startswith(message)
        for row, where, text in found("x.csv")
    )
    assert {row for row, *_ in found("x.csv")} == {3}


def test_all_problems_of_all_files_come_in_order():
    table("a.csv", ",0,0,0,.5,.5", f"{PROMPT},5,,0,.5,.5")
    table("b.csv", "x", header="prompt")
    table("c.csv", "x,1", header="prompt,q_action_0,extra")
    lines = [str(p) for p in check(["a.csv", "b.csv", "c.csv"])]
    starts = [
        "a.csv row 1, column prompt",
        "a.csv row 2, column q_action_0",
        "a.csv row 2, column optimal_action",
        "b.csv, column q_action_0",
        "b.csv, column reward_action_0",
        "b.csv row 1, column prompt",
        "c.csv: row 1 has 2 cells where the header has 3",
    ]
    assert all(any(line.startswith(s) for line in lines) for s in starts), lines
    assert [line[0] for line in lines] == sorted(line[0] for line in lines)


@pytest.mark.parametrize(
    ("header", "column", "message"),
    [
        ("p,q_action_0,q_action_1,reward_action_0,reward_action_1", "prompt", "column is missing"),
        ("prompt,q_action_0,q_action_2,a,b", None, "q_action_1 is missing but q_action_2"),
        ("prompt,q_action_0,q_action_1,q_action_2,b", "reward_action_0", "run gptoss calc-reward"),
        ("prompt,q_action_0,q_action_1,q_action_2,reward_action_0", None, "is the only action"),
    ],
)
def test_wrong_columns_are_said_once(header, column, message):
    table("x.csv", f"{PROMPT},0,0,0.5,0.5", f"{PROMPT} 2,0,0,0.5,0.5", header=header)
    matching = [p for p in found("x.csv") if p[1] == column and message in p[2]]
    assert [row for row, *_ in matching] == [None]


def test_repeated_rows_are_found_within_and_across_files():
    table("a.csv", good(1), good(2), good(1))
    table("b.csv", good(2))
    assert found("a.csv", "b.csv") == [
        (3, None, "the row repeats a.csv row 1"),
        (1, None, "the row repeats a.csv row 2"),
    ]


def test_of_many_alike_only_the_first_are_listed():
    table("x.csv", *[f",0,0,{n},0,1" for n in range(50)])
    lines = [p for p in found("x.csv", limit=3) if p[1] == "prompt"]
    assert [row for row, *_ in lines] == [1, 2, 3, None]
    assert "47 more" in lines[-1][2]


def test_an_empty_table_is_a_problem_and_a_missing_one_an_error():
    assert found(table("x.csv")) == [(None, None, "the table has no rows")]
    with pytest.raises(DataError, match="does not exist"):
        check(["nowhere.csv"])


RULED = "prompt,n_actions,q_action_0,q_action_1,q_action_2,baseline_mine"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("2", "2 is not one of the row's actions"),  # the row has two actions: 0 and 1
        ("-1", "-1 is not one of the row's actions"),
        ("0.5", "0.5 is not one of the row's actions"),
        ("inf", "inf is not one of the row's actions"),
        ("high", "'high' is not a number"),
    ],
)
def test_a_rules_column_holds_actions_of_its_row(cell, message):
    rows = [f"{PROMPT.format(i)},2,0,1,,{mine}" for i, mine in enumerate(["1", "", cell, "0"])]
    table("x.csv", *rows, f"{PROMPT.format(9)},3,0,1,2,2", header=RULED)
    ruled = [p for p in found("x.csv") if p[1] == "baseline_mine"]
    assert ruled == [(3, "baseline_mine", message)]


def test_a_rules_column_is_no_problem_beside_rewards_alone_or_without_actions():
    table("r.csv", f"{PROMPT},0,.5,.5", header="prompt,baseline_a,reward_action_0,reward_action_1")
    assert not [p for p in found("r.csv") if p[1] == "baseline_a"]
    table("p.csv", f"{PROMPT},7", header="prompt,baseline_a")
    assert not [p for p in found("p.csv") if p[1] == "baseline_a"]


def test_ties_may_name_any_of_the_best_actions():
    table("x.csv", f"{PROMPT},1,0.3,0.29999999999999999,.5,.5")
    assert found("x.csv") == []


def test_named_actions_and_efforts_are_checked_row_by_row():
    header = HEADER + ",q_action_2,actions,reasoning_effort"
    line = f"{PROMPT},1,0,1,,,"
    table(
        "x.csv",
        line.format(1) + ",on|off,low",
        line.format(2) + "5,on|off,",
        line.format(3) + "5,a|b|A,max",
        line.format(4) + ",a|b|c|d,high",
        header=header,
    )
    lines = [p for p in found("x.csv") if p[1] in ("actions", "reasoning_effort", "q_action_2")]
    assert lines == [
        (2, "q_action_2", "a value, but the row names only 2 actions"),
        (3, "reasoning_effort", "'max' is not one of low, medium, high"),
        (3, "actions", "'a' and 'A' are the same name"),
        (4, "actions", "4 names, where there are values for 3 actions"),
        (4, "q_action_2", "the value is missing (empty or NaN)"),
    ]


def test_lists_are_checked_like_columns():
    records = [
        {"q": [0, 1, 2], "optimal_action": 2, "actions": ["a", "b", "c"]},
        {"q": [1, 0], "optimal_action": 0, "actions": ["on", "off"]},
        {"q": ["-inf", 0], "optimal_action": 0, "actions": None},
    ]
    lines = [json.dumps({"prompt": PROMPT.format(n), **r}) for n, r in enumerate(records)]
    Path("x.jsonl").write_text("\n".join(lines))
    score(["x.jsonl"])
    wrong = "action 0 is not the best: action 1 is"
    assert found("x_with_reward.jsonl") == [(3, "optimal_action", wrong)]
    scored = Path("x_with_reward.jsonl").read_text().replace("[1, 0]", '[1, "z"]')
    Path("y.jsonl").write_text(scored)
    assert (2, "q[1]", "'z' is not a number") in found("y.jsonl")


def test_messages_that_end_with_an_answer_leave_none_to_give():
    asked, said = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
    rows = [[asked], [asked, said], [asked, said, asked], [said]]
    lines = [json.dumps({"prompt": messages, "answer": "4"}) for messages in rows]
    Path("x.jsonl").write_text("\n".join(lines))
    said_of_it = "the last message is an answer of the assistant, so there is none left to give"
    assert found("x.jsonl") == [(2, "prompt", said_of_it), (4, "prompt", said_of_it)]
    with pytest.raises(DataError, match=r"x.jsonl row 2: the last message is an answer") as caught:
        load_table("x.jsonl", values=False)
    assert "train-sft" in str(caught.value.hint)
    Path("x.jsonl").write_text("\n".join([lines[0], lines[2]]))
    assert len(load_table("x.jsonl", values=False)) == 2
