"""Supervised runs in processes of their own: killed at any moment, or two of them on one run."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import run_lab
import sft_lab

from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.publish import TEMPORARY
from gptoss_tools.core.runs import open_run

pytestmark = pytest.mark.slow


def launch(folder, verb, processes=1, **changes):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}"]
    command += [sft_lab.__file__, str(folder), verb, json.dumps(changes)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=200)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return sft_lab.furnish(tmp_path_factory.mktemp("sft"))


def test_killed_inside_a_save_it_ends_with_the_same_bits(lab):
    changes = {"adapter": "mixlora", "max_steps": 8}
    code, errors = launch(lab, "train", name="killed", die_at=["fsync", 40], **changes)
    assert code == -signal.SIGKILL, errors
    run = open_run(lab / "killed")
    assert 0 < run.checkpoint().step < 8
    code, errors = launch(lab, "resume", name="killed")
    assert code == 0, errors
    sft_lab.run(lab, "straight", **changes)
    assert len((run.path / "starts.jsonl").read_text().splitlines()) == 2
    assert sft_lab.same_bits(run.path, lab / "straight")
    assert [r["step"] for r in read_metrics(run.metrics_path)] == list(range(1, 9))
    assert not list(run.path.rglob(TEMPORARY + "*"))


def test_two_processes_train_as_one_does_and_go_on_with_the_same_bits(lab):
    changes = {
        "adapter": "mixlora",  # an expert that no row of a process chose must not stop the other
        "lora_dropout": 0.0,
        "router_aux_loss_coef": 0.0,  # a product of means over a micro-batch: not the same in two
        "eval_steps": 4,
        "eval_data": [str(lab / "table.jsonl")],
        "max_steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-3,
    }
    sft_lab.run(lab, "one", **changes)
    # half the rows on each of two processes: the same rows in every step
    code, errors = launch(lab, "train", 2, name="two", per_device_train_batch_size=1, **changes)
    assert code == 0, errors[-3000:]
    records = [read_metrics(lab / name / "metrics.jsonl") for name in ("one", "two")]
    assert [r["step"] for r in records[1]] == [0, 1, 2, 3, 4]
    for single, pair in zip(*records, strict=True):
        both = single.keys() & {"loss", "num_tokens", "eval_loss", "eval_loss_se", "learning_rate"}
        assert {n: pair[n] for n in both} == pytest.approx({n: single[n] for n in both}, rel=1e-4)
    shutil.copytree(lab / "two", lab / "half")
    for path in ("adapter", "checkpoints/step-000004"):
        shutil.rmtree(lab / "half" / path)
    (lab / "half/outcome.json").unlink()
    code, errors = launch(lab, "resume", 2, name="half")
    assert code == 0, errors[-3000:]
    assert run_lab.same_bits(lab / "half/adapter", lab / "two/adapter")
