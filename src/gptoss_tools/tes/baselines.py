"""Rules an operator might follow without a model: what a policy should at least beat.

A rule maps (plant, series, t, soc) to a level index and is asked in decision hours only. All but
`plan` look at this hour alone, and none at the optimum. Where a rule makes all it can, it takes the
highest level whose surplus the tank still has room for: cold that nobody keeps would make the rule
look worse than its idea. A rule never leaves load unmet to save room; where no level meets the
load, the highest is chosen.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from gptoss_tools.errors import ConfigError
from gptoss_tools.tes.plant import Plant
from gptoss_tools.tes.prompts import Board, board, outlook
from gptoss_tools.tes.series import Series

Rule = Callable[[Plant, Series, int, float], int]

NIGHT_HOURS = (22, 23, 0, 1, 2, 3, 4, 5)
SOLAR_HOURS = (9, 10, 11, 12, 13)
_TIE = 1e-12  # reward; levels this close are tied, as in the solver
_ROUNDING = 1e-9  # kWh


def greedy(plant: Plant, series: Series, t: int, soc: float) -> int:
    """Take the largest reward of this hour; of tied levels the lowest.

    Empties the tank first, and leaves a load unmet where the penalty is less than a level's CO2.
    """
    actions = np.arange(plant.n_actions)
    reward = plant.step(soc, actions, series.load_kw[t], series.carbon[t]).reward
    return int(np.argmax(reward >= reward.max() - _TIE))


def load_following(plant: Plant, series: Series, t: int, soc: float) -> int:
    """Take the lowest level that covers the load without the tank; the highest if none does."""
    covers = np.asarray(plant.levels) * plant.rated_kw >= series.load_kw[t] - _ROUNDING
    return int(np.argmax(covers)) if covers.any() else plant.n_actions - 1


def night(plant: Plant, series: Series, t: int, soc: float) -> int:
    """Fill the tank from 22 to 6 o'clock, otherwise run only as high as the load demands.

    A plant that decides nothing at night lives from hand to mouth under this rule.
    """
    facts = _facts(plant, series, t, soc)
    return facts.highest if series.time[t].hour in NIGHT_HOURS else facts.lowest


def solar(plant: Plant, series: Series, t: int, soc: float) -> int:
    """Fill the tank from 9 to 14 o'clock, otherwise run only as high as the load demands."""
    facts = _facts(plant, series, t, soc)
    return facts.highest if series.time[t].hour in SOLAR_HOURS else facts.lowest


def plan(plant: Plant, series: Series, t: int, soc: float) -> int:
    """Follow the last line of the prompt: fill the tank if this hour is on plan, else do not."""
    facts = _facts(plant, series, t, soc)
    return facts.highest if facts.on_plan else facts.lowest


BASELINES: dict[str, Rule] = {
    "greedy": greedy,
    "load_following": load_following,
    "night": night,
    "solar": solar,
    "plan": plan,
}


def random_rule(seed: int) -> Rule:
    """Return a rule that draws levels uniformly, from (seed, series name, t) alone."""
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, not {seed}")

    def draw(plant: Plant, series: Series, t: int, soc: float) -> int:
        rng = np.random.default_rng([seed, zlib.crc32(series.name.encode()), t])
        return int(rng.integers(plant.n_actions))

    return draw


def _facts(plant: Plant, series: Series, t: int, soc: float) -> Board:
    return board(plant, outlook(plant, series, t), soc)
