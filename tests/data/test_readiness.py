"""What a table still lacks before training."""

from __future__ import annotations

import json

import pytest

from gptoss_tools.data.readiness import survey
from gptoss_tools.errors import DataError

HARMONY = "<|start|>user<|message|>Choose.<|end|><|start|>assistant"
MESSAGES = json.dumps([{"role": "user", "content": "Choose."}])


def write(path, prompts, rewards=True):
    rows = [{"prompt": p, "q_action_0": 0.0, "q_action_1": 1.0} for p in prompts]
    if rewards:
        rows = [row | {"reward_action_0": 0.0, "reward_action_1": 1.0} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize(
    ("prompts", "rewards", "expected"),
    [
        ([HARMONY, MESSAGES], True, (2, True, True)),
        ([HARMONY, "user: Choose."], True, (2, False, True)),
        ([MESSAGES], False, (1, True, False)),
        (["", HARMONY], False, (2, False, False)),
    ],
)
def test_a_table_is_ready_with_harmony_prompts_and_rewards(tmp_path, prompts, rewards, expected):
    write(tmp_path / "x.jsonl", prompts, rewards)
    [found] = survey([tmp_path])
    assert (found.rows, found.harmony, found.rewards) == expected
    assert found.ready == all(expected[1:])


def test_of_a_family_the_furthest_table_counts(tmp_path):
    write(tmp_path / "x.jsonl", ["user: Choose."], rewards=False)
    write(tmp_path / "x_harmony.jsonl", [HARMONY], rewards=False)
    [found] = survey([tmp_path])
    assert found.path.name == "x_harmony.jsonl" and found.harmony and not found.rewards


def test_lists_of_rewards_are_rewards_and_no_table_is_an_error(tmp_path):
    row = {"prompt": HARMONY, "q": [1.0, 2.0], "rewards": [0.0, 1.0]}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    assert survey([tmp_path / "x.jsonl"])[0].ready
    with pytest.raises(DataError, match="does not exist"):
        survey([tmp_path / "absent"])


def test_a_table_of_answers_lacks_no_rewards(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": MESSAGES, "answer": "4"}))
    assert survey([tmp_path / "x.jsonl"])[0].ready
