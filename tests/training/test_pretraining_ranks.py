"""Two processes pretrain what one does: the same windows, one writer, exact after a resume."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pretrain_lab
import pytest
import torch

from gptoss_tools.core.runs import open_run

pytestmark = pytest.mark.slow


def launch(folder: Path, verb: str, **changes) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [pretrain_lab.__file__, str(folder), verb, json.dumps(changes)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_learn_and_measure_what_one_does_and_go_on_exactly(tmp_path):
    lab, sizes = pretrain_lab.furnish(tmp_path), {"max_steps": 6, "save_steps": 3, "dropout": 0.0}
    one = pretrain_lab.run(lab, "one", eval_steps=3, **sizes)
    launch(lab, "train", name="two", eval_steps=3, **sizes)
    two = open_run(lab / "two")
    assert two.config["world_size"] == 2
    assert len((two.path / "starts.jsonl").read_text().splitlines()) == 1
    assert len(list((two.path / "logs").iterdir())) == 1
    alone = pretrain_lab.history(one.run)
    together = pretrain_lab.history(two.path)
    assert [r["step"] for r in together] == [r["step"] for r in alone] == list(range(7))
    # gradients are added in another order, so the last digits may differ
    for a, b in zip(alone, together, strict=True):
        for name in set(a) & {"loss", "eval_loss", "eval_train_loss", "eval_loss_se"}:
            assert b[name] == pytest.approx(a[name], rel=1e-4), (name, a["step"])
        assert a.get("num_tokens") == b.get("num_tokens")

    shutil.copytree(two.path, lab / "half")
    for path in ("model", "checkpoints/step-000006"):
        shutil.rmtree(lab / "half" / path)
    (lab / "half/outcome.json").unlink()
    launch(lab, "resume", name="half")
    ends = [pretrain_lab.load_file(lab / n / "model/model.safetensors") for n in ("two", "half")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert open_run(lab / "half").outcome["resumed_from"] == 3
