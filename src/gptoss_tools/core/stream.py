"""StepStream: which table rows come at micro-step t, as a pure function of (seed, t).

Nothing is stored between draws, so a run that resumes at step 7000 of a table of 40 rows needs only
the number 7000. Draws are independent: rows do not repeat inside one, and may in the next. Only raw
bits of Philox are used, which NumPy promises never to change; `Generator` methods carry no such
promise. Leaves out how draws become batches: training.sampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gptoss_tools.errors import ConfigError, DataError


class StepStream:
    """Draws of `prompts_per_step` distinct rows of `n_rows`, each for `num_generations` answers.

    `prompts_per_step` is clipped to `n_rows`; `clipped` says so. DataError for an empty table.
    """

    def __init__(self, n_rows: int, prompts_per_step: int, num_generations: int, seed: int):
        if n_rows < 1:
            raise DataError("the table has no rows to train on")
        if prompts_per_step < 1:
            raise ConfigError(f"prompts_per_step is {prompts_per_step}, it must be at least 1")
        if num_generations < 1:
            raise ConfigError(f"num_generations is {num_generations}, it must be at least 1")
        self.n_rows = n_rows
        self.prompts_per_step = min(prompts_per_step, n_rows)
        self.clipped = prompts_per_step > n_rows
        self.num_generations = num_generations
        self.seed = seed

    def draw(self, t: int) -> np.ndarray:
        """Rows of micro-step `t` (from 0): int64[prompts_per_step], no two alike."""
        return self._draw(t, 0, self.prompts_per_step)

    def again(self, t: int, attempt: int, count: int) -> np.ndarray:
        """Rows to put in the place of some of micro-step `t`, at the `attempt`-th time (from 1).

        int64[count], each row once before any comes twice; a function of (seed, t, attempt, count)
        and so as repeatable as a draw.
        """
        if not 1 <= attempt < 2**15:
            raise ValueError(f"attempt {attempt} is not within 1 and 32767")
        return np.resize(self._draw(t, attempt, min(count, self.n_rows)), count)

    def _draw(self, t: int, attempt: int, count: int) -> np.ndarray:
        if not 0 <= t < 2**48:
            raise ValueError(f"micro-step {t} is before the first, or after all others")
        key = np.array([self.seed % 2**64, t + (attempt << 48)], dtype=np.uint64)
        bits = np.random.Philox(key=key).random_raw(count)
        # Fisher-Yates, only as far as needed; `moved` holds what stands where a swap has been.
        # The remainder's bias is below n_rows / 2**64.
        moved: dict[int, int] = {}
        rows = np.empty(count, dtype=np.int64)
        for place in range(count):
            other = place + int(bits[place]) % (self.n_rows - place)
            rows[place] = moved.get(other, other)
            moved[other] = moved.get(place, place)
        return rows

    def rows(self, t: int) -> np.ndarray:
        """Rows of micro-step `t` as TRL wants them: each `num_generations` times, consecutively."""
        return np.repeat(self.draw(t), self.num_generations)

    def iterate(self, start: int = 0) -> Iterator[np.ndarray]:
        """Draws from micro-step `start` on, without end."""
        t = start
        while True:
            yield self.draw(t)
            t += 1

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.iterate()


def value_columns(values: Any, name: str = "reward") -> dict[str, list[float | None]]:
    """Reshape a [rows, actions] array into TRL's columns `{name}_action_0`, `{name}_action_1`, ...

    NaN (no such action in this row, or no value) becomes None, which survives Arrow and JSON alike.
    Ragged input, one sequence per row, is padded with None. Infinite values are refused.
    """
    width = max((len(row) for row in values), default=0)
    columns: dict[str, list[float | None]] = {f"{name}_action_{k}": [] for k in range(width)}
    for number, row in enumerate(values, 1):
        for k in range(width):
            value = float(row[k]) if k < len(row) and row[k] is not None else np.nan
            if name == "reward" and np.isinf(value):
                raise DataError(f"row {number}: reward_action_{k} is infinite")
            columns[f"{name}_action_{k}"].append(None if np.isnan(value) else value)
    return columns
