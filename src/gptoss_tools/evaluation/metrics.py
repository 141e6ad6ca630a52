"""How good a policy's answers to a table are: most of evaluation.json (docs/evaluation.md).

Counts are whole numbers; `invalid` and all that is a part of answers are shares. What one row
costs is in evaluation.regrets, several draws per row in evaluation.sampled. No model is needed.
"""

from __future__ import annotations

import contextlib
import datetime
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gptoss_tools.chat.actions import INVALID_REASONS
from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.data.tables import is_missing
from gptoss_tools.evaluation.intervals import Resamples
from gptoss_tools.evaluation.outcomes import (
    Outcomes,
    ci95,
    mean,
    score,
    score_ci95,
    summary,
)
from gptoss_tools.evaluation.regrets import (
    Bools,
    Choices,
    Floats,
    RowScores,
    best_policy,
    check_choices,
    fixed_policy,
    require_q,
    row_scores,
    uniform_regret,
)
from gptoss_tools.evaluation.sampled import assess_samples

__all__ = ["Choices", "RowScores", "assess", "row_scores", "uniform_regret"]


def assess(
    table: DecisionTable,
    policy: Choices,
    *,
    base: Choices | None = None,
    baselines: Mapping[str, Choices] | None = None,
    samples: Sequence[Choices] = (),
    episodes: Sequence[str] | None = None,
    tie_tolerance: float = 1e-9,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Sections n_rows to by_hour of evaluation.json, ready for JSON; None where nothing is known.

    Without `episodes` [R] every row is its own. All intervals come from the same `resamples` draws
    of episodes. Raises DataError for a table without values, choices of another length, and
    actions that a row does not have.
    """
    rated = np.isfinite(require_q(table)).any(axis=1)
    rules = baselines or {}
    named = [("policy", policy), *([] if base is None else [("base", base)]), *rules.items()]
    for name, choices in named:
        check_choices(table, choices, f"answer of {name}")
    fixed, fixed_action = fixed_policy(table)
    ours = {"best": best_policy(table), "policy": policy, "base": base, "fixed": fixed}
    found = {k: Outcomes.of(table, c, tie_tolerance) for k, c in ours.items() if c is not None}
    found["uniform"] = Outcomes.of_uniform(table, tie_tolerance)
    ranked = [*found.items()]  # pairs, because a rule may have the name of one of ours
    ranked[-2:-2] = [(k, Outcomes.of(table, c, tie_tolerance)) for k, c in rules.items()]
    draws = Resamples(
        np.arange(len(table)) if episodes is None else episodes, seed=seed, resamples=resamples
    )
    scores, own = row_scores(table, policy, tie_tolerance), found["policy"]
    dice = found["uniform"].regret
    return {
        "n_rows": len(table),
        "n_episodes": draws.n_episodes,
        "n_actions": int(table.n_actions.max()),
        "tie_tolerance": float(tie_tolerance),
        "regret": _regret(scores, found, draws) | {"fixed_action": fixed_action},
        "score": {
            "mean": score(own.regret, dice),
            "ci95": score_ci95(draws, own.regret, dice),
        },
        "top1": mean(own.top1),
        "top1_ci95": ci95(draws, own.top1),
        "top1_exact": float(scores.top1_exact[rated].mean()),
        "near_optimal": float(scores.near_optimal[rated].mean()),
        "invalid": _invalid(policy),
        "reward": None if table.rewards is None else _reward(found, draws),
        "actions": _actions(table, policy, scores.top1),
        "policies": _ranking(ranked, dice, draws),
        "sampled": assess_samples(table, samples, draws, tie_tolerance),
        "by_phase": _by_phase(table, own, found.get("base"), draws),
        "by_hour": _by_hour(table, own, found.get("base")),
    }


def _means(outcomes: Mapping[str, Outcomes], field: str, names: Sequence[str]) -> dict[str, Any]:
    """The mean of one quantity for each named policy; None for one that is not there."""
    return {n: mean(getattr(outcomes[n], field)) if n in outcomes else None for n in names}


def _regret(
    scores: RowScores, outcomes: Mapping[str, Outcomes], draws: Resamples
) -> dict[str, Any]:
    difference = None
    if "base" in outcomes:
        gained = scores.regret - outcomes["base"].regret
        difference = {
            "mean": mean(gained),
            "ci95": ci95(draws, gained),
            "n": int((~np.isnan(gained)).sum()),
        }
    return {
        "mean": mean(scores.regret),
        "ci95": ci95(draws, scores.regret),
        **_means(outcomes, "regret", ("base", "uniform", "fixed")),
        "valid_only": mean(scores.regret_valid),
        "n_valid": int((~np.isnan(scores.regret_valid)).sum()),
        "normalised": mean(scores.normalised),
        "normalised_n": int((~np.isnan(scores.normalised)).sum()),
        "over_mean": mean(scores.over_mean),
        "infeasible": int(scores.infeasible.sum()),
        "difference": difference,
    }


def _invalid(policy: Choices) -> dict[str, Any]:
    """Shares by cause; none in n answers still leaves up to 3 / n (Hanley & Lippman-Hand 1983)."""
    count, reasons = len(policy.action), Counter(policy.reason)
    total = sum(reasons[reason] for reason in INVALID_REASONS)
    return {
        "total": total / count,
        **{str(reason): reasons[reason] / count for reason in INVALID_REASONS},
        "n": count,
        "upper95": None if total else min(1.0, 3 / count),
    }


def _reward(outcomes: Mapping[str, Outcomes], draws: Resamples) -> dict[str, Any]:
    reward = outcomes["policy"].reward
    return {
        "mean": mean(reward),
        "ci95": ci95(draws, reward),
        **_means(outcomes, "reward", ("uniform", "fixed", "best", "base")),
        "unknown": int(np.isnan(reward).sum()),
    }


def _actions(table: DecisionTable, policy: Choices, top1: Bools) -> dict[str, Any]:
    """How often each action is chosen, among valid answers, and how often it is the best one.

    Where several actions are best, the first is the optimum, in the confusion the chosen one if it
    is among them. `confusion` counts the rows that have a finite value.
    """
    width = int(table.n_actions.max())
    rated = np.isfinite(require_q(table)).any(axis=1)
    first = best_policy(table).action
    optimum = np.where(top1, policy.action, first)[rated]
    chosen = np.where(policy.action < 0, width, policy.action)
    confusion = np.zeros((width, width + 1), np.int64)
    np.add.at(confusion, (optimum, chosen[rated]), 1)
    seen = confusion.sum(axis=1)
    picked = np.bincount(chosen, minlength=width + 1)[:width]
    return {
        "policy": (picked / max(picked.sum(), 1)).tolist(),
        "optimal": (np.bincount(first[rated], minlength=width) / rated.sum()).tolist(),
        "confusion": confusion.tolist(),
        "recall": [float(confusion[k, k] / n) if n else None for k, n in enumerate(seen)],
    }


def _ranking(
    policies: Sequence[tuple[str, Outcomes]], dice: Floats, draws: Resamples
) -> list[dict[str, Any]]:
    """All policies by regret, best first; in the given order where equal, unknown ones last."""
    found = [
        {
            "name": name,
            **summary(draws, outcomes),
            "normalised": mean(outcomes.normalised),
            "score": score(outcomes.regret, dice),
        }
        for name, outcomes in policies
    ]
    return sorted(found, key=lambda p: math.inf if p["regret"] is None else p["regret"])


def _by_phase(
    table: DecisionTable, own: Outcomes, base: Outcomes | None, draws: Resamples
) -> dict[str, dict[str, Any]]:
    """Phases in the order of the rows; rows without one are left out."""
    phases = [None if cell is None else str(cell) for cell in _cells(table, "phase")]
    return {
        phase: {
            "n_rows": int(inside.sum()),
            **summary(draws, own.only(inside)),
            "base": None if base is None else mean(base.regret[inside]),
        }
        for phase, inside in _parts(phases)
    }


def _by_hour(
    table: DecisionTable, own: Outcomes, base: Outcomes | None
) -> dict[str, dict[str, Any]]:
    """Hours of the day in order; rows whose timestamp cannot be read are left out."""
    hours = [_hour(cell) for cell in _cells(table, "timestamp")]
    return {
        str(hour): {
            "n_rows": int(inside.sum()),
            "regret": mean(own.regret[inside]),
            "base": None if base is None else mean(base.regret[inside]),
            "top1": mean(own.top1[inside]),
        }
        for hour, inside in sorted(_parts(hours), key=lambda part: part[0])
    }


def _cells(table: DecisionTable, column: str) -> list[Any]:
    """The column's values, None where there is none; empty without the column."""
    if column not in table.columns:
        return []
    return [None if is_missing(cell) else cell for cell in table.columns[column]]


def _parts(labels: Sequence[Any]) -> list[tuple[Any, Bools]]:
    """Each label that is not None with its rows, in the order of their first ones."""
    seen = dict.fromkeys(label for label in labels if label is not None)
    return [(label, np.array([other == label for other in labels])) for label in seen]


def _hour(cell: Any) -> int | None:
    """The hour of an ISO text, as written (no time zone is applied), or of a datetime."""
    if isinstance(cell, datetime.datetime):
        return None if cell is pd.NaT else cell.hour
    if not isinstance(cell, str):
        return None
    with contextlib.suppress(ValueError):
        datetime.date.fromisoformat(cell.strip())
        return None  # a day without a time: not midnight
    with contextlib.suppress(ValueError):
        return datetime.datetime.fromisoformat(cell.strip()).hour
    return None
