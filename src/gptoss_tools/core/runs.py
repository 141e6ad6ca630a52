"""The run folder: open one, find its checkpoints and its adapter (`claims` makes new ones).

    runs/NAME/ config.json versions.json metrics.jsonl completions.csv log.txt
               checkpoints/step-000020/ adapter/ outcome.json (only when finished)
               adapter-best/ (with eval_steps) evaluation/ (gptoss evaluate)

Reads and names folders; what a checkpoint holds is `training.checkpoints`' affair. Imports nothing
heavy, so that every command can say which run it means before it loads anything.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from gptoss_tools.core.locks import hold, is_locked
from gptoss_tools.core.publish import is_complete, read_manifest
from gptoss_tools.errors import RunFolderError

HOME = Path("runs")
LATEST = "latest"
STEP_NAME = re.compile(r"step-(\d+)")
State = Literal["running", "finished", "interrupted"]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: the optimizer step it was taken after, and its folder."""

    step: int
    path: Path


@dataclass(frozen=True)
class Adapter:
    """An adapter folder for `PeftModel.from_pretrained`; `label` says which it is, for people."""

    path: Path
    step: int | None
    final: bool
    label: str


@dataclass(frozen=True)
class Run:
    """A run folder. `selected` is the checkpoint or adapter inside it that the user named."""

    path: Path
    selected: Path | None = None

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter_path(self) -> Path:
        return self.path / "adapter"

    @property
    def model_path(self) -> Path:
        """The model of a run that trained no adapter but all of it."""
        return self.path / "model"

    @property
    def best_path(self) -> Path:
        """The adapter with the least held-out regret; there only with eval_steps."""
        return self.path / "adapter-best"

    @property
    def evaluation_path(self) -> Path:
        """Where `gptoss evaluate` writes."""
        return self.path / "evaluation"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def completions_path(self) -> Path:
        return self.path / "completions.csv"

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def outcome_path(self) -> Path:
        return self.path / "outcome.json"

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.json holds: command, settings, cwd, data, world_size; {} for a bare adapter.

        Raises RunFolderError when the file is there and cannot be read.
        """
        return _read_object(self.config_path)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings the run was started with, resolved."""
        return self.config.get("settings", {})

    @property
    def versions(self) -> dict[str, Any]:
        """What versions.json holds, {} without one."""
        return _read_object(self.path / "versions.json")

    @property
    def outcome(self) -> dict[str, Any]:
        """What outcome.json holds; {} while the run is not finished."""
        return _read_object(self.outcome_path)

    def checkpoints(self) -> list[Checkpoint]:
        """Return the complete checkpoints by step number, ignoring anything else in the folder."""
        found = []
        if self.checkpoints_path.is_dir():
            for path in self.checkpoints_path.iterdir():
                match = STEP_NAME.fullmatch(path.name)
                if match and path.is_dir() and is_complete(path):
                    found.append(Checkpoint(int(match.group(1)), path))
        return sorted(found, key=lambda c: (c.step, c.path.name))

    def damaged(self) -> list[Path]:
        """Return the folders that bear a checkpoint's name but lack files or hold changed ones."""
        if not self.checkpoints_path.is_dir():
            return []
        named = [p for p in self.checkpoints_path.iterdir() if STEP_NAME.fullmatch(p.name)]
        return sorted(path for path in named if not is_complete(path))

    def checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint to go on from: the selected one, else the newest, else None."""
        if self.selected is not None and (match := STEP_NAME.fullmatch(self.selected.name)):
            return Checkpoint(int(match.group(1)), self.selected)
        return self.checkpoints()[-1] if self.checkpoints() else None

    def checkpoint_path_for(self, step: int) -> Path:
        """Return where the checkpoint of `step` belongs."""
        return self.checkpoints_path / f"step-{step:06d}"

    def adapter(self) -> Adapter:
        """Return the selected adapter, else the newer of the final one and the newest checkpoint's.

        Raises RunFolderError when the run has neither.
        """
        if self.selected is not None:
            point = self.checkpoint() if STEP_NAME.fullmatch(self.selected.name) else None
            step = point.step if point else (read_manifest(self.selected) or {}).get("step")
            label = f"checkpoint of step {step}" if point else "adapter"
            return Adapter(self.selected, step, point is None, f"{label} in {self.selected}")
        if (whole := self.model()) is not None:
            raise RunFolderError(
                f"{self.path} trained the whole model, not an adapter", hint=f"use {whole} itself"
            )
        newest = self.checkpoints()[-1] if self.checkpoints() else None
        if (self.adapter_path / "adapter_config.json").is_file():
            step = (read_manifest(self.adapter_path) or {}).get("step")
            if newest is None or step is None or step >= newest.step:
                label = f"final adapter of {self.path}"
                return Adapter(self.adapter_path, step, True, label)
        if newest is None:
            raise RunFolderError(
                f"{self.path} has no adapter and no complete checkpoint yet",
                hint=f"gptoss resume {self.path}",
            )
        label = f"newest checkpoint of {self.path}: step {newest.step}, run not finished"
        return Adapter(newest.path, newest.step, False, label)

    def model(self) -> Path | None:
        """Return the newest whole model of a run that trained no adapter; None of any other run."""
        newest = self.checkpoints()[-1] if self.checkpoints() else None
        done = (read_manifest(self.model_path) or {}).get("step")
        if done is not None and (newest is None or done >= newest.step):
            return self.model_path
        if newest is None or (newest.path / "adapter_config.json").is_file():
            return None
        return newest.path if (newest.path / "config.json").is_file() else None

    @property
    def state(self) -> State:
        """`running` while a live process holds the lock, else whether the run reached its end."""
        if is_locked(self.path / ".lock"):
            return "running"
        return "finished" if self.outcome_path.is_file() else "interrupted"

    def lock(self, patience: float = 2.0) -> AbstractContextManager[None]:
        """Hold the run for writing, see `locks.hold`."""
        return hold(self.path / ".lock", str(self.path), patience)

    def abandon(self) -> None:
        """Remove a claimed folder in which no training began, so its name is free again."""
        if not self.checkpoints() and not self.metrics_path.exists():
            shutil.rmtree(self.path, ignore_errors=True)


def open_run(target: str | Path = HOME / LATEST) -> Run:
    """Return the run that `target` means: a run, `runs/latest`, a checkpoint, or an adapter folder.

    An adapter folder of no run is a Run whose `config` is {}. Raises RunFolderError otherwise.
    """
    path = Path(target)
    if path.is_file() and path.name == LATEST:
        path = path.parent / path.read_text(encoding="utf-8").strip()
    if path.is_symlink():
        path = Path(os.path.relpath(path.resolve()))
    if not path.is_dir():
        if Path(target).name == LATEST:
            raise RunFolderError(f"no run yet: {target} is not there", hint="gptoss train-grpo")
        raise RunFolderError(f"{target} is not there", hint="name a run folder: ls runs")
    is_checkpoint = STEP_NAME.fullmatch(path.name) is not None  # of a whole model, say
    has_config = (path / "config.json").is_file()
    if has_config and not is_checkpoint and not (path / "adapter_config.json").is_file():
        if "model_type" not in Run(path).config:
            return Run(path)
        if path.name == "model" and "settings" in Run(path.parent).config:
            return Run(path.parent)
        raise RunFolderError(f"{path} is a model, not a run", hint="name a run folder: ls runs")
    parent = path.parent.parent if is_checkpoint else path.parent
    if is_checkpoint:
        if not is_complete(path):
            raise RunFolderError(
                f"{path} is not a complete checkpoint", hint=f"gptoss resume {parent}"
            )
        return Run(parent, selected=path)
    if (path / "adapter_config.json").is_file():
        inside = path.name in ("adapter", "adapter-best") and (parent / "config.json").is_file()
        return Run(parent if inside else path, selected=path)
    raise RunFolderError(
        f"{path} is no run, checkpoint or adapter folder",
        hint="a run folder holds config.json, an adapter folder adapter_config.json",
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} cannot be read: {error}", hint="restore the file or start another run"
        ) from error
    return content if isinstance(content, dict) else {}
