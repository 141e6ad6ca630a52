"""`kill -9` at any moment, then resume: the same bits as a run that nobody touched."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import run_lab

from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.publish import TEMPORARY
from gptoss_tools.core.runs import open_run

pytestmark = pytest.mark.slow

STEPS = {"max_steps": 12, "save_steps": 4, "steps_per_generation": 4}


def start(folder, verb, name, **changes):
    """Start a run or a resume in a process of its own; return once Python and torch are up."""
    import json

    command = [sys.executable, Path(run_lab.__file__), str(folder), verb]
    process = subprocess.Popen(
        [*map(str, command), json.dumps({"name": name, **changes})],
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    assert process.stderr.readline() == "ready\n"
    return process


def finish(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = run_lab.furnish(tmp_path_factory.mktemp("killed"))
    finish(start(folder, "train", "straight", **STEPS))
    return folder


def test_killed_at_random_moments_it_ends_with_the_same_bits(lab):
    chance = random.Random(5)
    process = start(lab, "train", "killed", **STEPS)
    kills = 0
    for least in (1, 4, 7, 10):
        metrics = lab / "killed/metrics.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            records = read_metrics(metrics)
            if records and records[-1]["step"] >= least:
                break
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
        process = start(lab, "resume", "killed")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 or "is finished" in errors, errors
    assert kills >= 3
    run = open_run(lab / "killed")
    assert run_lab.same_bits(run.adapter_path, lab / "straight/adapter")
    assert [r["step"] for r in read_metrics(run.metrics_path)] == list(range(1, 13))
    assert not list(run.path.rglob(TEMPORARY + "*"))


@pytest.mark.parametrize("call", [("fsync", 3), ("fsync", 20), ("rmtree", 9)])
def test_killed_inside_a_save_it_ends_with_the_same_bits(lab, call):
    name = f"in-{call[0]}-{call[1]}"
    process = start(lab, "train", name, die_at=list(call), **STEPS)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    if not (lab / name / "config.json").exists():  # killed while claiming: the name is still free
        finish(start(lab, "train", name, **STEPS))
    else:
        finish(start(lab, "resume", name))
    assert run_lab.same_bits(lab / name / "adapter", lab / "straight/adapter")
    assert not list((lab / name).rglob(TEMPORARY + "*"))


def test_killed_between_the_last_checkpoint_and_the_adapter_it_only_writes_the_adapter(lab):
    shutil.copytree(lab / "straight", lab / "bare")
    shutil.rmtree(lab / "bare/adapter")
    (lab / "bare/outcome.json").unlink()
    finish(start(lab, "resume", "bare"))
    assert run_lab.same_bits(lab / "bare/adapter", lab / "straight/adapter")


def test_sigterm_saves_and_stops(lab):
    process = start(lab, "train", "term", **{**STEPS, "max_steps": 200})
    while not (lab / "term/metrics.jsonl").exists():
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert "Interrupted" in errors
    run = open_run(lab / "term")
    last = read_metrics(run.metrics_path)[-1]["step"]
    assert run.checkpoint().step == last
