"""Which settings a run goes on with: its own, and what was asked to be different."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gptoss_tools.core.runs import Run
from gptoss_tools.errors import ConfigError
from gptoss_tools.settings import ResumeSettings
from gptoss_tools.training.method import Method

# Of this start only, never a run's own.
START_ONLY = frozenset({"output_dir", "resume", "allow_changes", "dry_run", "resume_steps"})

# What runs did that are older than the setting which says so.
EARLIER = {"experts": "dequantized"}


def merged_settings(method: Method, run: Run, changes: Mapping[str, Any], reached: int) -> Any:
    """Return the settings `run` was last started with, `changes` laid over them.

    `resume_steps` among them counts from the `reached` step. Raises ConfigError for a run of
    another program version or for impossible changes.
    """
    place = changes.get("output_dir")
    if place is not None and Path(place).resolve() != run.path.resolve():
        raise ConfigError(
            f"output_dir is {place}, but a resumed run stays in its own folder {run.path}",
            hint="leave out --output-dir, or leave out --resume",
        )
    if not run.settings:
        raise ConfigError(
            f"{run.path} holds no run to go on with: config.json has no settings",
            hint="name a run folder or one of its checkpoints",
        )
    wanted = {k: v for k, v in changes.items() if k not in START_ONLY}
    if more := changes.get("resume_steps"):
        if "max_steps" in changes:
            raise ConfigError("max_steps and resume_steps are both given", hint="give one of them")
        wanted["max_steps"] = reached + more
    try:
        return method.settings(**{**EARLIER, **run.settings, **wanted})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise ConfigError(
            f"{run.config_path}, {where}: {first['msg']}",
            hint="the run was made by another version; start another run",
        ) from error


def resume_changes(settings: ResumeSettings) -> dict[str, Any]:
    """Return what `settings` change in the run that goes on."""
    names = ("max_steps", "resume_steps", "save_steps", "eval_steps", "report_to")
    return {n: v for n in names if (v := getattr(settings, n)) is not None}
