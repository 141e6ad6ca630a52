"""Rows of decisions: which files hold them, which columns, and all of them in memory for training.

Columns: `prompt`, values per action (data.columns says which; K may differ per row), anything else.
Leaves out which files are taken (data.stages; Hub ids would enter there), how they are read
(data.tables) and what rewards mean.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gptoss_tools.chat.families import HarmonyPrompts, Prompts
from gptoss_tools.data.columns import row_actions, row_efforts
from gptoss_tools.data.stages import expand
from gptoss_tools.data.tables import is_missing, numbers, read_chunks
from gptoss_tools.data.tables import values as cells_of
from gptoss_tools.errors import DataError

__all__ = ["DecisionTable", "as_messages", "expand", "load_table"]


@dataclass(frozen=True)
class DecisionTable:
    """R rows ready for training or evaluation, in file order; K is the largest number of actions.

    `rewards` is None where no file has reward columns, `q` where none has Q columns; both are
    float64 [R, K], NaN beyond a row's `n_actions` and where a value is unknown. `names` has the
    names of each row's actions, an empty list where they are numbered; None where all rows are.
    Rows that no file gives values have no actions; `columns` holds what else the files hold.
    """

    prompts: list[str]
    q: np.ndarray | None
    rewards: np.ndarray | None
    n_actions: np.ndarray
    columns: pd.DataFrame
    sha256: str
    _starts: list[int] = field(repr=False)
    _paths: list[str] = field(repr=False)
    names: list[list[str]] | None = None
    _headers: list[list[str]] = field(repr=False, default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)

    def where(self, row: int) -> str:
        """`file row N` of a 0-based row, counting from 1 as error messages do."""
        part = bisect.bisect_right(self._starts, row) - 1
        return f"{self._paths[part]} row {row - self._starts[part] + 1}"

    def require(self, columns: Mapping[str, str]) -> None:
        """Raise DataError for a file without one of `columns`, each with the reward it is for."""
        for path, header in zip(self._paths, self._headers, strict=True):
            _require(columns, path, header)

    def cells(self, row: int) -> dict[str, Any]:
        """What else a row holds, by column, as plain JSON values; None where a cell is empty."""
        return {name: _plain(cells[row]) for name, cells in self._lists.items()}

    @functools.cached_property
    def _lists(self) -> dict[str, list[Any]]:
        # A row of a frame takes ten times as long as a place in lists.
        return {str(name): self.columns[name].tolist() for name in self.columns.columns}


def as_messages(cell: Any) -> list[dict[str, Any]] | None:
    """The messages a prompt cell holds, as a list or as its JSON text; None if it is plain text."""
    if isinstance(cell, str) and cell.lstrip()[:1] == "[":
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    if isinstance(cell, list) and cell and all(isinstance(m, dict) and "role" in m for m in cell):
        # Parquet stores one schema for all messages and fills absent keys with None.
        return [{k: v for k, v in m.items() if v is not None} for m in cell]
    return None


def refuse_answered(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise DataError for messages that end with an answer: there is none left to give."""
    if messages[-1]["role"] == "assistant":
        raise DataError(
            "the last message is an answer of the assistant, so there is none left to give",
            hint="leave that message out; gptoss train-sft learns from answers",
        )


def load_table(
    paths: Sequence[str | Path] | str | Path,
    *,
    encoding: str = "utf-8",
    delimiter: str = ",",
    date: str | None = None,
    reasoning_effort: str = "medium",
    model_identity: str | None = None,
    actions: Sequence[str] = (),
    values: bool = True,
    columns: Mapping[str, str] | None = None,
    prompts: Prompts | None = None,
) -> DecisionTable:
    """Read all rows of files, folders and globs, prompts as Harmony text or as `prompts` has it.

    Prompts held as messages are rendered with the row's own `reasoning_effort` or this one, and as
    Harmony with `date` (default today) and `model_identity`; rendered prompts stay. A row without
    names in a column `actions` takes the first of `actions`, if any are given. Without
    `values` a table need not have them; `columns` are those that it must have, each with the reward
    that reads it. `sha256` covers prompts, names and rewards in order, not paths or other columns.
    Raises DataError naming file, row and column.
    """
    prompts = prompts or HarmonyPrompts(date, model_identity)
    parts = _Parts(prompts, reasoning_effort, [name.strip() for name in actions])
    parts.needs_values, parts.needs = values, columns or {}
    for path in expand(paths, stage="train"):
        parts.begin(str(path))
        first_row = 1
        for frame in read_chunks(path, encoding=encoding, delimiter=delimiter):
            parts.add(frame, str(path), first_row)
            first_row += len(frame)
    return parts.table()


# The columns beside the prompt that `gptoss prepare-data` writes.
PREPARED = ("answer", "reference", "rubric")


class _Parts:
    """Collects chunks of several files into one table."""

    def __init__(self, write: Prompts, effort: str, actions: list[str]) -> None:
        self.write, self.effort, self.actions = write, effort, actions
        self.prompts: list[str] = []
        self.q: list[np.ndarray] = []
        self.rewards: list[np.ndarray] = []
        self.n_actions: list[np.ndarray] = []
        self.names: list[list[str]] = []
        self.columns: list[pd.DataFrame] = []
        self.starts: list[int] = []
        self.paths: list[str] = []
        self.headers: list[list[str]] = []
        self.lacking: dict[str, str] = {}
        self.having: set[str] = set()
        self.needs_values = True
        self.needs: Mapping[str, str] = {}

    def begin(self, path: str) -> None:
        self.starts.append(len(self.prompts))
        self.paths.append(path)

    def add(self, frame: pd.DataFrame, path: str, first_row: int) -> None:
        if "prompt" not in frame:
            hint = f"it has {_listed(frame)}; gptoss prepare-data {path} makes tables of prompts"
            raise DataError(f"{path} has no column prompt", hint)
        header = [str(name) for name in frame.columns]
        _require(self.needs, path, header)
        if len(self.headers) < len(self.paths):
            self.headers.append(header)
        self.headers[-1] = [name for name in self.headers[-1] if name in header]
        choice = row_actions(frame, path, first_row)
        frame, q_names, reward_names = choice.frame, choice.q, choice.rewards
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
        if not width and self.needs_values:
            raise DataError(
                f"{path} has neither q_action nor reward_action columns",
                hint="other rewards than `decision` need none of them: gptoss rewards lists all",
            )
        beyond = np.arange(width) >= choice.counts[:, None]
        for names, into in ((q_names, self.q), (reward_names, self.rewards)):
            read = [numbers(frame, name, path, first_row) for name in names]
            block = np.stack(read, axis=1) if names else np.full((len(frame), width), np.nan)
            into.append(np.where(beyond, np.nan, block))
        if reward_names and np.isinf(self.rewards[-1]).any():
            row, action = np.argwhere(np.isinf(self.rewards[-1]))[0]
            raise DataError(f"{path} row {first_row + row}, {reward_names[action]} is infinite")
        self.n_actions.append(choice.counts)
        efforts = row_efforts(frame, self.effort, path, first_row)
        for place, cell in enumerate(cells_of(frame, "prompt")):
            where, count = f"{path} row {first_row + place}", int(choice.counts[place])
            self.prompts.append(self._prompt(cell, where, efforts[place]))
            self.names.append(choice.names[place] or self._usual_names(count, where))
        others = [c for c in frame.columns if c not in {"prompt", *q_names, *reward_names}]
        self.columns.append(frame.loc[:, others].astype(object))

    def _prompt(self, cell: Any, where: str, effort: str) -> str:
        messages = as_messages(cell)
        if messages is None and (not isinstance(cell, str) or not cell.strip()):
            raise DataError(f"{where} has no prompt")
        try:
            if messages is None:
                return self.write.of_text(cell, reasoning_effort=effort, from_table=True)
            refuse_answered(messages)
            return self.write.prompt(messages, reasoning_effort=effort)
        except DataError as error:
            raise DataError(f"{where}: {error}", hint=error.hint) from error

    def _usual_names(self, count: int, where: str) -> list[str]:
        """The setting's names for a row that has none of its own."""
        if self.actions and count > len(self.actions):
            raise DataError(
                f"{where} has {count} actions, and `actions` names {len(self.actions)}",
                hint="name as many as the row with the most has, or add a column actions",
            )
        return self.actions[:count]

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
        names = self.names if any(self.names) else None
        return DecisionTable(
            prompts=self.prompts,
            q=q if "q_action" in self.having else None,
            rewards=held,
            n_actions=n_actions,
            columns=pd.concat(self.columns, ignore_index=True),
            sha256=_digest(self.prompts, n_actions, held, names),
            _starts=self.starts,
            _paths=self.paths,
            names=names,
            _headers=self.headers,
        )


def _require(columns: Mapping[str, str], path: str, header: list[str]) -> None:
    for column, reward in columns.items():
        if column not in header:
            prepared = f"; gptoss prepare-data makes tables with {column}"
            raise DataError(
                f"{path} has no column {column}, which the reward {reward} reads",
                hint=f"it has {', '.join(header)}" + prepared * (column in PREPARED),
            )


def _stack(blocks: list[np.ndarray], width: int) -> np.ndarray:
    padded = [np.pad(b, ((0, 0), (0, width - b.shape[1])), constant_values=np.nan) for b in blocks]
    return np.concatenate(padded)


def _digest(
    prompts: list[str],
    n_actions: np.ndarray,
    rewards: np.ndarray | None,
    names: list[list[str]] | None,
) -> str:
    digest = hashlib.sha256()
    for row, prompt in enumerate(prompts):
        text = prompt.encode()
        count = int(n_actions[row])
        digest.update(f"{len(text)} {count} ".encode() + text)
        if names is not None:
            digest.update(json.dumps(names[row]).encode())
        if rewards is not None:
            # Every NaN and both zeros mean one thing each, whatever bits a file format kept.
            held = rewards[row, :count] + 0.0
            digest.update(np.where(np.isnan(held), np.nan, held).astype("<f8").tobytes())
    return digest.hexdigest()


def _plain(cell: Any) -> Any:
    if isinstance(cell, dict):
        return {str(name): _plain(value) for name, value in cell.items()}
    if hasattr(cell, "tolist"):  # pandas reads Parquet's lists as arrays, its numbers as NumPy's
        cell = cell.tolist()
    if isinstance(cell, list | tuple):
        return [_plain(value) for value in cell]
    if isinstance(cell, str):
        return cell if cell.strip() else None
    if is_missing(cell):
        return None
    return cell if isinstance(cell, bool | int | float) else str(cell)


def _listed(frame: pd.DataFrame) -> str:
    return ", ".join(str(name) for name in frame.columns) or "no columns"
