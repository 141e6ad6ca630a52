"""Two processes train one run: the same prompts, one writer, the same bits after a resume."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import run_lab

from gptoss_tools.core.history import read_metrics
from gptoss_tools.core.runs import open_run

pytestmark = pytest.mark.slow

BATCH = {"prompts_per_step": 2, "max_steps": 4, "save_steps": 2}


def launch(folder, verb, processes, **changes):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}"]
    command += [run_lab.__file__, str(folder), verb, json.dumps(changes)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=200)
    return done.returncode, done.stderr


def drawn(run) -> Counter:
    with (run / "completions.csv").open(encoding="utf-8", newline="") as file:
        return Counter((r["step"], r["micro_step"], r["prompt"]) for r in csv.DictReader(file))


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    folder = run_lab.furnish(tmp_path_factory.mktemp("ranks"))
    code, errors = launch(folder, "train", 2, name="two", **BATCH)
    assert code == 0, errors[-3000:]
    return folder


def test_two_processes_see_the_prompts_of_one_and_only_one_writes(lab):
    code, errors = launch(lab, "train", 1, name="one", **BATCH)
    assert code == 0, errors[-3000:]
    # 4 steps x 2 micro-steps x 2 prompts, each with 4 completions
    assert drawn(lab / "two") == drawn(lab / "one")
    assert sum(drawn(lab / "two").values()) == 4 * 2 * 2 * 4
    run = open_run(lab / "two")
    assert run.config["world_size"] == 2
    assert len((run.path / "starts.jsonl").read_text().splitlines()) == 1
    assert len(run.metrics_path.read_text().splitlines()) == 4
    names = {p.name for p in (run.checkpoints()[0].path).iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= names


def test_a_resumed_pair_ends_with_the_same_bits_and_one_alone_is_refused(lab):
    import shutil

    shutil.copytree(lab / "two", lab / "half")
    for path in ("adapter", "checkpoints/step-000004"):
        shutil.rmtree(lab / "half" / path)
    (lab / "half/outcome.json").unlink()
    code, errors = launch(lab, "resume", 1, name="half")
    assert code != 0 and "there were 2 processes and are 1 now" in errors
    code, errors = launch(lab, "resume", 2, name="half")
    assert code == 0, errors[-3000:]
    assert run_lab.same_bits(lab / "half/adapter", lab / "two/adapter")


def test_what_one_process_refuses_ends_both(lab):
    code, errors = launch(lab, "train", 2, name="two", **BATCH)
    assert code != 0 and "already holds a run" in errors


def test_two_processes_share_the_held_out_rows_and_measure_what_one_does(lab):
    (lab / "held.csv").write_text((lab / "table.csv").read_text().replace("case", "held"))
    held = {"eval_steps": 2, "eval_data": [str(lab / "held.csv")], "max_steps": 2}
    found = []
    for processes in (1, 2):
        code, errors = launch(lab, "train", processes, name=f"held{processes}", **BATCH | held)
        assert code == 0, errors[-3000:]
        records = read_metrics(lab / f"held{processes}" / "metrics.jsonl")
        found.append({r["step"]: r["eval_regret"] for r in records if "eval_regret" in r})
    assert found[0] == found[1]
    assert list(found[0]) == [0, 2]
