"""What a policy's answers are worth, next to what a table alone could tell.

Per row: V = max Q, regret = V - Q(chosen). An invalid answer earns reward 0 and, in the headline
regret, counts as the worst action. Confidence intervals and closed loops are not here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from gptoss_tools.core.actions import INVALID_REASONS
from gptoss_tools.core.data import DecisionTable
from gptoss_tools.errors import DataError
from gptoss_tools.evaluation.policy import Answer


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
    uniform = filled[rated].sum(axis=1) / known[rated].sum(axis=1)
    best = np.where(known, rewards, -np.inf)[rated].max(axis=1)
    beyond = np.arange(rewards.shape[1]) >= table.n_actions[:, None]
    counted = (known | beyond).sum(axis=0)
    fixed = np.where(counted > 0, filled.sum(axis=0) / np.maximum(counted, 1), -np.inf)
    return {
        "reward_uniform": float(uniform.mean()),
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
    if (beyond := chosen >= table.n_actions[rows]).any():
        row = int(np.argmax(beyond))
        raise DataError(
            f"{table.where(int(rows[row]))}: the answer is {chosen[row]}, and there are "
            f"{table.n_actions[rows[row]]} actions",
            hint="read the answers with the table's own n_actions",
        )
    valid = chosen >= 0
    reasons = Counter(decision.reason for decision in decisions)
    shares = np.bincount(chosen[valid], minlength=int(table.n_actions.max())) / max(valid.sum(), 1)
    result: dict[str, Any] = {
        "rows": len(answers),
        "invalid": float(1 - valid.mean()),
        "invalid_by_reason": {str(r): reasons[r] / len(answers) for r in INVALID_REASONS},
        "action_shares": [float(share) for share in shares],
        "tokens": float(np.mean([answer.tokens for answer in answers])),
        "seconds": float(sum(answer.seconds for answer in answers)),
    }
    if table.rewards is not None:
        earned = np.where(valid, table.rewards[rows, np.maximum(chosen, 0)], 0.0)
        known = ~np.isnan(earned)
        result["reward"] = float(earned[known].mean()) if known.any() else None
        result["unknown"] = int((~known).sum())
    if table.q is not None:
        result |= _regrets(table.q[rows], chosen, valid)
    return result | baselines(table)


def _regrets(q: np.ndarray, chosen: np.ndarray, valid: np.ndarray) -> dict[str, Any]:
    """Regrets of finite size; a row without finite Q, or an infeasible choice, has none."""
    finite = np.isfinite(q)
    with np.errstate(invalid="ignore"):
        top = np.where(finite, q, -np.inf).max(axis=1)
        worst = np.where(finite, q, np.inf).min(axis=1)
        value = np.where(valid, q[np.arange(len(q)), np.maximum(chosen, 0)], worst)
        regret = top - value
    rated = finite.any(axis=1) & ~np.isnan(regret)
    if not rated.any():
        return {}
    bounded = rated & np.isfinite(regret)
    both = bounded & valid
    return {
        "regret": float(regret[bounded].mean()) if bounded.any() else None,
        "regret_valid": float(regret[both].mean()) if both.any() else None,
        "infeasible": float((rated & ~bounded).sum() / rated.sum()),
        "top1": float((valid & (regret == 0))[rated].mean()),
    }
