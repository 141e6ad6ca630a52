"""What a run folder records of its run: config.json, versions.json, starts.jsonl (every start).

`begin` claims a new folder, `go_on` checks an old one against what is here now. Both run on rank 0
alone. Leaves out what training itself writes (tracking, flow).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from gptoss_tools.core.claims import claim
from gptoss_tools.core.history import append
from gptoss_tools.core.publish import write_json
from gptoss_tools.core.runs import Run
from gptoss_tools.models.machine import resolve_device
from gptoss_tools.models.survey import version_of
from gptoss_tools.training.checkpoints import check_resumable
from gptoss_tools.training.method import Method
from gptoss_tools.training.prepared import Prepared

PACKAGES = (
    *("gptoss-tools", "torch", "transformers", "trl", "peft", "accelerate"),
    *("datasets", "numpy", "pandas"),
)
STARTS = "starts.jsonl"


def begin(method: Method, prepared: Prepared) -> Run:
    """Claim the run folder and write down what the run is; raises RunFolderError if it is taken."""
    run = claim(prepared.settings.output_dir, config(method, prepared), prefix=method.prefix)
    write_json(run.path / "versions.json", versions(prepared.settings.device))
    return run


def go_on(
    run: Run, method: Method, prepared: Prepared, reached: int, allow_changes: bool
) -> list[str]:
    """Check that `run` may go on with what is here now and bring its records up to date.

    Returns sentences the user should read. Raises as `checkpoints.check_resumable`.
    """
    new = prepared.settings.model_dump(mode="json")
    notes = check_resumable(
        run,
        new,
        data_hash=prepared.data_hash,
        world_size=prepared.world_size,
        base_hash=prepared.base_hash,
        reward_hashes=prepared.facts().get("reward_sha256"),
        allow_changes=allow_changes,
        shape=method.shape,
    )
    now = versions(prepared.settings.device)
    before = run.versions
    for name in sorted(set(before) & set(now) - {"git"}):
        if before[name] != now[name]:
            notes.append(f"{name} was {before[name]} and is {now[name]}: bits may differ")
    origins = {**run.config.get("origins", {}), **prepared.origins}
    write_json(run.config_path, {**run.config, "origins": origins, **_facts(prepared)})
    write_json(run.path / "versions.json", now)
    return notes


def set_aside_newer(run: Run, reached: int) -> list[str]:
    """Move checkpoints beyond `reached` out of the way: they are of another future."""
    newer = [c for c in run.checkpoints() if c.step > reached]
    if not newer:
        return []
    place = run.checkpoints_path / f"superseded-{time.strftime('%Y%m%d-%H%M%S')}"
    place.mkdir(exist_ok=True)
    for checkpoint in newer:
        os.replace(checkpoint.path, place / checkpoint.path.name)
    return [f"{len(newer)} checkpoints after step {reached} are now in {place}"]


def count_start(run: Run, prepared: Prepared, reached: int) -> int:
    """Note a start of the run; return its number, from 1: the `segment` of metrics and rows."""
    path = run.path / STARTS
    segment = path.read_bytes().count(b"\n") + 1 if path.exists() else 1
    line = {
        "segment": segment,
        "after_step": reached,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": platform.node(),
        "max_steps": prepared.settings.max_steps,
        "command": prepared.command,
    }
    append(path, json.dumps(line, ensure_ascii=False) + "\n")
    return segment


def config(method: Method, prepared: Prepared) -> dict[str, Any]:
    """Return the content of config.json: the resolved settings and what they applied to."""
    return {
        "command": method.command,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cwd": os.getcwd(),
        "origins": prepared.origins,
        **_facts(prepared),
    }


def versions(device: str = "auto") -> dict[str, Any]:
    """Return what the bits of a result depend on besides settings and data."""
    target = resolve_device(device)
    gpu = torch.cuda.get_device_name(target) if target.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "git": _revision(),
        "device": target.type,
        "gpu": gpu,
        "torch_threads": torch.get_num_threads(),
        **{name: version_of(name) for name in PACKAGES},
    }


def _facts(prepared: Prepared) -> dict[str, Any]:
    return {
        "world_size": prepared.world_size,
        "base_sha256": prepared.base_hash,
        "data": {
            "sha256": prepared.data_hash,
            "rows": prepared.rows,
            "dropped": prepared.dropped,
        },
        **prepared.facts(),
        "settings": prepared.settings.model_dump(mode="json"),
    }


def _revision() -> str | None:
    """Return the git revision of the current folder, or None."""
    if not any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents)):
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
