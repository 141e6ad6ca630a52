"""Tables with Q columns -> the same tables with reward columns: what `calc-reward` does.

Leaves out the formulas (data.action_rewards) and how files are written whole (data.rewrite).
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gptoss_tools import registry
from gptoss_tools.data.action_rewards import Missing, check_tau, q_to_rewards
from gptoss_tools.data.columns import RowActions, row_actions
from gptoss_tools.data.rewrite import Progress, refuse_clashes, rewrite_tables
from gptoss_tools.data.stages import REWARD_SUFFIX, expand
from gptoss_tools.data.tables import numbers
from gptoss_tools.errors import ConfigError, DataError

# A row whose best reward is less than this above its mean hardly tells its actions apart; with four
# actions and Boltzmann rewards that is a best probability below 0.35.
FLAT = 0.1
LARGEST = float(np.finfo(float).max)
# Losses of more than this many tau all earn the same 0 under the bounded methods.
SATURATED = 20.0
BOUNDED = ("boltzmann", "regret")
_REWARD = re.compile(r"reward_action_[0-9]+")


@dataclass(frozen=True)
class ScoredFile:
    """One table: rows written, rows dropped, rewards left empty because the value is unknown."""

    source: Path
    targets: tuple[Path, ...]
    rows: int
    dropped: int
    masked: int


@dataclass(frozen=True)
class RewardStats:
    """How far apart the values lie (in Q units) and how well the rewards tell them apart.

    `gap` is best minus second best, `range` best minus worst finite value: quantiles 10, 50, 90 %,
    None without rows of two finite values. `suggested_tau` is the median of the gaps above 0.
    `saturated` is the share of rows whose worst action loses more than 20 tau.
    """

    rows: int
    actions: tuple[int, int]
    gap: tuple[float, float, float] | None
    range: tuple[float, float, float] | None
    flat_share: float
    tied: int
    single: int
    suggested_tau: float | None
    saturated: float


@dataclass(frozen=True)
class ScoreResult:
    """All files of one call, with the statistics over all their rows."""

    files: list[ScoredFile]
    stats: RewardStats
    tau: float
    method: str


def score(
    paths: Sequence[str | Path],
    *,
    tau: float = 0.05,
    method: str = "boltzmann",
    missing: Missing = "error",
    overwrite: bool = False,
    encoding: str = "utf-8",
    delimiter: str = ",",
    shard: str | None = None,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> ScoreResult:
    """Write `<stem>_with_reward` beside every table, with `reward_action_0..K-1`.

    A table of `q` lists gets lists in `rewards`, a row's empty rewards being None there.
    `overwrite` replaces the table itself instead (as UTF-8 with commas), and also a `_with_reward`
    file it has already, which training would otherwise go on reading. Nothing is written unless
    every row of every file is sound; errors name file, row and column.
    """
    check_tau(tau)
    registry.get("q_method", method)
    if missing not in ("error", "mask", "drop"):
        raise ConfigError(f"missing {missing!r} is unknown", hint="one of error, mask, drop")
    sources = expand(paths, stage="score", shard=shard)
    targets = {source: _targets(source, overwrite) for source in sources}
    refuse_clashes(targets, overwrite, "remove it, or pass --overwrite")
    counts = {source: [0, 0, 0] for source in sources}
    collector = StatsCollector()

    def change(path: Path, frame: pd.DataFrame, first_row: int) -> pd.DataFrame:
        valued = frame.drop(columns=[*_old_rewards(frame), "rewards"], errors="ignore")
        choice = row_actions(valued, str(path), first_row)
        names = choice.q
        if not names:
            listed = ", ".join(map(str, frame.columns))
            raise DataError(f"{path} has no q_action columns", hint=f"it has: {listed}")
        q = np.stack([numbers(choice.frame, n, str(path), first_row) for n in names], axis=1)
        rewards, keep = q_to_rewards(
            q,
            tau=tau,
            method=method,
            missing=missing,
            n_actions=choice.counts,
            where=lambda row, action: f"{path} row {first_row + row}, column {names[action]}",
        )
        inside = np.arange(len(names)) < choice.counts[:, None]
        collector.add(q[keep], rewards[keep], inside[keep])
        counts[path][0] += int(keep.sum())
        counts[path][1] += int((~keep).sum())
        counts[path][2] += int((np.isnan(rewards) & inside)[keep].sum())
        scored = _with_rewards(frame, rewards, choice)
        return scored if keep.all() else scored.loc[keep].reset_index(drop=True)

    rewrite_tables(
        targets,
        change,
        encoding=encoding,
        delimiter=delimiter,
        dry_run=dry_run,
        on_progress=on_progress,
    )
    files = [ScoredFile(s, tuple(targets[s]), *counts[s]) for s in sources]
    return ScoreResult(files, collector.stats(tau), tau, method)


class StatsCollector:
    """Gathers chunks of values and rewards into RewardStats, 16 bytes per row."""

    def __init__(self) -> None:
        self._gaps = array("d")  # grow in place
        self._ranges = array("d")
        self._rows = self._flat = self._tied = self._single = 0
        self._actions: set[int] = set()

    def add(self, q: np.ndarray, rewards: np.ndarray, inside: np.ndarray) -> None:
        """Add rows: q and rewards [R, K], and which of the K actions each row has."""
        if not len(q):
            return
        finite = np.isfinite(q) & inside
        several = finite.sum(axis=1) >= 2
        ordered = np.sort(np.where(finite, q, -np.inf)[several], axis=1)
        low = np.where(finite, q, np.inf)[several].min(axis=1)
        with np.errstate(over="ignore"):  # 1e308 and -1e308 are further apart than floats reach
            gaps = np.minimum(ordered[:, -1] - ordered[:, -2], LARGEST)
            ranges = np.minimum(ordered[:, -1] - low, LARGEST)
        self._gaps.frombytes(gaps.tobytes())
        self._ranges.frombytes(ranges.tobytes())
        known = ~np.isnan(rewards)
        mean = np.where(known, rewards, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
        best = np.where(known, rewards, -np.inf).max(axis=1)
        self._rows += len(q)
        self._flat += int((best - mean < FLAT).sum())
        self._tied += int((ordered[:, -1] == low).sum())
        self._single += int((~several).sum())
        self._actions |= set(inside.sum(axis=1).tolist())

    def stats(self, tau: float) -> RewardStats:
        """The statistics of everything added so far; `tau` is in the unit of the values."""
        gaps, ranges = np.frombuffer(self._gaps), np.frombuffer(self._ranges)
        apart = gaps[gaps > 0]
        return RewardStats(
            rows=self._rows,
            actions=(min(self._actions, default=0), max(self._actions, default=0)),
            gap=_quantiles(gaps),
            range=_quantiles(ranges),
            flat_share=self._flat / max(self._rows, 1),
            tied=self._tied,
            single=self._single,
            suggested_tau=float(f"{np.median(apart):.2g}") if len(apart) else None,
            saturated=float((ranges > SATURATED * tau).sum() / max(self._rows, 1)),
        )


def _targets(source: Path, overwrite: bool) -> list[Path]:
    beside = source.with_name(f"{source.stem}{REWARD_SUFFIX}{source.suffix}")
    if not overwrite:
        return [beside]
    return [source, beside] if beside.exists() else [source]


def _with_rewards(frame: pd.DataFrame, rewards: np.ndarray, choice: RowActions) -> pd.DataFrame:
    """Rewards in the place of old reward columns, or at the end; surplus old ones go."""
    fresh: dict[str, np.ndarray] = {}
    if choice.in_lists:
        fresh["rewards"] = np.empty(len(frame), dtype=object)
        for row, count in enumerate(choice.counts):
            own = rewards[row, :count].tolist()
            fresh["rewards"][row] = [None if reward != reward else reward for reward in own]
    else:
        fresh = {f"reward_action_{action}": column for action, column in enumerate(rewards.T)}
    surplus = [name for name in _old_rewards(frame) if name not in fresh]
    return frame.drop(columns=surplus).assign(**fresh)


def _old_rewards(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if _REWARD.fullmatch(str(name))]


def _quantiles(found: np.ndarray) -> tuple[float, float, float] | None:
    if not len(found):
        return None
    low, middle, high = np.quantile(found, (0.1, 0.5, 0.9), overwrite_input=True)
    return float(low), float(middle), float(high)
