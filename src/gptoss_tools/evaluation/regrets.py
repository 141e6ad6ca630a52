"""What each choice of a policy costs in its row; means over rows are in evaluation.metrics.

Per row: V = max Q over the finite values, regret = V - Q(chosen). An invalid answer costs what the
row's worst finite action costs. A row without any finite value takes no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptoss_tools.chat.actions import Reason
from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.errors import DataError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Actions = NDArray[np.int64]

NEAR = 0.05  # share of a row's range within which an answer is near the optimum


@dataclass(frozen=True)
class Choices:
    """What a policy chose on all R rows of a table.

    `action` [R] is -1 for an invalid answer; `reason` [R] holds values of chat.actions.Reason.
    """

    action: Actions
    reason: Sequence[str]

    @classmethod
    def of(cls, actions: ArrayLike) -> Choices:
        """Choices of a rule: whole numbers; a negative one or NaN is no action, out of range."""
        try:
            read = np.asarray(actions, float)
        except (TypeError, ValueError) as error:
            raise DataError(f"actions are whole numbers: {error}") from error
        read = np.where(np.isnan(read), -1.0, np.maximum(read, -1.0))
        if (odd := ~np.isfinite(read) | (read != np.floor(read))).any():
            row = int(np.argmax(odd))
            raise DataError(f"row {row + 1}: the action {read[row]:g} is not a whole number")
        action = read.astype(np.int64)
        return cls(action, [Reason.OK if a >= 0 else Reason.OUT_OF_RANGE for a in action])


@dataclass(frozen=True)
class RowScores:
    """What each choice is worth, [R] each; NaN where undefined, False where not known to be so.

    `normalised` is a share of the row's range, `over_mean` a multiple of what a uniform choice
    costs; `near_optimal` is within 5 % of the range. An infeasible choice (-inf) has no regret.
    """

    regret: Floats
    regret_valid: Floats
    normalised: Floats
    over_mean: Floats
    reward: Floats
    top1: Bools
    top1_exact: Bools
    near_optimal: Bools
    infeasible: Bools


@dataclass(frozen=True)
class Levels:
    """What a row's finite values span, [R] each: the best, best - worst, best - mean.

    NaN where none is finite. Both differences are exactly 0 where all are equal.
    """

    best: Floats
    span: Floats
    gap: Floats

    @classmethod
    def of(cls, q_RK: Floats) -> Levels:
        finite = np.isfinite(q_RK)
        count = finite.sum(axis=1)
        best = np.where(finite, q_RK, -np.inf).max(axis=1)
        best = np.where(count > 0, best, np.nan)
        # The mean of differences, not a difference of means: rounding would hide equal values.
        below = best[:, None] - np.where(finite, q_RK, best[:, None])
        return cls(best, below.max(axis=1), below.sum(axis=1) / np.maximum(count, 1))


def require_q(table: DecisionTable) -> Floats:
    """The table's values; DataError without them, for +inf, and where no row has a finite one."""
    if table.q is None:
        raise DataError("the table has no q_action columns", hint="regret needs the values")
    if (infinite := np.isposinf(table.q)).any():
        row, action = np.argwhere(infinite)[0]
        raise DataError(f"{table.where(int(row))}, q_action_{action} is +inf")
    if not np.isfinite(table.q).any():
        raise DataError("no row of the table has a finite q_action value")
    return table.q


def refuse_unknown_actions(
    table: DecisionTable, rows: NDArray[np.intp], actions: Actions, who: str = "answer"
) -> None:
    """DataError if an action is beyond the `n_actions` of its row; negative ones pass."""
    if (beyond := actions >= table.n_actions[rows]).any():
        place = int(np.argmax(beyond))
        raise DataError(
            f"{table.where(int(rows[place]))}: the {who} is {actions[place]}, and there are "
            f"{table.n_actions[rows[place]]} actions",
            hint="read the answers with the table's own n_actions",
        )


def check_choices(table: DecisionTable, chosen: Choices, who: str = "answer") -> None:
    """DataError unless `chosen` has one known action, or a reason for none, per row of `table`."""
    for count in (len(chosen.action), len(chosen.reason)):
        if count != len(table):
            raise DataError(f"the {who} has {count} rows, and the table has {len(table)}")
    refuse_unknown_actions(table, np.arange(len(table)), chosen.action, who)
    fine = np.array([reason == Reason.OK for reason in chosen.reason])
    if (odd := (chosen.action >= 0) != fine).any():
        row = int(np.argmax(odd))
        raise DataError(
            f"{table.where(row)}: the {who} is {chosen.action[row]} and its reason "
            f"{str(chosen.reason[row])!r}; an answer has an action exactly if its reason is 'ok'"
        )


def row_scores(table: DecisionTable, chosen: Choices, tie_tolerance: float = 1e-9) -> RowScores:
    """Compare each choice with its row's values; DataError for a table or choices that do not fit.

    An invalid answer counts as the worst finite action and earns 0; a choice of unknown value has
    no regret.
    """
    q = require_q(table)
    check_choices(table, chosen)
    return score_rows(q, table.rewards, chosen.action, tie_tolerance)


def score_rows(
    q_RK: Floats, rewards_RK: Floats | None, action_R: Actions, tie_tolerance: float
) -> RowScores:
    """`row_scores` of bare arrays, unchecked: -1 is an invalid answer."""
    levels = Levels.of(q_RK)
    rated, valid = ~np.isnan(levels.best), action_R >= 0
    cell = (np.arange(len(q_RK)), np.maximum(action_R, 0))
    value = q_RK[cell]
    regret = np.where(np.isfinite(value), levels.best - value, np.nan)
    regret = np.where(valid, regret, levels.span)
    reward = np.full(len(q_RK), np.nan)
    if rewards_RK is not None:
        reward = np.where(rated, np.where(valid, rewards_RK[cell], worst(rewards_RK)), np.nan)
    return RowScores(
        regret=regret,
        regret_valid=np.where(valid, regret, np.nan),
        normalised=share(regret, levels.span),
        over_mean=share(regret, levels.gap),
        reward=reward,
        top1=valid & (regret <= tie_tolerance),
        top1_exact=valid & (regret == 0),
        near_optimal=valid & (regret <= np.maximum(tie_tolerance, NEAR * levels.span)),
        infeasible=valid & rated & np.isneginf(value),
    )


def share(part_R: Floats, whole_R: Floats) -> Floats:
    """`part / whole`, NaN where the whole is 0 or unknown."""
    return part_R / np.where(whole_R > 0, whole_R, np.nan)


def best_actions(q_RK: Floats, tie_tolerance: float) -> Bools:
    """Which actions are within `tie_tolerance` of their row's best, [R, K]."""
    return np.isfinite(q_RK) & (Levels.of(q_RK).best[:, None] - q_RK <= tie_tolerance)


def uniform_regret(table: DecisionTable) -> Floats:
    """What a choice by dice among the row's known finite actions costs on average, [R]."""
    return Levels.of(require_q(table)).gap


def worst(rewards_RK: Floats) -> Floats:
    """What an invalid answer earns, [R]: the least of the row's rewards, at most 0."""
    return np.minimum(0.0, np.where(np.isnan(rewards_RK), 0.0, rewards_RK).min(axis=1))


def uniform_reward(rewards_RK: Floats) -> Floats:
    """Mean of the row's known rewards, [R]; NaN without any."""
    known = ~np.isnan(rewards_RK)
    return share(np.where(known, rewards_RK, 0.0).sum(axis=1), known.sum(axis=1).astype(float))


def best_policy(table: DecisionTable) -> Choices:
    """The best action of each row, the first of equal ones; action 0 in a row without values."""
    q = require_q(table)
    return Choices.of(np.where(np.isfinite(q), q, -np.inf).argmax(axis=1))


def fixed_policy(table: DecisionTable) -> tuple[Choices, int]:
    """The single action with the least mean regret over the rows, and its index.

    In rows where it is missing, infeasible or of unknown value it is compared as the worst action,
    so that no action wins by leaving rows out.
    """
    q = require_q(table)
    levels = Levels.of(q)
    rated = ~np.isnan(levels.best)
    finite = np.isfinite(q[rated])
    value = np.where(finite, q[rated], (levels.best - levels.span)[rated, None])
    action = int((levels.best[rated, None] - value).mean(axis=0).argmin())
    return Choices.of(np.where(action < table.n_actions, action, -1)), action
