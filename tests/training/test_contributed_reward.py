"""The reward that CONTRIBUTING.md writes is read from there, and trains."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import run_lab

from gptoss_tools.chat.actions import Decision, Reason
from gptoss_tools.chat.completions import split_text
from gptoss_tools.core.runs import Run
from gptoss_tools.rewards import Answered
from gptoss_tools.rewards.combined import find
from gptoss_tools.settings import RewardSettings
from gptoss_tools.training.train import train

FINAL = "<|channel|>final<|message|>"


@pytest.fixture
def contributed(repository, tmp_path) -> Path:
    """The example as a module in the current folder, as its reader would have it."""
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## A reward, in one function\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "contributed.py").write_text(code)
    assert "--reward contributed:brevity --reward format" in section
    return tmp_path


def test_it_earns_what_it_says(contributed):
    kind = find("contributed:brevity")
    assert (kind.name, kind.columns, kind.reads) == ("brevity", ("limit",), ("answer_tags",))
    assert kind.summary.startswith("1 for an answer within the row's `limit`")
    score = kind.build(RewardSettings())

    def answer(said: str, limit: int | None) -> Answered:
        completion = split_text(f"{FINAL}{said}<|return|>")
        return Answered("P", completion, {"row": 0, "limit": limit}, Decision(None, Reason.OK))

    answers = [
        answer("one two three four", 2),  # 2 / 4
        answer("one two three four", 4),
        answer("as I said: <answer>one two three</answer>", 2),  # 2 / 3
        answer("", 2),
        answer("one", None),
    ]
    assert score(answers) == [0.5, 1.0, pytest.approx(2 / 3), 0.0, None]


def test_it_trains_two_steps(contributed):
    run_lab.furnish(contributed)
    lines = [
        {"prompt": f"<|start|>user<|message|>{row}<|end|><|start|>assistant", "limit": row + 1}
        for row in range(3)
    ]
    (contributed / "mine.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    wanted = {"reward": ["contributed:brevity", "format"], "data": ["mine.jsonl"], "max_steps": 2}
    train(run_lab.settings(contributed, **wanted))
    with Run(contributed / "run").completions_path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 4
    # noise has no final message: no words, and no structure
    assert {(r["reward_brevity"], r["reward_format"], r["reward"]) for r in rows} == {
        ("0.0", "-1.0", "-1.0")
    }
