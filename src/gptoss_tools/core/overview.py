"""What there is of runs at a glance: state, progress, the figure that counts, size.

Reads small files only and imports nothing heavy; a damaged run is a line that says so, never an
error. What a run measured step by step is `history`'s affair.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from gptoss_tools.core.history import invalid_share, read_metrics
from gptoss_tools.core.runs import Run
from gptoss_tools.errors import RunFolderError

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class RunFacts:
    """One run. `regret` is held-out, in the unit of Q; `created` is ISO 8601 with its offset.

    `reward` is held-out too, known where there is no regret.

    `problem` says what is wrong with a damaged run, of which nothing else is known but its size.
    """

    name: str
    path: Path
    state: Literal["running", "finished", "interrupted", "damaged"]
    step: int | None
    max_steps: int | None
    regret: float | None
    invalid: float | None
    bytes: int
    created: str | None
    problem: str | None = None
    reward: float | None = None


def list_runs(folders: Iterable[str | Path]) -> list[RunFacts]:
    """Return the runs that `folders` are or hold (two levels deep), oldest first, each once.

    Whatever is no run is skipped. Raises RunFolderError for a folder that does not exist.
    """
    found: dict[Path, RunFacts] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.is_file() else "is not there"
            raise RunFolderError(
                f"{folder} {what}", hint="name a run folder, or one that holds runs"
            )
        for path in _runs_in(folder, depth=2):
            # A name without `..` or links, so that `runs/latest` and `runs/first` are one run.
            found.setdefault(path.resolve(), read_facts(path))
    return sorted(found.values(), key=lambda facts: (_when(facts), str(facts.path)))


def read_facts(path: Path) -> RunFacts:
    """Return the facts of the run folder `path`."""
    run = Run(path)
    name, size = path.resolve().name, _size(path)
    try:
        settings, created = run.settings, run.config.get("created")
    except RunFolderError as error:
        return RunFacts(name, path, "damaged", None, None, None, None, size, None, str(error))
    records = read_metrics(run.metrics_path)
    regret = _held_out(run, records, "regret")
    return RunFacts(
        name=name,
        path=path,
        state=run.state,
        step=records[-1]["step"] if records else 0,
        max_steps=settings.get("max_steps"),
        regret=regret,
        invalid=next((s for r in records[::-1] if (s := invalid_share(r)) is not None), None),
        bytes=size,
        created=created if isinstance(created, str) else None,
        reward=_held_out(run, records, "reward") if regret is None else None,
    )


def best_record(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the record with the least held-out regret, or where none has one, the most reward.

    Of equal ones the first; None without any.
    """
    for name, sign in (("eval_regret", 1), ("eval_reward", -1)):
        measured = [r for r in records if _number(r.get(name)) is not None]
        if measured:
            return min(measured, key=lambda r: sign * r[name])
    return None


def is_run(path: Path) -> bool:
    """Whether `path` is a run folder, be it a damaged one; a model's config.json makes no run."""
    config = path / "config.json"
    if not config.is_file() or (path / "adapter_config.json").exists():
        return False
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file()
    return isinstance(content, dict) and isinstance(content.get("settings"), dict)


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    if depth == 0:
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    # Links last: a run has the name of its own folder, not of a link to it.
    for entry in sorted(entries, key=lambda e: e.is_symlink()):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _runs_in(entry, depth - 1)


def _held_out(run: Run, records: Sequence[Mapping[str, Any]], figure: str) -> float | None:
    """What `gptoss evaluate` found, else the best of the evaluations during training."""
    try:
        content = json.loads((run.evaluation_path / EVALUATION).read_text(encoding="utf-8"))
        value = _number(content[figure]["mean"])
    except (OSError, ValueError, KeyError, TypeError):
        value = None
    if value is not None:
        return value
    best = best_record(records)
    return None if best is None else _number(best.get(f"eval_{figure}"))


def _number(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def _size(path: Path) -> int:
    """Bytes in all files below `path`; links are not followed, vanished files not counted."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def _when(facts: RunFacts) -> float:
    """When the run was created; for want of better, when its folder last changed."""
    try:
        moment = datetime.fromisoformat(facts.created or "")
    except ValueError:
        return facts.path.stat().st_mtime
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()
