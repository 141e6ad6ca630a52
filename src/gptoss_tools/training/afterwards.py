"""Figures that are known only after a run has ended, in the tracker that the run reported to."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from gptoss_tools.core.runs import Run
from gptoss_tools.training.trackers import tracker


def report_figures(run: Run, figures: Mapping[str, float | None]) -> str | None:
    """Add figures to the run's W&B summary, or to its TensorBoard at its last step; say where.

    None for any other tracker: it could not be told which of its runs this is. Raises MachineError
    if the tracker is not installed.
    """
    name = run.settings.get("report_to", "none")
    if name not in ("wandb", "tensorboard"):
        return None
    known = {key: value for key, value in figures.items() if value is not None}
    with tracker(name, run, run.settings) as callbacks:
        if name == "wandb":
            importlib.import_module("wandb").run.summary.update(known)
        else:
            [callback] = callbacks
            writer: Any = callback.tb_writer  # type: ignore[attr-defined]
            for key, value in known.items():
                writer.add_scalar(key, value, run.outcome.get("steps", 0))
    return name
