"""Find rows that come twice, in one table or in several, at 8 bytes per row.

Compares a 64-bit hash of all cells, column order aside; among ten million different rows a chance
hit has a probability of 3e-6. Leaves out what to do about it.
"""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from gptoss_tools.data.csv_lines import csv_lines
from gptoss_tools.data.tables import text_column, values


class SeenRows:
    """Finds rows that come twice, in one file or in two, by a 64-bit hash of their cells."""

    def __init__(self) -> None:
        self._hashes = array("q")  # grows in place
        self._files: list[tuple[Path, int]] = []

    def add(self, path: Path, frame: pd.DataFrame) -> None:
        if len(frame.columns) and len(frame):
            lines = csv_lines([_texts(frame, name) for name in sorted(frame.columns)])
            hashes = np.fromiter(map(hash, lines.to_pylist()), np.int64, len(frame))
            self._hashes.frombytes(hashes.tobytes())
            self._files.append((path, len(frame)))

    def repeats(self, limit: int) -> tuple[list[tuple[Path, int, Path, int]], int]:
        """The first `limit` repeated rows as (file, row, file of the first, its row), and how many
        more there are."""
        hashes = np.frombuffer(self._hashes, np.int64)
        order = np.argsort(hashes, kind="stable")
        ordered = hashes[order]
        again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        rows = np.sort(order[again])
        pairs = []
        for row in rows[:limit].tolist():
            # Of equal hashes the stable order has the first row first.
            first = order[np.searchsorted(ordered, hashes[row])]
            pairs.append((*self._place(row), *self._place(int(first))))
        return pairs, max(len(rows) - limit, 0)

    def _place(self, index: int) -> tuple[Path, int]:
        begin, file_begin, previous = 0, 0, None
        for path, rows in self._files:
            if path != previous:
                file_begin, previous = begin, path
            if index < begin + rows:
                return path, int(index) - file_begin + 1
            begin += rows
        raise IndexError(index)


def _texts(frame: pd.DataFrame, column: str) -> pa.Array:
    cells = text_column(frame, column)
    if cells is None:
        cells = pa.array(map(str, values(frame, column)), pa.large_string())
    return cells.fill_null("None")
