"""Experiment trackers outside the run folder: W&B, trackio, TensorBoard, through HF's callbacks.

A tracker that is not installed is a MachineError before anything loads. Credentials are the
client's own affair: nothing here reads or stores one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from gptoss_tools.core.runs import Run
from gptoss_tools.errors import MachineError


def require_tracker(report_to: str) -> None:
    """Raise MachineError if the package that `report_to` names is not installed."""
    if report_to != "none" and importlib.util.find_spec(report_to) is None:
        raise MachineError(
            f"report_to = {report_to} needs the package {report_to}, which is not installed",
            hint=f"pip install {report_to}, or --report-to none",
        )


@contextmanager
def tracker(
    report_to: str, run: Run, settings: Mapping[str, Any]
) -> Iterator[list[TrainerCallback]]:
    """Open the tracker, yield the callbacks that feed it, and close it whatever happens."""
    require_tracker(report_to)
    name = settings.get("run_name") or run.path.name
    if report_to == "wandb":
        yield from _wandb(run, name, settings)
    elif report_to == "trackio":
        from transformers.integrations.integration_utils import TrackioCallback

        yield [TrackioCallback()]
    elif report_to == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations.integration_utils import TensorBoardCallback

        writer = SummaryWriter(log_dir=str(run.path / "tensorboard"))
        try:
            yield [TensorBoardCallback(writer)]
        finally:
            writer.close()
    else:
        yield []


def _wandb(run: Run, name: str, settings: Mapping[str, Any]) -> Iterator[list[TrainerCallback]]:
    """Start W&B: the same W&B run over all resumes; offline where the client has no key.

    The client decides by its own means (variables, netrc, its settings file) who is logged in.
    """
    from transformers.integrations.integration_utils import WandbCallback

    wandb = importlib.import_module("wandb")
    own = wandb.setup().settings
    mode = own.mode
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        mode = "offline"
    identity = f"{run.path.resolve()}{run.config.get('created', '')}"
    wandb.init(
        project=own.project or "gptoss",
        name=name,
        id="gptoss-" + hashlib.sha256(identity.encode()).hexdigest()[:12],
        resume=None if mode == "offline" else "allow",
        mode=mode,
        dir=str(run.path),
        config=dict(settings),
        settings=wandb.Settings(console="off", silent=True),
    )
    failed = True
    try:
        yield [WandbCallback()]
        failed = False
    finally:
        wandb.finish(exit_code=int(failed))
