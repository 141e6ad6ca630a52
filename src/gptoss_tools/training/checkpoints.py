"""Which checkpoints stay, and whether a run may go on from one.

Two kinds of checkpoint share one format. Those of every `save_steps` steps stay (the newest
`save_total_limit` of them). Between them a *rolling* one follows the run as closely as it can
without costing more than a twentieth of the time: on a large model that is every step, so even
`kill -9` loses no finished step; on a tiny one it is every second or so. Each new checkpoint
replaces the rolling one before it. How a folder becomes complete is `core.publish`' affair.

Exactness: with the same data, settings, processes and packages, N steps at once and k + (N - k)
steps give the same bits. Another `max_steps` moves the end of the learning rate schedule: from the
first resumed step on, the rate is that of a run that had the new `max_steps` from its beginning.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gptoss_tools.core.publish import remove
from gptoss_tools.core.runs import Run
from gptoss_tools.errors import ConfigError, DataError

ROLLING = ".rolling"

# These change what is written or shown, never a weight.
FREE = frozenset(
    {
        "save_steps",
        "save_total_limit",
        "logging_steps",
        "eval_steps",
        "eval_data",
        "eval_batch_size",
        "log_completions",
        "completion_log_path",
        "report_to",
        "run_name",
        "output_dir",
        "resume",
        "resume_steps",
        "allow_changes",
        "dry_run",
        "modal",  # where it runs; the device is compared as a version
        "gpu",
        "nodes",
        "detach",
        "modal_secrets",
        "encoding",  # how the table is read; what was read is compared by its hash
        "delimiter",
        "data",
        "max_steps",  # changes the schedule from here on, as documented, and says so
        "date",  # prompts are rendered text in the table, so these two say nothing to a trainer
        "reasoning_effort",
        "model_identity",
    }
)


class Pace:
    """Decide when a rolling checkpoint is due: at most `share` of the time goes into saving."""

    def __init__(self, share: float = 0.05, clock: Any = time.monotonic):
        self.share = share
        self.clock = clock
        self.cost = 0.0
        self.last = clock()

    def due(self) -> bool:
        """Whether enough time has passed since the last save; the first one is always due."""
        return self.clock() - self.last >= self.cost / self.share

    def saved(self, seconds: float) -> None:
        """Note that a save has just ended and took `seconds`."""
        self.cost, self.last = seconds, self.clock()


def mark_rolling(checkpoint: Path) -> None:
    """Mark a checkpoint as one that the next may replace; a kill before this only keeps it."""
    with contextlib.suppress(OSError):
        (checkpoint / ROLLING).touch()


def rotate(run: Run, save_total_limit: int | None) -> list[Path]:
    """Remove rolling checkpoints and those beyond the limit, never the newest; return the removed.

    Incomplete folders are left alone: they are no checkpoints, and maybe the user's.
    """
    found = run.checkpoints()
    if not found:
        return []
    *older, newest = found
    rolling = [c for c in older if (c.path / ROLLING).exists()]
    lasting = [c for c in older if c not in rolling]
    room = len(lasting) if save_total_limit is None else save_total_limit
    if save_total_limit is not None and not (newest.path / ROLLING).exists():
        room -= 1
    gone = rolling + lasting[: max(0, len(lasting) - room)]
    for checkpoint in gone:
        remove(checkpoint.path)
    return [checkpoint.path for checkpoint in gone]


def changed_settings(
    old: Mapping[str, Any], new: Mapping[str, Any], names: Collection[str] | None = None
) -> dict[str, tuple[Any, Any]]:
    """Return {name: (old, new)} of settings that differ and are not free to; `names` limits it.

    Keys that only one side has (another version of this program) count as unchanged, and so does
    one name where there may now be several.
    """
    return {
        name: (old[name], new[name])
        for name in sorted(set(old) & set(new) - FREE)
        if (names is None or name in names) and new[name] not in (old[name], [old[name]])
    }


def check_resumable(
    run: Run,
    new_settings: Mapping[str, Any],
    *,
    data_hash: str,
    world_size: int,
    base_hash: str | None = None,
    reward_hashes: Mapping[str, str] | None = None,
    shape: Collection[str] = (),
    allow_changes: bool = False,
) -> list[str]:
    """Refuse to go on where the result would not be exact; return the changes that were allowed.

    `new_settings` are in JSON form, as in config.json. Raises DataError for other data, ConfigError
    for other settings, another base model or number of processes, each naming old and new, or for
    rewards whose own files changed (`reward_hashes` by name). `shape` names settings for which the
    saved weights fit no other value.
    """
    hint = "gptoss resume with --allow-changes goes on all the same, no longer exactly"
    old = run.settings
    changes: list[str] = []
    for name, (before, after) in changed_settings(old, new_settings).items():
        if name in shape:
            raise ConfigError(
                f"{name} was {before} when {run.path} began and is {after} now: what was "
                "saved has another shape",
                hint=f"leave {name} as it was, or start another run",
            )
        changes.append(f"{name} was {before} and is {after} now")
    if changes and not allow_changes:
        raise ConfigError(f"{run.path} cannot go on exactly: {'; '.join(changes)}", hint=hint)
    before_size = run.config.get("world_size", world_size)
    if before_size != world_size:
        changes.append(f"there were {before_size} processes and are {world_size} now")
        if not allow_changes:
            raise ConfigError(f"{run.path} cannot go on exactly: {changes[-1]}", hint=hint)
    before_base = run.config.get("base_sha256")
    if before_base and base_hash and before_base != base_hash:
        changes.append(f"the base model {run.settings.get('model')} has other weights now")
        if not allow_changes:
            raise ConfigError(f"{run.path} cannot go on exactly: {changes[-1]}", hint=hint)
    before_rewards = run.config.get("reward_sha256", {})  # older runs have none
    for name, digest in (reward_hashes or {}).items():
        if before_rewards.get(name, digest) != digest:
            changes.append(f"the file that holds the reward {name} changed")
            if not allow_changes:
                raise ConfigError(f"{run.path} cannot go on exactly: {changes[-1]}", hint=hint)
    before_hash = run.config.get("data", {}).get("sha256", data_hash)
    if before_hash != data_hash:
        tables = ", ".join(new_settings.get("data", []))
        changes.append(f"the data in {tables} changed")
        if not allow_changes:
            raise DataError(
                f"the data in {tables} are not those {run.path} began with "
                f"(sha256 {before_hash[:12]}, now {data_hash[:12]})",
                hint=hint,
            )
    return changes


def schedule_note(old_steps: int, new_steps: int, reached: int, scheduler: str) -> str | None:
    """Say in words what another `max_steps` does to the learning rate, or None if nothing."""
    if old_steps == new_steps or scheduler.startswith("constant"):
        return None
    return (
        f"max_steps {old_steps} -> {new_steps}: from step {reached + 1} on the learning rate is "
        f"that of a run of {new_steps} steps"
    )
