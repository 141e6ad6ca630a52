import importlib.util
import time

import pytest
import run_lab
import torch

from gptoss_tools.errors import MachineError
from gptoss_tools.training.trackers import require_tracker


def test_a_tracker_that_is_not_installed_is_named_before_anything_loads(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="needs the package trackio") as caught:
        require_tracker("trackio")
    assert "--report-to none" in caught.value.hint
    require_tracker("none")


@pytest.mark.slow
def test_without_a_key_wandb_logs_offline_into_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc
    torch.set_num_threads(1)
    run_lab.furnish(tmp_path)
    outcome = run_lab.run(tmp_path, max_steps=2, report_to="wandb")
    [records] = outcome.run.glob("wandb/offline-run-*/*.wandb")
    # W&B's own process writes the file, on a busy machine after the client has finished.
    deadline = time.monotonic() + 60
    while records.stat().st_size <= 1000 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert records.stat().st_size > 1000


@pytest.mark.slow
def test_tensorboard_events_lie_in_the_run_folder(tmp_path):
    pytest.importorskip("tensorboard")
    run_lab.furnish(tmp_path)
    outcome = run_lab.run(tmp_path, max_steps=1, report_to="tensorboard")
    assert list(outcome.run.glob("tensorboard/events.*"))
