"""Tables of decisions: prompts with the exact value of every action, from generated or own series.

Each row is one decision of one episode. On-path rows follow the optimal run from the start content;
off-path rows put another content at a decision hour of the same episode, so that a policy trained
on the table has seen where its own mistakes lead. Columns: `episode, timestep, timestamp, soc,
prompt, optimal_action, baseline_NAME of every rule, q_action_0 .. q_action_{K-1}`. Nothing is
written here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.tes.baselines import BASELINES
from gptoss_tools.tes.plant import Plant
from gptoss_tools.tes.prompts import write_prompt
from gptoss_tools.tes.series import PROFILES, Series, generate
from gptoss_tools.tes.solver import Rollout, Solution, rollout, solve, terminal_value_per_kwh


@dataclass(frozen=True)
class Episode:
    """A solved series: it ends when the last day but one closes; the last day values the rest."""

    series: Series
    solution: Solution
    terminal_value: float  # reward per kWh left in the tank

    @property
    def length(self) -> int:
        """T, the number of hours."""
        return len(self.solution.load_T)

    def follow(self, choose: Callable[[int, float], int], start_soc: float) -> Rollout:
        """Run `choose(t, soc) -> level index` in closed loop from `start_soc` [kWh]."""
        s = self.solution
        return rollout(s.plant, s.load_T, s.carbon_T, s.hours_T, start_soc, choose)

    def optimum(self, start_soc: float) -> Rollout:
        """Run the optimal policy."""
        return self.follow(lambda t, soc: int(self.solution.best(t, soc)), start_soc)

    def score(self, run: Rollout) -> float:
        """Return a run's total reward, the value of what it leaves in the tank included."""
        return float(run.reward.sum() + self.terminal_value * run.soc[-1])


def episode_length(plant: Plant, series: Series) -> int:
    """Return T, up to the close of the last day but one; DataError if something is missing."""
    day, hours = series.day, series.hours
    if day[-1] < 1:
        raise DataError(
            f"{series.name}: one day only; the day after the episode values the stored energy",
            hint="give at least two days of hourly rows",
        )
    closed = (day == day[-1] - 1) & (hours >= plant.closing_hour)
    length = int(np.argmax(closed)) if closed.any() else int(np.argmax(day == day[-1]))
    last_day = (day == day[-1]) & plant.decides(hours)
    if not last_day.any() or not plant.decides(hours[:length]).any():
        raise DataError(
            f"{series.name}: a decision hour is missing on the last day or before it",
            hint=f"decision hours are {plant.decision_hours[0]} to {plant.decision_hours[-1]}",
        )
    return length


def solve_series(plant: Plant, series: Series) -> Episode:
    """Cut the episode out of a series and solve it; DataError if there are fewer than two days."""
    length = episode_length(plant, series)
    last_day = (series.day == series.day[-1]) & plant.decides(series.hours)
    terminal = terminal_value_per_kwh(plant, series.carbon[last_day])
    solution = solve(
        plant, series.load_kw[:length], series.carbon[:length], series.hours[:length], terminal
    )
    return Episode(series, solution, terminal)


def check_start(plant: Plant, start_soc: float) -> None:
    """Raise ConfigError for a start content outside the tank."""
    if not 0 <= start_soc <= plant.capacity_kwh:
        raise ConfigError(f"start_soc must lie in 0 to {plant.capacity_kwh:g}, not {start_soc!r}")


def make_rows(
    plant: Plant,
    series: Series,
    *,
    start_soc: float = 150.0,
    on_path: int | None = None,
    off_path: int = 0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the rows of one series, in order of time.

    `on_path` decision hours of the optimal run are drawn without repeats (None: all of them). Each
    of the `off_path` rows takes a decision hour and a whole-kWh content; every third lies in the
    lowest 15 % of the tank, where the load binds, the others anywhere. Raises ConfigError for a
    start content outside the tank or a count below 0, DataError for a series that is too short.
    """
    check_start(plant, start_soc)
    if off_path < 0 or (on_path is not None and on_path < 0):
        raise ConfigError(f"on_path and off_path must be 0 or more, not {on_path} and {off_path}")
    solved = solve_series(plant, series)
    rng = np.random.default_rng([seed, 0x7E5])
    decisions = np.flatnonzero(plant.decides(series.hours[: solved.length]))
    path = solved.optimum(start_soc).soc
    count = len(decisions) if on_path is None else min(on_path, len(decisions))
    chosen = np.sort(rng.choice(decisions, count, replace=False))
    states = [(int(t), float(path[t])) for t in chosen]
    for number in range(off_path):
        top = plant.capacity_kwh * (0.15 if number % 3 == 0 else 1.0)
        states.append((int(rng.choice(decisions)), float(np.floor(rng.uniform(0, top)))))
    states = sorted(states, key=lambda state: state[0])
    return [_row(solved, t, soc) for t, soc in states]


def make_series(
    plant: Plant | None = None,
    *,
    profile: str | Sequence[str] = tuple(PROFILES),
    episodes: int = 48,
    days: int = 3,
    seed: int = 0,
) -> list[Series]:
    """Generate the series of `episodes` episodes of `days` days each.

    Profiles take turns if there are several. Series i is `generate(.., seed=seed + i)` and is named
    `profile-seed`, so two calls whose ranges seed .. seed + episodes - 1 do not meet have no series
    in common: give held-out data a seed of its own.
    """
    profiles = (profile,) if isinstance(profile, str) else tuple(profile)
    if episodes < 1 or not profiles or seed < 0:
        raise ConfigError(
            f"episodes must be 1 or more and seed 0 or more, with a profile, not {episodes}, {seed}"
        )
    return [
        generate(profiles[i % len(profiles)], days, seed + i, plant=plant) for i in range(episodes)
    ]


def make_dataset(
    plant: Plant | None = None,
    *,
    profile: str | Sequence[str] = tuple(PROFILES),
    episodes: int = 48,
    days: int = 3,
    seed: int = 0,
    on_path_rows: int | None = None,
    off_path_rows: int = 0,
    start_soc: float = 150.0,
) -> pd.DataFrame:
    """Return the rows of generated series (see `make_series`) as one table."""
    plant = plant or Plant()
    series = make_series(plant, profile=profile, episodes=episodes, days=days, seed=seed)
    return from_series(
        plant,
        *series,
        start_soc=start_soc,
        on_path_rows=on_path_rows,
        off_path_rows=off_path_rows,
        seed=seed,
    )


def from_series(
    plant: Plant,
    *series: Series,
    start_soc: float = 150.0,
    on_path_rows: int | None = None,
    off_path_rows: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the rows of series (see `read_all`) as one table; series i draws from seed + i."""
    rows: list[dict[str, Any]] = []
    for i, one in enumerate(series):
        rows += make_rows(
            plant,
            one,
            start_soc=start_soc,
            on_path=on_path_rows,
            off_path=off_path_rows,
            seed=seed + i,
        )
    return pd.DataFrame(rows)


def _row(solved: Episode, t: int, soc: float) -> dict[str, Any]:
    plant, series = solved.solution.plant, solved.series
    row: dict[str, Any] = {
        "episode": series.name,
        "timestep": t,
        "timestamp": series.time[t].isoformat(),
        "soc": soc,
        "prompt": write_prompt(plant, series, t, soc),
        "optimal_action": int(solved.solution.best(t, soc)),
    }
    row.update(
        {f"baseline_{name}": rule(plant, series, t, soc) for name, rule in BASELINES.items()}
    )
    q = solved.solution.q(t, soc)
    row.update({f"q_action_{k}": float(value) for k, value in enumerate(q)})
    return row
