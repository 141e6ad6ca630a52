"""New run folders: a free name, taken by exactly one process, and `runs/latest`.

Opening and reading run folders is `runs`' affair.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from gptoss_tools.core.publish import require_free, temporary_name, write_json
from gptoss_tools.core.runs import HOME, LATEST, Run
from gptoss_tools.errors import RunFolderError


def claim(
    path: str | Path | None, config: dict[str, Any], home: Path = HOME, prefix: str = "grpo"
) -> Run:
    """Create a run folder that is this process's own, with its config.json; return it.

    `path` None takes the next free `runs/PREFIX-NNN`. Raises RunFolderError if `path` is in use.
    Two processes that claim at the same moment get two folders, or one gets the error.
    """
    if path is None:
        home.mkdir(parents=True, exist_ok=True)
        while True:
            folder = next_free(home, prefix)
            try:
                folder.mkdir()
                break
            except FileExistsError:
                continue
    else:
        folder = Path(path)
        check_unused(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"{folder} cannot be created: {error.strerror}", hint="choose another --output-dir"
            ) from error
    _create_exclusively(folder / "config.json", config)
    (folder / "checkpoints").mkdir(exist_ok=True)
    return Run(folder)


def next_free(home: Path = HOME, prefix: str = "grpo") -> Path:
    """Return the folder that `claim` would take when none is named; creates nothing."""
    taken = [0]
    if home.is_dir():
        matches = (re.fullmatch(rf"{prefix}-(\d+)", entry.name) for entry in home.iterdir())
        taken += [int(match.group(1)) for match in matches if match]
    return home / f"{prefix}-{max(taken) + 1:03d}"


def check_unused(folder: Path) -> None:
    """Raise RunFolderError if `folder` cannot become a new run, naming the ways out."""
    if (folder / "config.json").exists():
        run = Run(folder)
        ways = f"gptoss resume {folder}, or choose another --output-dir"
        if run.state == "finished":
            ways = f"gptoss resume {folder} --max-steps N goes on; or choose another --output-dir"
        raise RunFolderError(f"{folder} already holds a run ({run.state})", hint=ways)
    require_free(folder, hint="choose another --output-dir")


def mark_latest(run: Run, home: Path = HOME) -> None:
    """Make `home/latest` name `run`: a relative link, or a text file where links are impossible."""
    home.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(run.path.resolve(), home.resolve())
    temporary = temporary_name(home / LATEST)
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target, target_is_directory=True)
    except (OSError, NotImplementedError):
        temporary.write_text(target + "\n", encoding="utf-8")
    try:
        os.replace(temporary, home / LATEST)
    except OSError as error:  # a real folder called `latest` is the user's, and stays
        temporary.unlink(missing_ok=True)
        raise RunFolderError(f"{home / LATEST} cannot be replaced: {error.strerror}") from error


def _create_exclusively(path: Path, content: Any) -> None:
    """Write JSON so that exactly one of several processes succeeds, and whole."""
    temporary = path.with_name(temporary_name(path).name + f"-{time.monotonic_ns()}")
    write_json(temporary, content)
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise RunFolderError(
            f"{path.parent} was claimed by another process just now",
            hint="choose another --output-dir",
        ) from error
    except OSError:  # no hard links here: a tiny window in which two may claim remains
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
