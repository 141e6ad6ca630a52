"""Find rows that come twice, in one table or in several, at 8 bytes per row.

Compares a 64-bit hash of all cells, column order aside; among ten million different rows a chance
hit has a probability of 3e-6. Leaves out what to do about it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from gptoss_tools.core.tables import values


class SeenRows:
    """Finds rows that come twice, in one file or in two, by a 64-bit hash of their cells."""

    def __init__(self) -> None:
        self._hashes: list[np.ndarray] = []
        self._files: list[tuple[Path, int]] = []

    def add(self, path: Path, frame: pd.DataFrame) -> None:
        columns = [list(map(str, values(frame, name))) for name in sorted(frame.columns)]
        if columns:
            rows = map(hash, zip(*columns, strict=True))
            self._hashes.append(np.fromiter(rows, np.int64, len(frame)))
            self._files.append((path, len(frame)))

    def repeats(self, limit: int) -> tuple[list[tuple[Path, int, Path, int]], int]:
        """The first `limit` repeated rows as (file, row, file of the first, its row), and how many
        more there are."""
        if not self._hashes:
            return [], 0
        hashes = np.concatenate(self._hashes)
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        twice = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
        pairs = zip(twice[:limit].tolist(), first[inverse[twice[:limit]]].tolist(), strict=True)
        found = [(*self._place(row), *self._place(earlier)) for row, earlier in pairs]
        return found, max(len(twice) - limit, 0)

    def _place(self, index: int) -> tuple[Path, int]:
        begin, file_begin, previous = 0, 0, None
        for path, rows in self._files:
            if path != previous:
                file_begin, previous = begin, path
            if index < begin + rows:
                return path, int(index) - file_begin + 1
            begin += rows
        raise IndexError(index)
