"""Axes for values of 0 and more that may span decades, as regrets do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_tools.report.style import axis
from gptoss_tools.report.words import short


@dataclass(frozen=True)
class Scale:
    """A value axis from 0, logarithmic where values span a lot, and how values are put on it.

    On a logarithmic axis `low` is the lowest decade that is told apart; what lies below it, zero
    above all, stands at `low` / 10. On a linear one `low` is 0.
    """

    axis: dict[str, Any]
    low: float

    @property
    def logarithmic(self) -> bool:
        return self.low > 0

    def put(self, value: float) -> float:
        """Return where a value stands."""
        return max(value, self.low / 10)


def value_scale(values: Sequence[float], spread: float = 30.0, decades: int = 4) -> Scale:
    """Return the scale for values of 0 and more: logarithmic where they span `spread` times.

    It tells the upper `decades` apart.
    """
    positive = [value for value in values if value > 0]
    if not positive or max(positive) < spread * min(positive):
        top = 1.06 * max(positive, default=1.0)
        return Scale(axis(value=True, range=[0, top]), 0.0)
    high = math.ceil(math.log10(max(positive)))
    low = max(math.floor(math.log10(min(positive))), high - decades)
    ticks = [10.0**e for e in range(low - 1, high + 1)]
    zero = "0" if min(positive) >= ticks[1] else "\N{ALMOST EQUAL TO} 0"
    shown = axis(
        value=True,
        type="log",
        range=[low - 1.15, math.log10(max(positive)) + 0.15],
        tickvals=ticks,
        ticktext=[zero, *(short(tick, 1) for tick in ticks[1:])],
    )
    return Scale(shown, ticks[1])
