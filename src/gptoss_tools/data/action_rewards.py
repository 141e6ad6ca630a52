"""Q values -> rewards per action, and what an answer without one of them earns.

A Q method turns `q` [R, K] (rows, actions) into rewards [R, K]; what uses them is in `rewards`.
Methods are registered by name ("q_method"). Leaves out files and columns:
callers pass `where(row, action)` so that errors can name them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from gptoss_tools import registry
from gptoss_tools.chat.actions import Decision
from gptoss_tools.errors import ConfigError, DataError

Missing = Literal["error", "mask", "drop"]
InvalidReward = Literal["mask", "worst"] | float


def q_to_rewards(
    q: np.ndarray,
    *,
    tau: float = 0.05,
    method: str = "boltzmann",
    missing: Missing = "error",
    n_actions: np.ndarray | None = None,
    where: Callable[[int, int], str] = lambda row, action: f"row {row + 1}, q_action_{action}",
) -> tuple[np.ndarray, np.ndarray]:
    """Rewards [R, K] in float64 and the mask [R] of rows to keep (all, unless missing="drop").

    Row r has the actions 0..n_actions[r]-1 (default K); beyond them the reward is NaN. A NaN in `q`
    is an unknown value: an error, or its reward is NaN ("mask"), or its row goes ("drop"). -inf is
    an action known to be infeasible: reward 0, or what the row's worst action earns if that is
    less. +inf is an error, as is a row of no finite value.
    """
    check_tau(tau)
    q = np.asarray(q, dtype=np.float64)
    rows, width = q.shape
    counts = np.full(rows, width) if n_actions is None else np.asarray(n_actions)
    inside = np.less(np.arange(width), counts[:, None])
    _refuse(np.isposinf(q) & inside, where, "is +inf, which no action can be worth", None)
    unknown = np.isnan(q) & inside
    if missing == "error":
        hint = "fill the value in, or pass --missing mask (or drop)"
        _refuse(unknown, where, "is missing (empty or NaN)", hint)
    keep = np.ones(rows, dtype=bool)
    if missing == "drop":
        keep = np.logical_not(np.any(unknown, axis=1))
    hopeless = np.zeros(q.shape, dtype=bool)
    hopeless[:, 0] = keep & ~np.any(np.isfinite(q) & inside, axis=1)
    _refuse(hopeless, where, "and all other actions of its row have no finite value", None)
    valued = np.where(inside & keep[:, None], q, np.nan)
    rewards = registry.get("q_method", method)(valued, tau) if rows else valued
    return rewards, keep


@registry.register("q_method", "boltzmann")
def boltzmann(q: np.ndarray, tau: float) -> np.ndarray:
    """Softmax of Q / tau over each row's known values, shifted by the row's maximum.

    NaN stays NaN and takes no part; -inf gives 0; rows of nothing but NaN stay NaN.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.exp((q - _row_max(q)) / tau)
        return weights / np.nansum(weights, axis=1, keepdims=True)


@registry.register("q_method", "regret")
def regret(q: np.ndarray, tau: float) -> np.ndarray:
    """1 - regret / tau, cut at 0, where regret = row maximum - Q.

    Linear in the domain's own unit with one scale for all rows, so large stakes stay larger than
    small ones: tau is the regret at which the reward reaches 0.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.maximum(0.0, 1.0 - (_row_max(q) - q) / tau)


@registry.register("q_method", "log-regret")
def log_regret(q: np.ndarray, tau: float) -> np.ndarray:
    """1 - ln(1 + regret / tau): 1 for the best action, without a lower bound.

    Keeps the stakes without letting one disaster outweigh a table: regrets well below tau count in
    proportion, each doubling above it costs 0.69 more. An infeasible action earns what the worst
    finite one of its row does.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.where(np.isfinite(q), q, np.nan)
        regret = np.minimum((_row_max(finite) - q) / tau, np.finfo(np.float64).max)
        worst = (_row_max(finite) + _row_max(-finite)) / tau
    return 1.0 - np.log1p(np.where(np.isneginf(q), worst, regret))


@registry.register("q_method", "minmax")
def minmax(q: np.ndarray, tau: float) -> np.ndarray:
    """(Q - min) / (max - min) over each row's finite values, 1 everywhere in a tie; tau unused."""
    finite = np.where(np.isfinite(q), q, np.nan)
    top = _row_max(finite)
    low = -_row_max(-finite)
    # Halved, so that the range of two huge values of opposite sign does not overflow.
    span = top / 2 - low / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = (q / 2 - low / 2) / span
    scaled = np.where(span == 0, 1.0, scaled)
    return np.where(np.isnan(q), np.nan, np.where(np.isneginf(q), 0.0, scaled))


@registry.register("q_method", "rank")
def rank(q: np.ndarray, tau: float) -> np.ndarray:
    """Share of the row's other actions that are worse, a tie counting half; tau unused."""
    known = ~np.isnan(q)
    with np.errstate(invalid="ignore"):
        worse = (q[:, :, None] > q[:, None, :]).sum(axis=2)
        equal = (q[:, :, None] == q[:, None, :]).sum(axis=2) - 1
    others = known.sum(axis=1, keepdims=True) - 1
    share = np.where(others > 0, (worse + equal / 2) / np.maximum(others, 1), 1.0)
    return np.where(known, np.where(np.isneginf(q), 0.0, share), np.nan)


def settle(
    score: float | None,
    decision: Decision,
    invalid_reward: InvalidReward = "mask",
    rewards_K: Sequence[float] = (),
) -> float | None:
    """The reward a completion ends up with; None takes it out of the training step.

    A score stands. Without one (None or NaN) an invalid answer gets `invalid_reward` ("worst": see
    `worst_reward`), and a valid answer of unknown value is always masked: the policy is not to
    blame for a hole in the table.
    """
    if score is not None and not math.isnan(score):
        if math.isinf(score):
            raise DataError(
                "the reward function returned an infinite reward",
                hint="return None to mask a completion",
            )
        return float(score)
    if decision.action is not None or invalid_reward == "mask":
        return None
    return worst_reward(rewards_K) if invalid_reward == "worst" else float(invalid_reward)


def worst_reward(rewards_K: Sequence[float]) -> float:
    """What no answer can be worth more than: the least reward of the row, at most 0."""
    return min([0.0, *(float(r) for r in rewards_K if not math.isnan(r))])


def check_tau(tau: float) -> None:
    """ConfigError unless tau is a finite number above 0."""
    if not (math.isfinite(tau) and tau > 0):
        raise ConfigError(
            f"tau must be a finite number above 0, got {tau}",
            hint="tau is in the unit of the Q values; calc-reward prints a suggestion",
        )


def _row_max(values: np.ndarray) -> np.ndarray:
    """Maximum of each row without NaN, [R, 1]; NaN for rows of nothing but NaN."""
    return np.fmax.reduce(values, axis=1, keepdims=True)


def _refuse(bad: np.ndarray, where: Callable[[int, int], str], what: str, hint: str | None) -> None:
    if bad.any():
        row, action = np.argwhere(bad)[0]
        raise DataError(f"{where(int(row), int(action))} {what}", hint=hint)
