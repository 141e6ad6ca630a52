"""Which examples come at which step: pass after pass over the data, each in an order of its own.

The order of a pass is a pure function of (seed, pass), and passes run into one another, so the rows
of a step follow from its number alone: nothing has to be stored for a run to go on exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch.utils.data import Sampler

from gptoss_tools.core.stream import StepStream


def steps_of(epochs: float, n_rows: int, rows_per_step: int) -> int:
    """Optimizer steps that hold this many passes, the last one filled up from the next pass."""
    return max(1, math.ceil(epochs * n_rows / rows_per_step))


class PassSampler(Sampler[int]):
    """Row indices for `total` places, those of one step next to each other over all processes.

    Consecutive per-process batches go to consecutive ranks (accelerate's BatchSamplerShard), so a
    step has the same rows with any number of processes that makes batches of the same size.
    """

    def __init__(self, n_rows: int, total: int, seed: int):
        self.n_rows, self.total = n_rows, total
        self.orders = StepStream(n_rows, n_rows, 1, seed)  # a draw of all rows is an order of them

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        for number in range(math.ceil(self.total / self.n_rows)):
            yield from self.orders.draw(number)[: self.total - number * self.n_rows].tolist()
