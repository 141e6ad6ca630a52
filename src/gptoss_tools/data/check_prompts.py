"""Find every problem of what answers are measured by: reference answers, responses and rubrics.

The half of `check-data` that a table without values per action needs; the other is data.check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd

from gptoss_tools.data.instruction_rows import is_empty
from gptoss_tools.data.rubrics import parse_rubric
from gptoss_tools.data.tables import values
from gptoss_tools.errors import DataError

MEASURES = ("answer", "reference", "rubric")

Say = Callable[[int, str | None, str, str], None]
"""Takes a problem: row (from 1), column, what is wrong there, and the kind it is counted by."""


class PromptCheck:
    """Looks at the columns answer, reference and rubric, chunk by chunk."""

    def __init__(self, say: Say):
        self._say = say
        self._rows = 0
        self._held: Counter[str] = Counter()

    def add(self, frame: pd.DataFrame, first_row: int, *, alone: bool) -> bool:
        """Check a chunk; whether it has such columns. `alone`: its rows have no values either."""
        columns = {name: values(frame, name) for name in MEASURES if name in frame}
        for place in range(len(frame) if columns else 0):
            cells = {name: cells[place] for name, cells in columns.items()}
            held = {name: cell for name, cell in cells.items() if not is_empty(cell)}
            self._held.update(held.keys())
            if alone and not held:
                said = f"no {' and no '.join(columns)}, so no answer can be measured"
                self._say(first_row + place, None, said, "")
            for name, cell in held.items():
                if problem := _problem(name, cell):
                    self._say(first_row + place, name, problem, f"unreadable {name}")
        self._rows += len(frame) if columns else 0
        return bool(columns)

    def summary(self) -> str:
        """What the table is, empty if it has no such columns."""
        if not self._rows:
            return ""
        articles = {"answer": "an"}
        held = [
            f"{self._held[name]} with {articles.get(name, 'a')} {name}"
            for name in MEASURES
            if self._held[name]
        ]
        return ", ".join([f"{self._rows} prompts", *held])


def _problem(name: str, cell: Any) -> str:
    if name == "rubric":
        try:
            parse_rubric(cell, "rubric", pitfalls="error")
        except DataError as error:
            return str(error).removeprefix("rubric: ")
    elif isinstance(cell, bool) or not isinstance(cell, str | int | float):
        return f"{type(cell).__name__} is not text"
    return ""
