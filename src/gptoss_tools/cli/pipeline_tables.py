"""The first stage of `gptoss pipeline`: tables made ready for training, in copies."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..load import load
from ..settings import CheckDataSettings
from .stages import Stages


def prepare_tables(
    paths: Sequence[str], home: Path, stages: Stages, figures: dict[str, Any]
) -> list[str]:
    """Return paths to train on: these, if they are ready, else copies in `home` that are made so.

    Converts only where prompts are legacy, scores only where rewards are missing, and checks all.
    Adds to `figures` rows, converted and scored. Raises as the commands do.
    """
    from ..data.readiness import survey

    reading = load(CheckDataSettings, "check-data", config=stages.config).settings
    tables = survey(paths, encoding=reading.encoding, delimiter=reading.delimiter)
    figures["rows"] += sum(table.rows for table in tables)
    ready = list(paths)
    if not all(table.ready for table in tables):
        now = _copies([table.path for table in tables], home)
        for verb, done, lacking in (
            ("convert-harmony", "converted", [t.path for t in tables if not t.harmony]),
            ("calc-reward", "scored", [t.path for t in tables if not t.rewards]),
        ):
            if lacking:
                made = stages.run("prepare", verb, *(str(now[path]) for path in lacking))["files"]
                targets = {
                    file["source"]: file.get("target") or file["targets"][0] for file in made
                }
                now |= {path: Path(targets[str(now[path])]) for path in lacking}
                figures[done] += len(lacking)
        ready = [str(path) for path in now.values()]
    stages.run("prepare", "check-data", *ready)
    return ready


def _copies(tables: Sequence[Path], home: Path) -> dict[Path, Path]:
    """Copy tables into a new folder; a name that is taken gets the table's number before it."""
    home.mkdir(parents=True)
    copies = {}
    for number, path in enumerate(tables):
        taken = (home / path.name).exists()
        copies[path] = home / (f"{number}-" * taken + path.name)
        shutil.copyfile(path, copies[path])
    return copies
