"""train-grpo on tables without values: trained, measured, compared with the base, resumed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import run_lab
from run_lab import SMALL

from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.runs import Run
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.settings import ResumeSettings, TrainSettings
from gptoss_tools.training.train import plan, resume, train

REWARDS = '''
import itertools
import zlib


def length(answered, settings):
    """About one in four is unknown."""
    number = zlib.crc32(repr(answered.completion).encode())
    return None if number % 4 == 0 else number % 101 / 100 + answered.row["level"]


calls = itertools.count()


def third(answered, settings):
    """Unknown on every third call: sure to mask some and not all."""
    call = next(calls)
    return None if call % 3 == 0 else call / 100


def row_of(prompts, completions, **kwargs):
    return [row / 10 for row in kwargs["row"]]
'''


def prepared(path: Path, rows: int = 5) -> None:
    """Prompts with a short answer and one more column, as prepare-data writes them."""
    lines = [
        {
            "prompt": f"<|start|>user<|message|>case {row}<|end|><|start|>assistant",
            "answer": str(row),
            "level": row / 4,
        }
        for row in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def place(tmp_path) -> Path:
    run_lab.furnish(tmp_path)
    (tmp_path / "chat_rewards.py").write_text(REWARDS)
    prepared(tmp_path / "train.jsonl")
    prepared(tmp_path / "held.jsonl", rows=3)
    return tmp_path


def settings(place: Path, name: str = "run", **changes) -> TrainSettings:
    values = {
        **SMALL,
        "reward": ["format", "chat_rewards:length", "chat_rewards:row_of"],
        "reward_weights": [0.5, 1.0, 2.0],
        "model": str(place / "model"),
        "data": [str(place / "train.jsonl")],
        "output_dir": str(place / name),
    }
    return TrainSettings(**{**values, **changes})


def test_several_rewards_are_summed_logged_and_kept_apart(place):
    train(
        settings(place, max_steps=2, reward=["format", "chat_rewards:third", "chat_rewards:row_of"])
    )
    run = Run(place / "run")
    with run.completions_path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["reward_format", "reward_third", "reward_row_of"]
    assert list(rows[0])[-3:] == names and len(rows) == 2 * 2 * 4
    masked = 0
    for row in rows:
        case = int(row["prompt"].split("case ")[1][0])
        assert row["reward_format"] == "-1.0" and float(row["reward_row_of"]) == case / 10
        masked += row["reward_third"] == ""
        if row["reward_third"]:
            total = 0.5 * -1 + float(row["reward_third"]) + 2 * case / 10
            assert float(row["reward"]) == pytest.approx(total, abs=1e-9)
        else:
            assert row["reward"] == ""  # one unknown reward masks the completion
    records = read_metrics(run.metrics_path)
    for step, record in enumerate(records):
        own = rows[8 * step : 8 * step + 8]
        known = [float(row["reward_third"]) for row in own if row["reward_third"]]
        assert record["rewards_format_mean"] == -1.0 and record["masked_format"] == 0.0
        assert record["rewards_third_mean"] == pytest.approx(np.mean(known), abs=1e-6)
        assert record["masked_third"] == record["masked_share"] == 1 - len(known) / 8
        sums = [float(row["reward"]) for row in own if row["reward"]]
        assert record["rewards_sum_mean"] == pytest.approx(np.mean(sums), abs=1e-6)
    assert masked == 6  # calls 0, 3, ... 15 of 16


def test_the_best_adapter_on_held_out_rows_earns_the_most(place):
    outcome = train(
        settings(place, max_steps=3, eval_steps=1, eval_data=[str(place / "held.jsonl")])
    )
    run = Run(place / "run")
    measured = [r for r in read_metrics(run.metrics_path) if "eval_reward" in r]
    assert [r["step"] for r in measured] == [0, 1, 2, 3]
    values = [r["eval_reward"] for r in measured]
    assert outcome.eval_reward == values[-1] and outcome.regret is None
    for record in measured:
        assert record["eval_reward_format"] == -1.0
        assert record["eval_reward_row_of"] == pytest.approx((0 + 1 + 2) / 30)
    best = int(np.argmax(values))
    if best:
        assert outcome.eval_reward_best == max(values)
        manifest = json.loads((run.best_path / "manifest.json").read_text())
        assert manifest["step"] == best
    else:
        assert outcome.best is None


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_bits_of_a_whole_one(place):
    train(settings(place, "whole"))
    train(settings(place, "halves", max_steps=3, lr_scheduler_type="constant"))
    train(settings(place, "constant", lr_scheduler_type="constant"))
    resume(ResumeSettings(run=str(place / "halves"), max_steps=6))
    files = [place / name / "adapter/adapter_model.safetensors" for name in ("constant", "halves")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_from_before_there_were_several_rewards_goes_on(tmp_path):
    run_lab.furnish(tmp_path)
    train(run_lab.settings(tmp_path, reward="decision", max_steps=3))
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    known = {*config["settings"]} - {"reward_weights", "answer_tags", "judge_model", "rubric_mode"}
    config["settings"] = {name: config["settings"][name] for name in known}
    config["settings"]["reward"] = "decision"
    path.write_text(json.dumps(config))
    assert resume(ResumeSettings(run=str(tmp_path / "run"), max_steps=4)).steps == 4
    with pytest.raises(ConfigError, match=r"reward was .* and is"):
        train(
            run_lab.settings(tmp_path, reward="format", resume=str(tmp_path / "run"), max_steps=5),
            explicit={"reward", "max_steps"},
        )


def test_what_rewards_read_is_part_of_the_data(place):
    train(settings(place, max_steps=2))
    text = (place / "train.jsonl").read_text()
    (place / "train.jsonl").write_text(text.replace('"level": 0.25', '"level": 0.5'))
    with pytest.raises(DataError, match="are not those"):
        resume(ResumeSettings(run=str(place / "run"), max_steps=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": ["decision"]}, "neither q_action nor reward_action"),
        (
            {"reward": ["format", "rubric-overlap"]},
            "no column rubric, .*-overlap reads",
        ),
        ({"reward": ["regex"]}, "needs answer_pattern"),
        ({"reward": ["formatt"]}, "unknown reward 'formatt'"),
        ({"reward": ["json:dumps"]}, "none of a reward's forms"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_a_model_loads(place, changes, message):
    changes = {"reward_weights": [], **changes}
    for attempt in (train, plan):
        with pytest.raises((ConfigError, DataError), match=message):
            attempt(settings(place, **changes))
    assert not (place / "run").exists()


def test_rows_that_a_reward_cannot_score_are_counted_before_training(place):
    lines = [json.loads(line) for line in (place / "train.jsonl").read_text().splitlines()]
    said: list[str] = []
    for blank in (2, 5):
        rows = [
            {**line, "answer": " " if i < blank else line["answer"]} for i, line in enumerate(lines)
        ]
        (place / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        wanted = settings(place, reward=["exact"], reward_weights=[], max_steps=1)
        if blank == 2:
            train(wanted, on_notice=said.append)
            assert "2 of 5 rows have no answer for the reward exact" in said
        else:
            with pytest.raises(
                DataError, match=r"column answer, which the reward exact.* every row"
            ):
                train(wanted.model_copy(update={"output_dir": str(place / "other")}))


def test_a_plan_names_the_rewards(place):
    found = plan(settings(place))
    assert found["rewards"] == ["format", "chat_rewards:length", "chat_rewards:row_of"]
    assert (found["rows"], found["actions"]) == (5, 0)
