"""What a policy's answers are worth, next to what a table alone could tell.

Per row: V = max Q, regret = V - Q(chosen). An invalid answer earns reward 0 and, in the headline
regret, counts as the worst action. This is what `generate` says of its answers, any rows in any
order; evaluation.metrics says more, of whole tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from gptoss_tools.chat.actions import INVALID_REASONS, Reason
from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.errors import DataError
from gptoss_tools.evaluation.outcomes import mean
from gptoss_tools.evaluation.policy import Answer
from gptoss_tools.evaluation.regrets import (
    refuse_unknown_actions,
    score_rows,
    uniform_reward,
    worst,
)


def baselines(table: DecisionTable) -> dict[str, Any]:
    """Mean rewards of the uniform policy, the best single action and the best policy on a table.

    Unknown rewards (NaN) take no part; a fixed action that a row does not have earns 0 there, as
    an answer out of range would. Empty without reward columns.
    """
    if table.rewards is None:
        return {}
    rewards, known = table.rewards, ~np.isnan(table.rewards)
    rated = known.any(axis=1)
    if not rated.any():
        return {}
    filled = np.where(known, rewards, 0.0)
    best = np.where(known, rewards, -np.inf)[rated].max(axis=1)
    beyond = np.arange(rewards.shape[1]) >= table.n_actions[:, None]
    counted = (known | beyond).sum(axis=0)
    fixed = np.where(counted > 0, filled.sum(axis=0) / np.maximum(counted, 1), -np.inf)
    return {
        "reward_uniform": mean(uniform_reward(rewards)),
        "reward_fixed": float(fixed.max()),
        "fixed_action": int(fixed.argmax()),
        "reward_best": float(best.mean()),
    }


def score(answers: Iterable[Answer], table: DecisionTable) -> dict[str, Any]:
    """Summarise answers to rows of `table` (`index` is the row), with the baselines beside.

    `reward` is the mean over answers, invalid ones at 0, choices of unknown value left out and
    counted; `invalid` is a share and `invalid_by_reason` its parts; `regret` is in the unit of Q,
    `regret_valid` over valid answers alone; `top1` is the share of answers that are a best action.
    Raises DataError for no answers, or answers with actions that the table does not have.
    """
    answers = list(answers)
    if not answers:
        raise DataError("there are no answers to score")
    decisions = [answer.decision for answer in answers]
    rows = np.array([answer.index for answer in answers])
    chosen = np.array([-1 if d.action is None else d.action for d in decisions])
    refuse_unknown_actions(table, rows, chosen)
    valid = chosen >= 0
    reasons = Counter(decision.reason for decision in decisions)
    shares = np.bincount(chosen[valid], minlength=int(table.n_actions.max())) / max(valid.sum(), 1)
    result: dict[str, Any] = {
        "rows": len(answers),
        "invalid": float(1 - np.mean([d.reason == Reason.OK for d in decisions])),
        "invalid_by_reason": {str(r): reasons[r] / len(answers) for r in INVALID_REASONS},
        "action_shares": [float(share) for share in shares],
        "tokens": float(np.mean([answer.tokens for answer in answers])),
        "seconds": float(sum(answer.seconds for answer in answers)),
    }
    if table.rewards is not None:
        held = table.rewards[rows]
        earned = np.where(valid, held[np.arange(len(rows)), np.maximum(chosen, 0)], worst(held))
        result["reward"] = mean(earned)
        result["unknown"] = int(np.isnan(earned).sum())
    if table.q is not None:
        result |= _regrets(table.q[rows], chosen)
    return result | baselines(table)


def _regrets(q: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Regrets of finite size; a row without finite Q, or an infeasible choice, has none."""
    scores = score_rows(q, None, chosen, tie_tolerance=0.0)
    rated = scores.infeasible | ~np.isnan(scores.regret)
    if not rated.any():
        return {}
    return {
        "regret": mean(scores.regret),
        "regret_valid": mean(scores.regret_valid),
        "infeasible": float(scores.infeasible[rated].mean()),
        "top1": float(scores.top1[rated].mean()),
    }
