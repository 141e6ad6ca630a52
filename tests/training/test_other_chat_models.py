"""Chat models other than gpt-oss go through the same commands, by their own chat templates."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import chat_lab
import pytest
import run_lab
import torch

from gptoss_tools.core.runs import open_run
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.evaluation.policy import load_policy
from gptoss_tools.models.loading import load_model, load_tokenizer
from gptoss_tools.settings import DecodingSettings, ResumeSettings, TrainSettings
from gptoss_tools.training.grpo import DecisionTrainer
from gptoss_tools.training.train import Interrupted, plan, resume, train

torch.set_num_threads(1)  # sums in one order, whatever the machine
FAMILIES = ("llama", "qwen")


@pytest.fixture(scope="session", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def folder(family, tmp_path_factory) -> Path:
    """A model and a table of prompts as they come, in a form of their own in each row."""
    place = tmp_path_factory.mktemp(family)
    chat_lab.furnish(place / "model", family)
    write_table(place / "table.jsonl")
    return place


def write_table(path: Path, rows: int = 4) -> None:
    told = {"role": "system", "content": "Answer with [k], the number of one action."}
    lines = []
    for row in range(rows):
        prompt = [told, {"role": "user", "content": f"hour {row}, load 120 kW"}]
        values = {"q_action_0": row, "q_action_1": 1.5, "reward_action_0": 0.25}
        lines.append({"prompt": prompt, **values, "reward_action_1": 0.75, "episode": row % 2})
    lines[1]["prompt"] = f"system: {told['content']}\nuser: hour 1, load 120 kW"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def settings(folder: Path, name: str, **changes) -> TrainSettings:
    own = {
        "model": str(folder / "model"),
        "data": [str(folder / "table.jsonl")],
        "output_dir": str(folder / name),
        "date": "2025-01-31",
        "max_steps": 3,
        "save_steps": 1,
        "prompts_per_step": 2,
        "reward": "grpo_lab:hash_reward",
    }
    return TrainSettings(**{**run_lab.SMALL, **own, **changes})


@pytest.fixture(scope="session")
def whole(folder) -> Path:
    """Three steps in one go."""
    return Path(train(settings(folder, "whole")).run)


def completions(run: Path):
    import pandas as pd

    return pd.read_csv(run / "completions.csv")


def test_a_run_writes_prompts_and_reads_answers_as_the_model_does(whole, family):
    rows = completions(whole)
    end = chat_lab.ENDS[family]
    begin = {"llama": "<|begin_of_text|>", "qwen": "<|im_start|>system\n"}[family]
    assert rows["prompt"].str.startswith(begin).all()
    assert rows["prompt"].str.contains("number of one action").all()
    assert set(rows["reason"]) <= {"truncated", "unparsable", "no_final", "ok", "out_of_range"}
    ended = rows["completion"].fillna("").str.contains(end, regex=False)
    assert (rows.loc[~ended, "reason"] == "truncated").any() or ended.all()
    assert (whole / "adapter" / "adapter_model.safetensors").is_file()


def test_two_steps_and_one_more_are_three_steps_to_the_bit(whole, folder):
    def stop(progress):
        if progress.step == 1:  # the signal comes after the record, so one step follows
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(settings(folder, "parts"), on_step=stop)
    parts = folder / "parts"
    assert [c.step for c in open_run(parts).checkpoints()][-1] == 2
    resume(ResumeSettings(run=str(parts)))
    assert run_lab.same_bits(whole / "adapter", parts / "adapter")
    assert (parts / "completions.csv").read_text() != ""
    assert completions(parts)["completion"].equals(completions(whole)["completion"])


def test_log_probabilities_of_shared_prompts_are_those_of_separate_ones(folder, tmp_path):
    run = DecisionTrainer  # so that the name is used
    assert run
