"""Rewards in a file of one's own: one that ends the program, one that changes between starts."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import run_lab
import torch

from gptoss_tools.core.runs import Run
from gptoss_tools.errors import ConfigError, TrainingError
from gptoss_tools.settings import ResumeSettings
from gptoss_tools.training.train import resume

OWN = """
import sys
from pathlib import Path

import grpo_lab


def hasty(decision, rewards_K, completion, row):
    if Path("calls").exists():
        left = int(Path("calls").read_text())
        Path("calls").write_text(str(left - 1))
        if not left:
            Path("calls").unlink()
            sys.exit()
    return grpo_lab.hash_reward(decision, rewards_K, completion, row)
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with model, table and the reward `own_hasty:hasty`, which counts down in `calls`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_lab.furnish(tmp_path)
    (tmp_path / "own_hasty.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("own_hasty", None)
    torch.set_num_threads(threads)


def test_a_reward_that_ends_the_program_is_an_error_and_the_run_goes_on_exactly(lab):
    own = {"reward": "own_hasty:hasty", "max_steps": 3, "save_steps": 1}
    run_lab.run(lab, "straight", **own)
    Path("calls").write_text("17")  # 8 completions a step, so in the third
    with pytest.raises(
        TrainingError, match=r"reward function hasty failed on row \d: SystemExit"
    ) as caught:
        run_lab.run(lab, "ended", **own)
    assert f"gptoss resume {lab / 'ended'} goes on" in str(caught.value.hint)
    assert run_lab.go_on(lab, "ended").resumed_from == 2
    assert run_lab.same_bits(lab / "straight/adapter", lab / "ended/adapter")


def test_a_reward_whose_file_changed_is_refused_by_name_and_taken_when_told_so(lab):
    run_lab.run(lab, reward="own_hasty:hasty", max_steps=1)
    run = Run(lab / "run")
    digest = hashlib.sha256(OWN.encode()).hexdigest()
    assert run.config["reward_sha256"] == {"own_hasty:hasty": digest}
    changed = OWN.replace("left - 1", "left - 2")
    (lab / "own_hasty.py").write_text(changed)
    with pytest.raises(ConfigError, match="holds the reward own_hasty:hasty changed") as caught:
        run_lab.go_on(lab, max_steps=2)
    assert "--allow-changes" in str(caught.value.hint)
    said = []
    more = {"run": str(run.path), "max_steps": 2, "allow_changes": True}
    resume(ResumeSettings.model_validate(more), on_notice=said.append)
    assert "the file that holds the reward own_hasty:hasty changed" in said
    # What it goes on with is what the next start is compared with.
    assert run_lab.go_on(lab, max_steps=3).steps == 3


def test_a_run_that_is_older_than_the_record_of_its_rewards_goes_on(lab):
    run_lab.run(lab, reward="own_hasty:hasty", max_steps=1)
    path = Run(lab / "run").config_path
    config = json.loads(path.read_text())
    assert config.pop("reward_sha256")
    path.write_text(json.dumps(config))
    (lab / "own_hasty.py").write_text(OWN + "\n# new\n")
    assert run_lab.go_on(lab, max_steps=2).steps == 2
    assert Run(lab / "run").config["reward_sha256"]
