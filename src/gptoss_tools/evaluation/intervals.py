"""How far a mean over rows may be off, when rows of one episode resemble each other.

95 % percentile bootstrap over episodes (Efron & Tibshirani 1993, ch. 13; Miller 2024,
arXiv:2411.00640, on clustered questions): an episode is drawn whole, and the statistic is a ratio
of sums over the drawn rows, so longer episodes weigh more, as they do in the mean itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gptoss_tools.errors import DataError

Interval = tuple[float, float]
Episodes = Sequence[Any] | NDArray[Any]

_PERCENT = (2.5, 97.5)
_BLOCKS = 16


class Resamples:
    """Draws of whole episodes, the same for every quantity that is asked about.

    `counts_BE` says how often resample b holds episode e. Episodes are numbered in the order of
    their names, so the order of the rows changes nothing.
    """

    def __init__(self, episodes: Episodes, *, seed: int, resamples: int = 2000) -> None:
        names, self.episode_R = np.unique(np.asarray(episodes), return_inverse=True)
        self.n_episodes = count = len(names)
        generator = np.random.default_rng(seed)
        self.counts_BE = np.empty((resamples, count), np.uint16)
        for row in self.counts_BE:
            row[:] = np.bincount(generator.integers(count, size=count), minlength=count)

    def mean(self, values_R: ArrayLike) -> Interval | None:
        """Interval of the mean of the values that are not NaN; None as for `ratio`."""
        values = np.asarray(values_R, float)
        return self.ratio(values, np.ones_like(values))

    def ratio(self, above_R: ArrayLike, below_R: ArrayLike) -> Interval | None:
        """Interval of sum(above) / sum(below) over the rows where neither is NaN.

        None if fewer than two episodes have such rows: how episodes differ cannot be seen in one.
        Resamples in which the lower sum is 0 say nothing and are left out.
        """
        both = np.stack([np.asarray(above_R, float), np.asarray(below_R, float)], axis=1)
        if len(both) != len(self.episode_R):
            raise DataError(f"{len(both)} values for the episodes of {len(self.episode_R)} rows")
        known = ~np.isnan(both).any(axis=1)
        if len(np.unique(self.episode_R[known])) < 2:
            return None
        sums_E2 = np.zeros((self.n_episodes, 2))
        np.add.at(sums_E2, self.episode_R[known], both[known])
        # In blocks, because the counts are eight times as large as floats.
        blocks = np.array_split(self.counts_BE, _BLOCKS)
        sums_B2 = np.concatenate([block.astype(float) @ sums_E2 for block in blocks])
        drawn = sums_B2[sums_B2[:, 1] != 0]
        if not len(drawn):
            return None
        low, high = np.percentile(drawn[:, 0] / drawn[:, 1], _PERCENT)
        return float(low), float(high)


def bootstrap_mean(
    values: ArrayLike, episodes: Episodes, *, seed: int, resamples: int = 2000
) -> Any:
    """95 % interval (low, high) of a mean over rows, by a bootstrap over `episodes` [R].

    NaN rows are left out. None if only one episode has values: it does not show how episodes
    differ. For values [R, C] a list with one interval per column, from the same resamples.
    """
    columns = np.asarray(values, float)
    draws = Resamples(episodes, seed=seed, resamples=resamples)
    if columns.ndim == 1:
        return draws.mean(columns)
    return [draws.mean(column) for column in columns.T]


def bootstrap_difference(
    a_R: ArrayLike, b_R: ArrayLike, episodes: Episodes, *, seed: int, resamples: int = 2000
) -> Interval | None:
    """95 % interval of mean(a - b) over the rows where both are known, as `bootstrap_mean`."""
    difference = np.asarray(a_R, float) - np.asarray(b_R, float)
    return bootstrap_mean(difference, episodes, seed=seed, resamples=resamples)
