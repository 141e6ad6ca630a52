"""The thermal-storage plant: one heat pump, one cold tank, one-hour steps, as a pure function.

A heat pump of constant COP runs at one of a few output levels. What it makes serves the load
first; the surplus charges the tank, a shortfall discharges it, and what neither covers is unmet and
costs a penalty. Energy is in kWh of cold, power in kW of cold, electricity in kWh, carbon intensity
in kgCO2 per kWh of electricity. Left out: rate limits, part load, weather.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptoss_tools.errors import ConfigError

Floats = NDArray[np.float64]


class StepResult(NamedTuple):
    """What one hour did; every field has the broadcast shape of the inputs of `Plant.step`."""

    next_soc: Floats  # kWh of cold in the tank after the hour
    reward: Floats  # -(emitted + penalty * unmet) / reward_scale
    unmet: Floats  # kWh of cold that were asked for and not delivered
    electricity: Floats  # kWh
    emitted: Floats  # kgCO2, without the penalty


@dataclass(frozen=True)
class Plant:
    """The plant's constants, checked on construction (ConfigError names the field at fault).

    A full tank makes the heat pump waste its surplus: a level's electricity is always paid.
    """

    levels: tuple[float, ...] = (0.0, 1 / 3, 2 / 3, 1.0)  # output ratios, rising, the first is off
    rated_kw: float = 100.0
    cop: float = 4.0
    capacity_kwh: float = 300.0
    loss: float = 0.0  # share of the content lost per hour, taken at the start of the hour
    penalty: float = 10.0  # kgCO2 charged per unmet kWh
    decision_hours: tuple[int, ...] = tuple(range(8, 18))  # elsewhere the heat pump is off
    reward_scale: float = 6.0  # kgCO2 per unit of reward

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(float(level) for level in self.levels))
        object.__setattr__(self, "decision_hours", tuple(int(h) for h in self.decision_hours))
        for field in fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if not math.isfinite(number):
                    raise ConfigError(f"plant {field.name} must be finite, not {number!r}")
        for name in ("rated_kw", "cop", "capacity_kwh", "reward_scale"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"plant {name} must be above 0, not {getattr(self, name)!r}")
        if self.penalty < 0:
            raise ConfigError(f"plant penalty must be 0 or more, not {self.penalty!r}")
        if not 0 <= self.loss < 1:
            raise ConfigError(f"plant loss must lie in [0, 1), not {self.loss!r}")
        rising = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        if len(self.levels) < 2 or not rising or self.levels[0] != 0 or self.levels[-1] > 1:
            raise ConfigError(
                f"plant levels must rise from 0 to at most 1, two or more, not {self.levels}",
                hint="the first level is off, for example 0, 0.5, 1",
            )
        hours = self.decision_hours
        if not hours or sorted(set(hours)) != list(hours) or hours[0] < 0 or hours[-1] > 23:
            raise ConfigError(f"plant decision_hours must be rising hours 0 to 23, not {hours}")

    @property
    def n_actions(self) -> int:
        """The number of output levels, K."""
        return len(self.levels)

    @property
    def closing_hour(self) -> int:
        """The first hour after the last decision of a day; an episode ends there."""
        return self.decision_hours[-1] + 1

    def decides(self, hours: ArrayLike) -> NDArray[np.bool_]:
        """True where the hour of day (0 to 23) is one in which a level may be chosen."""
        return np.isin(np.asarray(hours), self.decision_hours)

    def step(
        self, soc: ArrayLike, action: ArrayLike, load_kw: ArrayLike, carbon: ArrayLike
    ) -> StepResult:
        """Run one hour from tank content `soc` [kWh]; all inputs broadcast, nothing is changed.

        `action` holds level indices 0..K-1, `load_kw` kW, `carbon` kgCO2/kWh. The inputs are
        trusted: `solve` and the series readers check them once, not at every step.
        """
        output = np.asarray(self.levels)[np.asarray(action)] * self.rated_kw
        held = np.asarray(soc, dtype=np.float64) * (1.0 - self.loss)
        load = np.asarray(load_kw, dtype=np.float64)
        served = np.minimum(load, output)
        discharge = np.minimum(load - served, held)
        unmet = load - served - discharge
        charge = np.minimum(output - served, self.capacity_kwh - (held - discharge))
        electricity = output / self.cop
        emitted = electricity * np.asarray(carbon, dtype=np.float64)
        reward = -(emitted + self.penalty * unmet) / self.reward_scale
        electricity = np.broadcast_to(electricity, reward.shape)
        emitted = np.broadcast_to(emitted, reward.shape)
        return StepResult(held - discharge + charge, reward, unmet, electricity, emitted)
