"""What several draws per row are worth: alone, as a vote, at their best, and how sure they are.

pass@k is the unbiased estimate of Chen et al. 2021 (arXiv:2107.03374); the expected calibration
error has ten equal bins (Guo et al. 2017, arXiv:1706.04599).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.evaluation.intervals import Resamples
from gptoss_tools.evaluation.outcomes import Outcomes, ci95, mean, summary
from gptoss_tools.evaluation.regrets import Choices, Floats, check_choices, require_q

BINS = 10
SUM_TOLERANCE = 1e-6  # within which rewards that sum to 1 are a distribution


def assess_samples(
    table: DecisionTable, samples: Sequence[Choices], draws: Resamples, tie_tolerance: float
) -> dict[str, Any] | None:
    """The section `sampled` of evaluation.json, without temperature and top_p; None for no samples.

    Means over rows of means over a row's draws. The majority is the most frequent valid answer,
    the smallest of equally frequent ones; best_of is the draw with the least regret.
    """
    if not samples:
        return None
    for number, sample in enumerate(samples, start=1):
        check_choices(table, sample, f"answer of sample {number}")
    outcomes = [Outcomes.of(table, sample, tie_tolerance) for sample in samples]
    average = Outcomes.averaged(outcomes)
    votes = count_votes(table, samples)
    voted = Outcomes.of(table, majority(votes), tie_tolerance)
    best = Outcomes.of(table, _least_regret(samples, outcomes), tie_tolerance)
    rated = np.isfinite(require_q(table)).any(axis=1)
    correct = np.sum([outcome.top1[rated] for outcome in outcomes], axis=0).astype(int)
    return {
        "n": len(samples),
        "regret": {"mean": mean(average.regret), "ci95": ci95(draws, average.regret)},
        "reward": mean(average.reward),
        "top1": mean(average.top1),
        "invalid": mean(average.invalid),
        "majority": summary(draws, voted),
        "best_of": summary(draws, best),
        "pass_at": pass_at(correct, len(samples)),
        "calibration": {
            **calibration(votes[rated], voted.top1[rated]),
            "tv": total_variation(votes, table),
        },
    }


def count_votes(table: DecisionTable, samples: Sequence[Choices]) -> NDArray[np.int64]:
    """How often each action was drawn in each row, [R, K + 1]; invalid answers come last."""
    width = int(table.n_actions.max())
    votes = np.zeros((len(table), width + 1), np.int64)
    for sample in samples:
        votes[np.arange(len(table)), np.where(sample.action < 0, width, sample.action)] += 1
    return votes


def majority(votes: NDArray[np.int64]) -> Choices:
    """The most frequent valid action; the smallest of equally frequent ones; -1 without any."""
    valid = votes[:, :-1]
    return Choices.of(np.where(valid.any(axis=1), valid.argmax(axis=1), -1))


def _least_regret(samples: Sequence[Choices], outcomes: Sequence[Outcomes]) -> Choices:
    """The draw with the least regret in each row; a valid one before an invalid one as bad."""
    regret_NR = np.stack([outcome.regret for outcome in outcomes])
    invalid_NR = np.stack([outcome.invalid for outcome in outcomes])
    # lexsort puts NaN last, and its last key first.
    first = np.lexsort((invalid_NR, regret_NR), axis=0)[0]
    actions_NR = np.stack([sample.action for sample in samples])
    return Choices.of(actions_NR[first, np.arange(actions_NR.shape[1])])


def pass_at(correct_R: NDArray[np.int64], n: int) -> dict[str, float]:
    """Chance that one of k draws is best, for k = 1, 2, 4, ... and n.

    `correct_R` of a row's n draws are.
    """
    powers = [2**i for i in range(n.bit_length())]
    return {str(k): float(_pass_at(n, k)[correct_R].mean()) for k in [*powers, n]}


def _pass_at(n: int, k: int) -> Floats:
    """1 - C(n-c, k) / C(n, k) for c = 0..n, as a product of factors below 1: no factorials."""
    missed = [
        np.prod(1 - k / np.arange(n - c + 1, n + 1)) if n - c >= k else 0.0 for c in range(n + 1)
    ]
    return 1 - np.array(missed)


def calibration(votes: NDArray[np.int64], correct_R: Floats) -> dict[str, Any]:
    """Whether the share of votes for the most frequent answer says how often it is right.

    Bins are (low, high], the first from 0; empty ones are left out. A row without valid answers
    has confidence 0 and is not right.
    """
    top, n = votes[:, :-1].max(axis=1), int(votes[0].sum())
    # In whole numbers: as floats, 3 of 10 votes may land on either side of 0.3.
    which = np.maximum((top * BINS + n - 1) // n - 1, 0)
    bins = []
    for index in np.unique(which):
        inside = which == index
        bins.append(
            {
                "low": float(index / BINS),
                "high": float((index + 1) / BINS),
                "n": int(inside.sum()),
                "confidence": float(top[inside].mean() / n),
                "correct": float(correct_R[inside].mean()),
            }
        )
    error = sum(b["n"] * abs(b["confidence"] - b["correct"]) for b in bins) / len(votes)
    return {"ece": float(error), "bins": bins}


def total_variation(votes: NDArray[np.int64], table: DecisionTable) -> float | None:
    """Mean distance between the frequencies of valid answers and the rewards as a distribution.

    Over rows whose rewards sum to 1 and that have a valid answer; None without such rows.
    """
    if table.rewards is None:
        return None
    width = votes.shape[1] - 1
    inside = np.arange(width) < table.n_actions[:, None]
    target = np.where(inside, table.rewards[:, :width], 0.0)
    valid = votes[:, :-1].sum(axis=1)
    usable = (valid > 0) & (np.abs(target.sum(axis=1) - 1) <= SUM_TOLERANCE)
    if not usable.any():
        return None
    frequency = votes[usable, :-1] / valid[usable, None]
    return float(0.5 * np.abs(frequency - target[usable]).sum(axis=1).mean())
