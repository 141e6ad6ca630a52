"""One policy on all rows, as numbers that can be averaged: a greedy one, dice, or many draws.

Here too are the small summaries that several sections of evaluation.json share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.evaluation.intervals import Resamples
from gptoss_tools.evaluation.regrets import (
    Bools,
    Choices,
    Floats,
    Levels,
    best_actions,
    require_q,
    row_scores,
    share,
    uniform_reward,
)


@dataclass(frozen=True)
class Outcomes:
    """What a policy got in each row, [R] each; NaN takes no part in a mean.

    `top1` and `invalid` are chances: 0 or 1 where the policy has one answer.
    """

    regret: Floats
    normalised: Floats
    reward: Floats
    top1: Floats
    invalid: Floats

    @classmethod
    def of(cls, table: DecisionTable, chosen: Choices, tie_tolerance: float) -> Outcomes:
        """Outcomes of one answer per row; a choice of unknown value is not a best one."""
        scores = row_scores(table, chosen, tie_tolerance)
        rated = np.isfinite(require_q(table)).any(axis=1)
        return cls(
            scores.regret,
            scores.normalised,
            scores.reward,
            np.where(rated, scores.top1, np.nan),
            (chosen.action < 0).astype(float),
        )

    @classmethod
    def of_uniform(cls, table: DecisionTable, tie_tolerance: float) -> Outcomes:
        """Expected outcomes of dice among the finite actions; the reward's among the known."""
        q = require_q(table)
        levels, none = Levels.of(q), np.full(len(table), np.nan)
        best = best_actions(q, tie_tolerance).sum(axis=1).astype(float)
        rewards = none if table.rewards is None else uniform_reward(table.rewards)
        return cls(
            levels.gap,
            share(levels.gap, levels.span),
            np.where(np.isnan(levels.best), np.nan, rewards),
            share(best, np.isfinite(q).sum(axis=1).astype(float)),
            np.zeros(len(table)),
        )

    @classmethod
    def averaged(cls, draws: Sequence[Outcomes]) -> Outcomes:
        """Mean over draws in each row, of what is known there."""
        return cls(*(_row_means([getattr(d, f.name) for d in draws]) for f in fields(cls)))

    def only(self, rows: Bools) -> Outcomes:
        """The same with all other rows unknown."""
        return Outcomes(*(np.where(rows, getattr(self, f.name), np.nan) for f in fields(self)))


def _row_means(values_NR: Sequence[Floats]) -> Floats:
    stacked = np.stack(values_NR)
    known = ~np.isnan(stacked)
    return share(np.where(known, stacked, 0.0).sum(axis=0), known.sum(axis=0).astype(float))


def mean(values_R: Floats) -> float | None:
    """Mean of what is known, as JSON has it: None without any."""
    known = values_R[~np.isnan(values_R)]
    return float(known.mean()) if len(known) else None


def ci95(draws: Resamples, values_R: Floats) -> list[float] | None:
    """The interval of `mean`, as JSON has it."""
    interval = draws.mean(values_R)
    return None if interval is None else list(interval)


def score(regret_R: Floats, uniform_R: Floats) -> float | None:
    """100 for no regret, 0 for that of dice in the same rows; None where dice lose nothing."""
    known = ~np.isnan(regret_R)
    dice = uniform_R[known].sum()
    return float(100 * (1 - regret_R[known].sum() / dice)) if dice > 0 else None


def score_ci95(draws: Resamples, regret_R: Floats, uniform_R: Floats) -> list[float] | None:
    """The interval of `score`: a ratio in each resample."""
    interval = draws.ratio(regret_R, uniform_R)
    return None if interval is None else [100 * (1 - bound) for bound in reversed(interval)]


def summary(draws: Resamples, outcomes: Outcomes) -> dict[str, Any]:
    """What sections say of any policy: regret with its interval, top1, reward, invalid."""
    return {
        "regret": mean(outcomes.regret),
        "ci95": ci95(draws, outcomes.regret),
        "top1": mean(outcomes.top1),
        "reward": mean(outcomes.reward),
        "invalid": mean(outcomes.invalid),
    }
