"""What answers earn: figures by hand, and evaluate on tables without values."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools.chat.actions import Decision, Reason
from gptoss_tools.chat.completions import split_text
from gptoss_tools.data.decisions import load_table
from gptoss_tools.data.tables import read_chunks
from gptoss_tools.errors import ConfigError, DataError, RewardError
from gptoss_tools.evaluation.earned import (
    Earned,
    answer_to,
    assess_rewards,
    by_reward,
    reward_rows,
    score_records,
)
from gptoss_tools.evaluation.evaluate import evaluate
from gptoss_tools.evaluation.sources import Source
from gptoss_tools.evaluation.work import prepare, rewards_of
from gptoss_tools.rewards.combined import Rewards, Scores
from gptoss_tools.settings import EvaluateSettings, RewardSettings

PROMPT = "<|start|>user<|message|>case {}<|end|><|start|>assistant"


def write(path: Path, rows: int = 4, **columns) -> Path:
    lines = [
        {"prompt": PROMPT.format(row), "answer": str(row)} | {n: v[row] for n, v in columns.items()}
        for row in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def table(tmp_path) -> Path:
    return write(tmp_path / "held.jsonl")


def asked(target: Path, table: Path, **more) -> EvaluateSettings:
    own = {"data": [str(table)], "max_new_tokens": 8, "device": "cpu", "reward": ["exact"]}
    return EvaluateSettings(target=str(target), **{**own, **more})


def record(final: str | None, reason: str = "ok") -> dict:
    text = {"analysis": "hm", "final": final, "completion": f"{final}", "tokens": 3}
    return {"action": None, "reason": reason, **text}


def test_means_leave_masked_answers_out_and_differences_need_both():
    own = Earned.of(Scores([1.0, 0.0, None, 3.0], {"a": [1.0, 0.0, None, 3.0]}), ["ok"] * 4)
    base = Earned.of(
        Scores([0.0, None, 5.0, 1.0], {"a": [0.0, None, 5.0, 1.0]}),
        ["ok", "truncated", "ok", "ok"],
    )
    found = assess_rewards(own, base)
    assert (found["reward"]["mean"], found["reward"]["unknown"]) == (4 / 3, 1)
    assert found["reward"]["base"] == 2.0  # (0 + 5 + 1) / 3
    assert found["reward"]["difference"]["mean"] == 1.5  # rows 0 and 3: (1 + 2) / 2
    assert found["reward"]["difference"]["n"] == 2
    low, high = found["reward"]["ci95"]
    assert 0 <= low < 4 / 3 < high <= 3
    assert found["rewards"]["a"] == found["reward"]
    assert (found["n_rows"], found["n_episodes"], found["regret"]) == (4, 4, None)
    assert found["invalid"]["upper95"] == 0.75  # none in 4 leaves up to 3 / 4
    json.dumps(found, allow_nan=False)


def test_rows_of_one_episode_are_drawn_together():
    total = [0.0] * 5 + [1.0] * 5
    own = Earned.of(Scores(total, {"a": total}), ["ok"] * 10)
    apart = assess_rewards(own)["reward"]["ci95"]
    together = assess_rewards(own, episodes=["x"] * 5 + ["y"] * 5)["reward"]["ci95"]
    assert together == [0.0, 1.0] and apart[0] > 0.1 and apart[1] < 0.9
    assert assess_rewards(own, episodes=["x"] * 10)["reward"]["ci95"] is None


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=8))
def test_the_interval_holds_the_mean_whatever_is_masked(total):
    found = assess_rewards(Earned.of(Scores(total, {"a": total}), ["ok"] * len(total)))["reward"]
    known = [score for score in total if score is not None]
    assert found["unknown"] == len(total) - len(known)
    if not known:
        assert found["mean"] is None and found["ci95"] is None
    else:
        assert found["mean"] == pytest.approx(math.fsum(known) / len(known), abs=1e-12)
        low, high = found["ci95"] or (min(known), max(known))
        assert min(known) - 1e-9 <= low <= high <= max(known) + 1e-9


def test_journal_records_are_scored_as_the_answers_they_were(table):
    held = load_table(table, values=False, columns={"answer": "exact"})
    assert by_reward(held)
    records = [record("0"), record("7"), record(None, "no_final"), record("3", "truncated")]
    rewards = Rewards(RewardSettings(reward=["exact", "format"], reward_weights=[2, 1]))
    own = score_records(held, records, rewards)
    assert own.total.tolist() == [1.0, -1.0, -1.0, -1.0]  # 2 * exact - 1
    rows = list(reward_rows(held, records, own, own))
    assert rows[0]["scores"] == {"exact": 1.0, "format": -1.0} and rows[0]["base_reward"] == 1.0
    assert rows[3]["where"].endswith("held.jsonl row 4") and rows[3]["reason"] == "truncated"


def test_a_row_reads_as_in_training(tmp_path):
    path = tmp_path / "a.csv"
    header = "prompt,q_action_0,q_action_1,reward_action_0,reward_action_1,actions,phase\n"
    path.write_text(f"{header}{PROMPT},1,,0.5,,low|high,day\n")
    held = load_table(path)
    found = answer_to(held, 0, split_text("x"), Decision(None, Reason.NO_FINAL))
    assert dict(found.row) == {
        "phase": "day",
        "actions": ["low", "high"],
        "row": 0,
        "prompt": PROMPT,
        "n_actions": 2,
        "reward_action_0": 0.5,
        "reward_action_1": None,
        "q_action_0": 1.0,
        "q_action_1": None,
    }
    assert found.rewards_K[0] == 0.5 and math.isnan(found.rewards_K[1])


def test_a_table_without_values_is_evaluated_by_rewards(untrained, table):
    work = prepare(asked(untrained, table, compare_with=str(untrained), reward=["format"]))
    result = evaluate(work)
    # an untrained model answers with garbage, and so does its base
    assert result["reward"]["mean"] == result["reward"]["base"] == -1.0
    assert result["rewards"]["format"]["difference"]["ci95"] == [0.0, 0.0]
    assert result["rewards"]["format"]["weight"] == 1.0
    assert result["invalid"]["total"] == 1 and result["regret"] is None
    assert json.loads((work.folder / "evaluation.json").read_text()) == result
    lines = (work.folder / "decisions.jsonl").read_text().splitlines()
    assert [json.loads(line)["reward"] for line in lines] == [-1.0] * 4


def test_a_reward_that_fails_keeps_the_answers_and_says_how_to_go_on(untrained, table, tmp_path):
    refusing = "def refuse(answered):\n    raise RuntimeError('closed')\n"
    (tmp_path / "refusing.py").write_text(refusing)
    work = prepare(asked(untrained, table, reward=["refusing:refuse"]))
    with pytest.raises(RewardError, match="refuse failed on row 1: RuntimeError: closed") as caught:
        evaluate(work)
    assert "the same command goes on" in str(caught.value.hint)
    assert "resume" not in str(caught.value.hint)
    assert len((work.folder / "answers.jsonl").read_text().splitlines()) >= 4


def test_a_runs_rewards_are_asked_again_unless_others_are_given(tmp_path):
    run = {"reward": ["format", "exact"], "reward_weights": [1, 2], "numeric_tolerance": 0.5}
    (tmp_path / "config.json").write_text(json.dumps({"settings": {**run, "lora_r": 4}}))
    source, own = Source("tiny", None, "", run=tmp_path), EvaluateSettings()
    assert rewards_of(own, source, ()) == RewardSettings(**run)
    given = EvaluateSettings(reward=["numeric"])
    found = rewards_of(given, source, {"reward"})
    assert found == RewardSettings(reward=["numeric"], numeric_tolerance=0.5)
    assert rewards_of(own, Source("tiny", None, ""), ()) == RewardSettings()
    one = EvaluateSettings(reward_weights=[3])
    with pytest.raises(ConfigError, match="1 numbers for 2 rewards"):
        rewards_of(one, source, {"reward_weights"})


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"reward": ["decision"]}, DataError, "no q_action columns"),
        ({"reward": ["rubric-overlap"]}, DataError, "no column rubric, which the reward rubric-ov"),
        ({"samples": 2}, ConfigError, "need tables with values"),
        ({"episode_column": "day"}, DataError, "no column day"),
    ],
)
def test_what_cannot_be_measured_is_refused(untrained, table, more, error, message):
    with pytest.raises(error, match=message):
        prepare(asked(untrained, table, **more), None, more)


def test_a_table_without_values_is_read_once(untrained, table, monkeypatch):
    read = []

    def counted(path, **options):
        read.append(path)
        return read_chunks(path, **options)

    monkeypatch.setattr("gptoss_tools.data.decisions.read_chunks", counted)
    assert len(prepare(asked(untrained, table)).table) == 4
    assert read == [table]


def test_the_file_that_lacks_a_rewards_column_is_named(untrained, table, tmp_path):
    bare = tmp_path / "more.jsonl"
    bare.write_text(json.dumps({"prompt": PROMPT.format(9)}) + "\n")
    both = asked(untrained, table, data=[str(table), str(bare)])
    with pytest.raises(DataError, match=r"more.jsonl has no column answer, .* exact") as caught:
        prepare(both)
    assert "it has prompt; gptoss prepare-data" in str(caught.value.hint)


def test_rows_without_episodes_stand_alone_and_others_do_not(untrained, tmp_path, table):
    assert prepare(asked(untrained, table)).episodes is None
    days = write(tmp_path / "days.jsonl", episode=["a", "a", "b", "b"])
    assert prepare(asked(untrained, days)).episodes == ["a", "a", "b", "b"]
