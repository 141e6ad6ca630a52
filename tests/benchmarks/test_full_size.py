"""The path that is proved on a GPU at full size runs at tiny size on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from gptoss_tools.chat.actions import Decision, Reason
from gptoss_tools.chat.completions import Completion, Message


def run(pytestconfig, *options):
    command = [sys.executable, pytestconfig.rootpath / "benchmarks" / "full_size.py", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_every_stage_runs_and_is_recorded(pytestconfig, tmp_path):
    done = run(pytestconfig, "--folder", tmp_path / "home", "--out", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "results" / "full_size-tiny.json").read_text())
    stages = {row["stage"]: row for row in record["stages"]}
    assert list(stages) == ["make", "load", "train", "resume", "export", "stock"]
    assert all(row["seconds"] > 0 and row["peak_rss"] > 0 for row in stages.values())
    assert stages["train"]["steps"] == 3
    assert stages["resume"]["steps"] == 4 and stages["resume"]["resumed_from"] == 3
    assert stages["export"]["ratio"] > 0  # training moved the adapter
    assert stages["stock"]["adapter_changes_logits_by"] > 0
    # What rounding the merge to bfloat16 costs, beside logits that spread over 0.16.
    assert stages["stock"]["export_differs_from_unmerged_by"] < 0.05
    assert set(stages) == {line.split(" | ")[0][2:] for line in done.stdout.splitlines()[2:]}
    log = (tmp_path / "results" / "full_size-tiny.log").read_text()
    assert all(f"== {stage}\n" in log for stage in stages)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is visible")
def test_the_20b_says_that_it_needs_a_gpu_and_writes_nothing(pytestconfig, tmp_path):
    done = run(pytestconfig, "--size", "20b", "--folder", tmp_path / "home", "--out", tmp_path)
    assert done.returncode == 3
    assert "needs a CUDA GPU" in done.stdout
    assert not list(tmp_path.iterdir())


def test_its_reward_tells_random_answers_apart(script):
    def reward(text):
        message = Message(role="assistant", channel="final", content=text)
        completion = Completion(messages=(message,), stop="none")
        decision = Decision(action=None, reason=Reason.NO_FINAL)
        return script("full_size").lower_case(decision, [], completion, {})

    # the transcript puts "[final] " before the text: 5 small letters of 8 characters
    assert reward("abcd") == 9 / 12
    assert reward("ABCD") == 5 / 12
