"""Exact action values of a plant by backward recursion, and rollouts to check policies on them.

Q_t(s, a) = r_t(s, a) + V_{t+1}(s'), V_t(s) = max_a Q_t(s, a), undiscounted (Bellman 1957). V is
continuous and piecewise linear in s, because the plant is; so V_t is kept as its knots rather than
on a grid, and Q is read at any s by looking one step ahead. Without loss and with levels on a
common step (0, 1/3, 2/3, 1) about a hundred knots an hour hold V exactly, in some 15 ms for 66
hours. A loss, or levels that share no step, multiply the knots (to 2000 and more): above
`max_knots` those that bend V least are dropped, and `Solution.error_bound` says what that can have
cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.tes.plant import Floats, Plant

_SAME_SOC = 1e-12  # knots closer than this share of the capacity are one knot
_STRAIGHT = 1e-13  # a knot that bends V by less than this is no knot
_TIE = 1e-12  # actions this close in value are tied; the lowest level wins


@dataclass(frozen=True)
class Solution:
    """The values of one episode: V as knots for t = 0..T, and Q at any content."""

    plant: Plant
    load_T: Floats  # kW
    carbon_T: Floats  # kgCO2/kWh
    hours_T: NDArray[np.int64]  # hour of day
    knots: tuple[Floats, ...]  # T + 1 rising contents [kWh]
    values: tuple[Floats, ...]  # V at them, in units of reward
    error_bound: float  # how far any value here can lie from the exact one (0 to rounding: exact)

    def q(self, t: int, soc: ArrayLike) -> Floats:
        """Return Q_t at `soc` [...] as [..., K]; -inf for the levels that hour t does not allow."""
        soc = np.asarray(soc, dtype=np.float64)[..., None]
        actions = np.arange(self.plant.n_actions)
        step = self.plant.step(soc, actions, self.load_T[t], self.carbon_T[t])
        q = step.reward + np.interp(step.next_soc, self.knots[t + 1], self.values[t + 1])
        if not self.plant.decides(self.hours_T[t]):
            q[..., 1:] = -np.inf
        return q

    def v(self, t: int, soc: ArrayLike) -> Floats:
        """Return V_t at `soc`, for t = 0..T (T gives the terminal value)."""
        return np.interp(np.asarray(soc, dtype=np.float64), self.knots[t], self.values[t])

    def best(self, t: int, soc: ArrayLike) -> NDArray[np.int64]:
        """Return the optimal level index at `soc`; of tied levels the lowest."""
        q = self.q(t, soc)
        return np.argmax(q >= q.max(-1, keepdims=True) - _TIE, axis=-1)

    def regret(self, t: int, soc: ArrayLike, action: ArrayLike) -> Floats:
        """Return V_t - Q_t(action) >= 0; along a policy's own path it sums to what that loses."""
        q = self.q(t, soc)
        taken = np.take_along_axis(q, np.asarray(action)[..., None], axis=-1)[..., 0]
        return q.max(-1) - taken


@dataclass(frozen=True)
class Rollout:
    """One closed-loop run: contents [T + 1] and, per hour [T], the action and what it did."""

    soc: Floats
    action: NDArray[np.int64]
    reward: Floats
    unmet: Floats
    electricity: Floats
    emitted: Floats


def terminal_value_per_kwh(plant: Plant, next_day_carbon: ArrayLike, lowest: int = 5) -> float:
    """Return what a stored kWh is worth at the end: mean of the lowest hours / COP / reward_scale.

    `next_day_carbon` [kgCO2/kWh] holds the decision hours of the day after the episode.
    """
    carbon = np.sort(np.asarray(next_day_carbon, dtype=np.float64))[:lowest]
    if not carbon.size:
        raise DataError("the day after the episode has no decision hour to value the stored energy")
    return float(carbon.mean() / plant.cop / plant.reward_scale)


def solve(
    plant: Plant,
    load_T: ArrayLike,
    carbon_T: ArrayLike,
    hours_T: ArrayLike,
    terminal_value: float,
    *,
    max_knots: int = 4000,
) -> Solution:
    """Solve one episode of T hours; `terminal_value` is the reward per kWh left at the end.

    Raises DataError for series of unequal length, NaN, negative load or an hour outside 0..23.
    """
    load, carbon = np.asarray(load_T, dtype=np.float64), np.asarray(carbon_T, dtype=np.float64)
    hours = np.asarray(hours_T, dtype=np.int64)
    _check_series(load, carbon, hours, terminal_value)
    if max_knots < 16:
        raise ConfigError(f"max_knots must be 16 or more, not {max_knots}")
    knots = [np.array([0.0, plant.capacity_kwh])]
    values = [terminal_value * knots[0]]
    error = 0.0
    for t in range(len(load) - 1, -1, -1):
        actions = np.arange(plant.n_actions) if plant.decides(hours[t]) else np.array([0])
        x, v = _back(plant, actions, load[t], carbon[t], knots[-1], values[-1])
        x, v, cost = _simplify(x, v, max_knots)
        error += cost
        knots.append(x)
        values.append(v)
    return Solution(
        plant, load, carbon, hours, tuple(knots[::-1]), tuple(values[::-1]), error_bound=error
    )


def rollout(
    plant: Plant,
    load_T: ArrayLike,
    carbon_T: ArrayLike,
    hours_T: ArrayLike,
    start_soc: float,
    choose: Callable[[int, float], int],
) -> Rollout:
    """Run `choose(t, soc) -> level index`; outside decision hours it is not asked."""
    load, carbon, hours = (np.asarray(x) for x in (load_T, carbon_T, hours_T))
    soc, actions, steps = [float(start_soc)], [], []
    for t in range(len(load)):
        action = int(choose(t, soc[-1])) if plant.decides(hours[t]) else 0
        if not 0 <= action < plant.n_actions:
            raise ConfigError(f"the policy chose level {action} of {plant.n_actions} at hour {t}")
        step = plant.step(soc[-1], action, load[t], carbon[t])
        actions.append(action)
        steps.append([float(x) for x in step[1:]])
        soc.append(float(step.next_soc))
    columns = np.array(steps).T.reshape(4, len(load))
    return Rollout(np.array(soc), np.array(actions, dtype=np.int64), *columns)


def _back(
    plant: Plant, actions: NDArray, load: float, carbon: float, x_next: Floats, v_next: Floats
) -> tuple[Floats, Floats]:
    """Return all knots of V one hour earlier: where V_{t+1} bends seen from here, and crossings."""
    surplus = np.asarray(plant.levels)[actions] * plant.rated_kw - load
    ends = np.array([0.0, plant.capacity_kwh])
    x = ((x_next - surplus[:, None]) / (1.0 - plant.loss)).ravel()
    x = _distinct(np.concatenate([ends, x]), plant.capacity_kwh)

    def q(x: Floats) -> Floats:
        step = plant.step(x[:, None], actions, load, carbon)
        return step.reward + np.interp(step.next_soc, x_next, v_next)

    q_xa = q(x)
    i, j = np.triu_indices(len(actions), 1)
    gap = (
        q_xa[:, i] - q_xa[:, j]
    )  # linear between neighbouring knots, so a change of sign is a root
    row, pair = np.nonzero(gap[:-1] * gap[1:] < 0)
    left, right = gap[row, pair], gap[row + 1, pair]
    roots = x[row] + left / (left - right) * (x[row + 1] - x[row])
    x = _distinct(np.concatenate([x, roots]), plant.capacity_kwh)
    return x, q(x).max(-1)


def _distinct(x: Floats, capacity: float) -> Floats:
    """Sort, cut to the tank, and keep one of each group of equal contents; both ends stay."""
    x = np.sort(x[(x >= 0) & (x <= capacity)])
    x = x[np.append(True, np.diff(x) > _SAME_SOC * capacity)]
    x[-1] = capacity
    return x


def _simplify(x: Floats, v: Floats, max_knots: int) -> tuple[Floats, Floats, float]:
    """Drop straight knots, and above `max_knots` the least bent; return what that may cost."""
    tolerance, cost = _STRAIGHT, 0.0
    while True:
        weight = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
        bend = np.abs(v[1:-1] - (v[:-2] * (1 - weight) + v[2:] * weight))
        drop = bend <= tolerance
        # Neighbours of a dropped knot stay for this pass, so each pass moves V by at most its bend.
        drop[1:] &= ~(drop[:-1] & (np.arange(1, len(drop)) % 2 == 1))
        drop[:-1] &= ~(drop[1:] & drop[:-1])
        if drop.any():
            cost += float(bend[drop].max())
            keep = np.concatenate([[True], ~drop, [True]])
            x, v = x[keep], v[keep]
        elif len(x) <= max_knots:
            return x, v, cost
        else:
            tolerance *= 4


def _check_series(load: Floats, carbon: Floats, hours: NDArray, terminal_value: float) -> None:
    if not (load.ndim == 1 and load.shape == carbon.shape == hours.shape and load.size):
        raise DataError(
            f"load, carbon and hours must be series of one length, not {load.shape}, "
            f"{carbon.shape} and {hours.shape}"
        )
    for name, series in (("load", load), ("carbon", carbon)):
        bad = ~np.isfinite(series) | ((series < 0) if name == "load" else False)
        if bad.any():
            t = int(np.argmax(bad))
            raise DataError(f"{name} at hour {t} of the episode is {series[t]!r}")
    if ((hours < 0) | (hours > 23)).any():
        raise DataError("hours of day must lie in 0 to 23")
    if not np.isfinite(terminal_value):
        raise DataError(f"the terminal value must be finite, not {terminal_value!r}")
