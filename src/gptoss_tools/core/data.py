"""Rows of decisions: which files hold them, which columns, and all of them in memory for training.

Columns: `prompt`, `q_action_0..K-1`, `reward_action_0..K-1`, anything else. K may differ per file;
rows of one file with fewer actions say so in a column `n_actions`. Leaves out which files are taken
(core.stages; Hub ids would enter there), how they are read (core.tables) and what rewards mean.
"""

from __future__ import annotations

import bisect
import datetime
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gptoss_tools.core.harmony import GENERATION_PROMPT, is_harmony, render
from gptoss_tools.core.stages import expand
from gptoss_tools.core.tables import numbers, read_chunks, values
from gptoss_tools.errors import DataError

__all__ = ["DecisionTable", "action_columns", "as_messages", "expand", "load_table", "row_actions"]

_NUMBERED = re.compile(r"(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class DecisionTable:
    """R rows ready for training or evaluation, in file order; K is the largest number of actions.

    `rewards` is None where no file has reward columns, `q` where none has Q columns; both are
    float64 [R, K], NaN beyond a row's `n_actions` and where a value is unknown.
    """

    prompts: list[str]
    q: np.ndarray | None
    rewards: np.ndarray | None
    n_actions: np.ndarray
    columns: pd.DataFrame
    sha256: str
    _starts: list[int] = field(repr=False)
    _paths: list[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.prompts)

    def where(self, row: int) -> str:
        """`file row N` of a 0-based row, counting from 1 as error messages do."""
        part = bisect.bisect_right(self._starts, row) - 1
        return f"{self._paths[part]} row {row - self._starts[part] + 1}"


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


def row_actions(frame: pd.DataFrame, width: int, where: str, first_row: int = 1) -> np.ndarray:
    """Number of actions of each row [R]: the column `n_actions` if there is one, else `width`."""
    if "n_actions" not in frame:
        return np.full(len(frame), width)
    counts = numbers(frame, "n_actions", where, first_row)
    bad = ~((counts >= 2) & (counts <= width) & (counts == np.floor(counts)))
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"{where} row {first_row + row}, column n_actions: {values(frame, 'n_actions')[row]!r}"
            f" is not a whole number from 2 to {width}"
        )
    return counts.astype(np.int64)


def as_messages(cell: Any) -> list[dict[str, Any]] | None:
    """The messages a prompt cell holds, as a list or as its JSON text; None if it is plain text."""
    if isinstance(cell, str) and cell.lstrip()[:1] == "[":
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    if isinstance(cell, list) and cell and all(isinstance(m, dict) and "role" in m for m in cell):
        # Parquet stores one schema for all messages and fills absent keys with None.
        return [{k: v for k, v in m.items() if v is not None} for m in cell]
    return None


def load_table(
    paths: Sequence[str | Path] | str | Path,
    *,
    encoding: str = "utf-8",
    delimiter: str = ",",
    date: str | None = None,
    reasoning_effort: str = "medium",
    model_identity: str | None = None,
) -> DecisionTable:
    """Read all rows of files, folders and globs, prompts as Harmony text.

    Prompts held as messages are rendered with `date` (default today), `reasoning_effort` and
    `model_identity`; rendered prompts stay as they are. `sha256` covers prompts and rewards in
    order, not paths or other columns. Raises DataError naming file, row and column.
    """
    date = date or datetime.date.today().isoformat()

    def prompt_of(cell: Any, place: str) -> str:
        messages = as_messages(cell)
        if messages is not None:
            try:
                return render(
                    messages,
                    date=date,
                    reasoning_effort=reasoning_effort,
                    model_identity=model_identity,
                )
            except DataError as error:
                raise DataError(f"{place}: {error}", hint=error.hint) from error
        return _harmony_prompt(cell, place)

    parts = _Parts()
    for path in expand(paths, stage="train"):
        parts.begin(str(path))
        first_row = 1
        for frame in read_chunks(path, encoding=encoding, delimiter=delimiter):
            parts.add(frame, str(path), first_row, prompt_of)
            first_row += len(frame)
    return parts.table()


class _Parts:
    """Collects chunks of several files into one table."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.q: list[np.ndarray] = []
        self.rewards: list[np.ndarray] = []
        self.n_actions: list[np.ndarray] = []
        self.columns: list[pd.DataFrame] = []
        self.starts: list[int] = []
        self.paths: list[str] = []
        self.lacking: dict[str, str] = {}
        self.having: set[str] = set()

    def begin(self, path: str) -> None:
        self.starts.append(len(self.prompts))
        self.paths.append(path)

    def add(
        self, frame: pd.DataFrame, path: str, first_row: int, prompt_of: Callable[[Any, str], str]
    ) -> None:
        if "prompt" not in frame:
            raise DataError(f"{path} has no column prompt", hint=f"it has {_listed(frame)}")
        q_names = action_columns(frame.columns, "q_action_", path)
        reward_names = action_columns(frame.columns, "reward_action_", path)
        if q_names and reward_names and len(q_names) != len(reward_names):
            raise DataError(
                f"{path} has {len(q_names)} q_action columns and {len(reward_names)} reward_action"
                " columns",
                hint="run gptoss calc-reward on it again",
            )
        for kind, found in (("q_action", q_names), ("reward_action", reward_names)):
            if found:
                self.having.add(kind)
            else:
                self.lacking.setdefault(kind, path)
        width = max(len(q_names), len(reward_names))
        if not width:
            raise DataError(f"{path} has neither q_action nor reward_action columns")
        n_actions = row_actions(frame, width, path, first_row)
        beyond = np.arange(width) >= n_actions[:, None]
        for names, into in ((q_names, self.q), (reward_names, self.rewards)):
            read = [numbers(frame, name, path, first_row) for name in names]
            block = np.stack(read, axis=1) if names else np.full((len(frame), width), np.nan)
            into.append(np.where(beyond, np.nan, block))
        if reward_names and np.isinf(self.rewards[-1]).any():
            row, action = np.argwhere(np.isinf(self.rewards[-1]))[0]
            raise DataError(f"{path} row {first_row + row}, {reward_names[action]} is infinite")
        self.n_actions.append(n_actions)
        cells = enumerate(values(frame, "prompt"), start=first_row)
        self.prompts += [prompt_of(cell, f"{path} row {row}") for row, cell in cells]
        others = [c for c in frame.columns if c not in {"prompt", *q_names, *reward_names}]
        self.columns.append(frame.loc[:, others].astype(object))

    def table(self) -> DecisionTable:
        for kind in self.having & self.lacking.keys():
            raise DataError(
                f"{self.lacking[kind]} has no {kind} columns, while other tables have them",
                hint="run gptoss calc-reward on it, or leave it out",
            )
        if not self.prompts:
            raise DataError(f"{', '.join(self.paths)}: no rows")
        width = max(block.shape[1] for block in self.q)
        q, rewards = _stack(self.q, width), _stack(self.rewards, width)
        n_actions = np.concatenate(self.n_actions)
        held = rewards if "reward_action" in self.having else None
        return DecisionTable(
            prompts=self.prompts,
            q=q if "q_action" in self.having else None,
            rewards=held,
            n_actions=n_actions,
            columns=pd.concat(self.columns, ignore_index=True),
            sha256=_digest(self.prompts, n_actions, held),
            _starts=self.starts,
            _paths=self.paths,
        )


def _harmony_prompt(cell: Any, place: str) -> str:
    if not isinstance(cell, str) or not cell.strip():
        raise DataError(f"{place} has no prompt")
    if not is_harmony(cell):
        raise DataError(
            f"{place}: the prompt is not in Harmony form", hint="run gptoss convert-harmony first"
        )
    if not cell.endswith(GENERATION_PROMPT):
        raise DataError(
            f"{place}: the prompt does not end with {GENERATION_PROMPT}, where gpt-oss answers",
            hint="remove what follows it, or convert the original text again",
        )
    return cell


def _stack(blocks: list[np.ndarray], width: int) -> np.ndarray:
    padded = [np.pad(b, ((0, 0), (0, width - b.shape[1])), constant_values=np.nan) for b in blocks]
    return np.concatenate(padded)


def _digest(prompts: list[str], n_actions: np.ndarray, rewards: np.ndarray | None) -> str:
    digest = hashlib.sha256()
    for row, prompt in enumerate(prompts):
        text = prompt.encode()
        count = int(n_actions[row])
        digest.update(f"{len(text)} {count} ".encode() + text)
        if rewards is not None:
            # Every NaN and both zeros mean one thing each, whatever bits a file format kept.
            held = rewards[row, :count] + 0.0
            digest.update(np.where(np.isnan(held), np.nan, held).astype("<f8").tobytes())
    return digest.hexdigest()


def _listed(frame: pd.DataFrame) -> str:
    return ", ".join(str(name) for name in frame.columns) or "no columns"
