"""Two processes see the prompts of one process with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import grpo_lab as lab
import pytest

from gptoss_tools.core.stream import StepStream
from gptoss_tools.errors import ConfigError
from gptoss_tools.training.sampling import GenerationSampler

SCRIPT = Path(__file__).with_name("grpo_ranks.py")


def launch(folder: Path, processes: int, script: Path = SCRIPT) -> list[dict]:
    """What each process reported; raises with its output if one failed."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(script), str(folder), str(processes)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(processes)]


@pytest.mark.slow
def test_two_processes_train_on_the_prompts_of_one_and_resume_exactly(tmp_path):
    (alone,) = launch(tmp_path / "one", 1)
    first, second = launch(tmp_path / "two", 2)
    assert (alone["local_batch"], first["local_batch"]) == (8, 4)
    # 2 generation batches (steps 0 and 2) x 4 draws x 2 prompts x 4 completions
    assert len(alone["records"]) == 64
    assert first["records"] == alone["records"]
    assert second["records"] == []  # only rank 0 hands records on
    assert first["weights"] == second["weights"]
    assert all(r["equal_after_resume"] for r in (alone, first, second))
    for run in (first, second):
        assert run["shared"] == pytest.approx(run["first"], rel=1e-4, abs=1e-6)
    mine, other = (run["forwards"] for run in (first, second))
    assert len(mine) == len(other), "sharded weights would wait for each other"
    assert max(mine + other) <= 45 and sum(mine) != sum(other)
    names = {p.name for p in (tmp_path / "two" / "straight" / "step-000001").iterdir()}
    assert {"rollout_state_0.pt", "rollout_state_1.pt", "rng_state_1.pth"} <= names


@pytest.mark.slow
def test_groups_are_scored_with_weights_sharded_over_processes_that_need_unlike_forwards(tmp_path):
    first, second = launch(tmp_path / "two", 2, SCRIPT.with_name("sharded_ranks.py"))
    assert (first["forwards"], second["forwards"]) == ([2, 4], [4, 4])
    for run in (first, second):
        assert run["off"] < 1e-5
        assert run["gradient_off"] < 1e-5


@pytest.mark.parametrize("repeats", [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_no_draw_is_lost_and_none_comes_twice(repeats):
    per_generation, iterations = repeats
    stream = StepStream(20, 2, 3, 42)
    sampler = GenerationSampler(
        stream, micro_steps=12, steps_per_generation=per_generation, num_iterations=iterations
    )
    rows = list(sampler)
    assert len(rows) == len(sampler) == 12 * sampler.batch_rows
    batches = [rows[i : i + sampler.batch_rows] for i in range(0, len(rows), sampler.batch_rows)]
    used = batches[:: per_generation * iterations]  # those TRL looks at
    drawn = [stream.rows(t).tolist() for t in range(12 // iterations)]
    assert [row for batch in used for row in batch] == [row for draw in drawn for row in draw]


def test_a_last_generation_batch_may_be_used_in_part():
    sampler = GenerationSampler(
        StepStream(20, 1, 2, 42), micro_steps=5, steps_per_generation=3, num_iterations=1
    )
    assert len(list(sampler)) == len(sampler) == 5 * 6


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="1 x 4 completions does not divide over 3 processes"):
        lab.make_config(lab.settings(), str(tmp_path), 3)
