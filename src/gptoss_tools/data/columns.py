"""What a row's own columns say beside its prompt: its actions, their names, how hard to think.

Values stand in one column per action (`q_action_0`, `reward_action_0`, ...) or, in a table without
these, in the list columns `q` and `rewards`. A row has as many actions as its lists, `n_actions`
and `actions` say, which must agree, and without any of them as many as there are columns. Leaves
out what values mean and how rows are rendered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gptoss_tools.chat.actions import fold
from gptoss_tools.chat.harmony import REASONING_EFFORTS
from gptoss_tools.data.tables import is_missing, numbers, values
from gptoss_tools.errors import DataError

Report = Callable[[int, str, str], None]
"""Takes a problem: row (from 1), column, and what is wrong there."""

_NUMBERED = re.compile(r"(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class RowActions:
    """What the R rows of a chunk choose from.

    `frame` is the chunk with one column per action; `q` and `rewards` name these in order. Lists
    are spread over columns `q[0]`, `q[1]`, ..., empty beyond a row's own. `counts` is int64 [R];
    `names` has one list per row, empty where the actions are numbered.
    """

    frame: pd.DataFrame
    q: list[str]
    rewards: list[str]
    counts: np.ndarray
    names: list[list[str]]

    @property
    def in_lists(self) -> bool:
        """Whether the values came in the list column `q`."""
        return self.q[:1] == ["q[0]"]


def row_actions(
    frame: pd.DataFrame, where: str, first_row: int = 1, report: Report | None = None
) -> RowActions:
    """Read which actions each row has; a problem is raised as DataError, or given to `report`.

    After a reported problem the row goes on as if that column said nothing. Without any value
    column there are no actions, and nothing else is looked at.
    """
    say = report or _refuse(where)
    q = action_columns(frame.columns, "q_action_", where)
    rewards = action_columns(frame.columns, "reward_action_", where)
    said: dict[str, np.ndarray] = {}  # by column, 0 where a row says nothing
    if not q and not rewards:
        if "q" in frame:
            frame, q, said["q"] = _spread(frame, "q", first_row, say)
        if "rewards" in frame:
            frame, rewards, said["rewards"] = _spread(frame, "rewards", first_row, say)
    width = max(len(q), len(rewards))
    names: list[list[str]] = [[]] * len(frame)
    if not width:
        return RowActions(frame, q, rewards, np.zeros(len(frame), np.int64), names)
    if "n_actions" in frame:
        said["n_actions"] = _counted(frame, width, where, first_row, say)
    if "actions" in frame:
        names = _named(frame, width, first_row, say)
        said["actions"] = np.array([len(own) for own in names], np.int64)
    counts = np.full(len(frame), width)
    settled = fresh = np.zeros(len(frame), dtype=bool)
    for column, sizes in said.items():
        for row in np.flatnonzero(settled & (sizes > 0) & (sizes != counts)):
            text = f"{sizes[row]} actions, where the row has {counts[row]}"
            say(first_row + int(row), column, text)
        fresh = (sizes > 0) & ~settled
        counts, settled = np.where(fresh, sizes, counts), settled | fresh
    if "actions" in said:
        _refuse_unnamed(frame, [q, rewards], np.where(fresh, counts, width), first_row, say)
    return RowActions(frame, q, rewards, counts, names)


def action_columns(columns: Iterable[str], prefix: str, where: str) -> list[str]:
    """Names `prefix0..prefix{K-1}` in order, empty without any; DataError on gaps, K < 2."""
    indices = sorted(
        int(name.removeprefix(prefix))
        for name in columns
        if isinstance(name, str)
        and name.startswith(prefix)
        and _NUMBERED.fullmatch(name.removeprefix(prefix))
    )
    last = f"{prefix}{indices[-1]}" if indices else ""
    for expected in range(indices[-1] + 1 if indices else 0):
        if expected not in indices:
            raise DataError(
                f"{where}: the column {prefix}{expected} is missing but {last} is there",
                hint=f"actions are numbered from 0 without gaps: {prefix}0, {prefix}1, ...",
            )
    if len(indices) == 1:
        raise DataError(f"{where}: {prefix}0 is the only action", hint="a decision needs two")
    return [f"{prefix}{index}" for index in indices]


def action_names(cell: Any) -> list[str]:
    """The names in a cell of `actions`: a list, a JSON list as text, or text separated by `|`.

    Empty for an empty cell. Raises DataError for a single name, names that are not text, and names
    that only case and white space tell apart.
    """
    if is_blank(cell):
        return []
    names = _as_list(cell)
    if names is None:
        if not isinstance(cell, str):
            raise DataError(f"{cell!r} is neither a list of names nor names separated by |")
        names = cell.split("|")
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"{name!r} is not text, and a name is")
    names = [name.strip() for name in names]
    seen: dict[str, str] = {}
    for name in names:
        if not name:
            raise DataError("a name is empty")
        if fold(name) in seen:
            raise DataError(f"{seen[fold(name)]!r} and {name!r} are the same name")
        seen[fold(name)] = name
    if len(names) == 1:
        raise DataError(f"{names[0]!r} is the only action, and a decision needs two")
    return names


def row_efforts(
    frame: pd.DataFrame,
    default: str,
    where: str,
    first_row: int = 1,
    report: Report | None = None,
) -> list[str]:
    """The reasoning effort of each row: its cell of `reasoning_effort`, `default` where empty."""
    if "reasoning_effort" not in frame:
        return [default] * len(frame)
    say, efforts = report or _refuse(where), []
    for row, cell in enumerate(values(frame, "reasoning_effort"), start=first_row):
        effort = default if is_blank(cell) else cell
        if effort not in REASONING_EFFORTS:
            say(row, "reasoning_effort", f"{cell!r} is not one of {', '.join(REASONING_EFFORTS)}")
            effort = default
        efforts.append(effort)
    return efforts


def is_blank(cell: Any) -> bool:
    """Whether a cell of a text column holds nothing; here `none` is a word like any other."""
    return not cell.strip() if isinstance(cell, str) else is_missing(cell)


def _refuse(where: str) -> Report:
    def say(row: int, column: str, message: str) -> None:
        raise DataError(f"{where} row {row}, column {column}: {message}")

    return say


def _as_list(cell: Any) -> list[Any] | None:
    if isinstance(cell, str) and cell.lstrip()[:1] == "[":
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    return cell if isinstance(cell, list) else None


def _spread(
    frame: pd.DataFrame, column: str, first_row: int, say: Report
) -> tuple[pd.DataFrame, list[str], np.ndarray]:
    """A list column as columns `column[0]`, `column[1]`, ..., their names, and lengths [R]."""
    lists: list[list[Any]] = []
    for row, cell in enumerate(values(frame, column), start=first_row):
        found = _as_list(cell)
        if found is None or len(found) < 2:
            say(row, column, f"{_shown(cell)} is not a list of two or more numbers")
            found = []
        lists.append(found)
    sizes = np.array([len(own) for own in lists], np.int64)
    fresh: dict[str, np.ndarray] = {}
    for action in range(sizes.max(initial=0)):
        cells = np.empty(len(lists), dtype=object)
        cells[:] = [own[action] if action < len(own) else None for own in lists]
        fresh[f"{column}[{action}]"] = cells
    return frame.drop(columns=column).assign(**fresh), list(fresh), sizes


def _counted(
    frame: pd.DataFrame, width: int, where: str, first_row: int, say: Report
) -> np.ndarray:
    counts = numbers(frame, "n_actions", where, first_row)
    good = (counts >= 2) & (counts <= width) & (counts == np.floor(counts))
    cells = values(frame, "n_actions")
    for row in np.flatnonzero(~good):
        text = f"{cells[row]!r} is not a whole number from 2 to {width}"
        say(first_row + int(row), "n_actions", text)
    return np.where(good, counts, 0).astype(np.int64)


def _named(frame: pd.DataFrame, width: int, first_row: int, say: Report) -> list[list[str]]:
    found = []
    for row, cell in enumerate(values(frame, "actions"), start=first_row):
        try:
            names = action_names(cell)
            if len(names) > width:
                raise DataError(f"{len(names)} names, where there are values for {width} actions")
        except DataError as error:
            say(row, "actions", str(error))
            names = []
        found.append(names)
    return found


def _refuse_unnamed(
    frame: pd.DataFrame, columns: list[list[str]], counts: np.ndarray, first_row: int, say: Report
) -> None:
    """Refuse values of actions that a row does not name, where its names alone say how many."""
    for kind in columns:
        for action, column in enumerate(kind):
            rows = np.flatnonzero(counts <= action)
            cells = values(frame, column) if len(rows) else []
            for row in rows:
                if not is_missing(cells[row]):
                    text = f"a value, but the row names only {counts[row]} actions"
                    say(first_row + int(row), column, text)


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else text[:57] + "..."
