"""One decision as text: what the plant is, what is known now, and how to answer.

The prompt is the legacy form (`system:` and `user:` lines) that `convert-harmony` turns into
Harmony. It is short, and every number stands at a fixed place with a fixed number of digits where
it can, because the tiny model has to learn from it in a minute. The last line is what a plant
engineer would put on the board: how many hours of full output today still needs, how many cleaner
hours are to come, whether that puts this hour on today's plan, and which levels neither miss the
load nor waste cold. It comes from today alone and knows nothing of the optimum: following it
blindly is not the best policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gptoss_tools.errors import DataError
from gptoss_tools.tes.plant import Floats, Plant
from gptoss_tools.tes.series import Series
from gptoss_tools.tes.solver import terminal_value_per_kwh

SIMILAR = 0.1  # tomorrow's carbon within 10 % of now is called similar
_ROUNDING = 1e-9  # kWh


@dataclass(frozen=True)
class Outlook:
    """What a decision at hour t can know: the rest of today, and tomorrow in short."""

    hour: int
    load_H: Floats  # kW, this hour first, then today's later decision hours
    carbon_H: Floats  # kgCO2/kWh, the same hours
    next_load_kwh: float  # of tomorrow's decision hours
    next_carbon: float  # kgCO2/kWh, mean of tomorrow's five cleanest decision hours


def outlook(plant: Plant, series: Series, t: int) -> Outlook:
    """Collect today's remaining decision hours and tomorrow in short; DataError without one."""
    day, decides = series.day, plant.decides(series.hours)
    if not 0 <= t < len(series) or not decides[t]:
        raise DataError(f"{series.name}: hour {t} is not a decision hour of the series")
    today = np.flatnonzero((day == day[t]) & decides)
    rest = today[today >= t]
    tomorrow = np.flatnonzero((day == day[t] + 1) & decides)
    if not tomorrow.size:
        raise DataError(
            f"{series.name}: no decision hour on the day after {series.time[t]:%Y-%m-%d}"
        )
    low = terminal_value_per_kwh(plant, series.carbon[tomorrow]) * plant.cop * plant.reward_scale
    return Outlook(
        hour=series.time[t].hour,
        load_H=series.load_kw[rest],
        carbon_H=series.carbon[rest],
        next_load_kwh=float(series.load_kw[tomorrow].sum()),
        next_carbon=low,
    )


@dataclass(frozen=True)
class Board:
    """The derived facts of the prompt's last line."""

    full_hours: int  # hours of highest output that today's remaining load needs beyond the tank
    cleaner_hours: int  # later hours today with lower carbon than now
    lowest: int  # lowest level that leaves no load unmet this hour (the last if none does)
    highest: int  # highest level whose surplus the tank can still take, never below `lowest`
    tomorrow: str  # tomorrow's clean hours against now: cleaner, similar or dirtier

    @property
    def on_plan(self) -> bool:
        """True if this hour is among the `full_hours` cleanest of what is left of today."""
        return self.cleaner_hours < self.full_hours


def board(plant: Plant, view: Outlook, soc: float) -> Board:
    """Derive the last line's facts at tank content `soc` [kWh]."""
    output = np.asarray(plant.levels) * plant.rated_kw
    held = soc * (1.0 - plant.loss)
    needed = (view.load_H.sum() - held) / output[-1]
    after = held + output - view.load_H[0]
    meets = np.flatnonzero(after >= -_ROUNDING)
    fits = np.flatnonzero(after <= plant.capacity_kwh + _ROUNDING)
    ratio = view.next_carbon / view.carbon_H[0] if view.carbon_H[0] > 0 else math.inf
    lowest = int(meets[0]) if meets.size else plant.n_actions - 1
    highest = int(fits[-1]) if fits.size else 0
    return Board(
        full_hours=max(0, math.ceil(needed - _ROUNDING)),
        cleaner_hours=int((view.carbon_H[1:] < view.carbon_H[0]).sum()),
        lowest=lowest,
        highest=max(lowest, highest),
        tomorrow=(
            "cleaner" if ratio < 1 - SIMILAR else "dirtier" if ratio > 1 + SIMILAR else "similar"
        ),
    )


def write_prompt(plant: Plant, series: Series, t: int, soc: float) -> str:
    """Return the prompt for hour t of `series` at tank content `soc` [kWh]; no chance is involved.

    Raises DataError where t is no decision hour or the series has no next day.
    """
    view = outlook(plant, series, t)
    facts = board(plant, view, soc)
    output = ", ".join(f"{level * plant.rated_kw:.0f}" for level in plant.levels)
    later_load = float(view.load_H[1:].sum())
    grams = [1000 * view.carbon_H[0], 1000 * view.carbon_H.min(), 1000 * view.next_carbon]
    now, lowest, tomorrow = (f"{value:03.0f}" for value in grams)
    return (
        "system: Run a heat pump with a cold tank. Meet every load with the least CO2. "
        "Answer with exactly [k].\n"
        f"user: Levels 0 to {plant.n_actions - 1} give {output} kW; "
        "the tank takes surplus and fills gaps.\n"
        f"Hour {view.hour:02d}: load {view.load_H[0]:02.0f} kW, carbon {now} g, "
        f"tank {soc:03.0f} of {plant.capacity_kwh:.0f} kWh.\n"
        f"Later {later_load:03.0f} kWh from {lowest} g, "
        f"tomorrow {view.next_load_kwh:03.0f} kWh from {tomorrow} g.\n"
        f"Plan: full hours needed {facts.full_hours}, cleaner hours left {facts.cleaner_hours}, "
        f"run now: {'yes' if facts.on_plan else 'no'}. Tomorrow: {facts.tomorrow}. "
        f"Fitting levels: {facts.lowest} to {facts.highest}."
    )
