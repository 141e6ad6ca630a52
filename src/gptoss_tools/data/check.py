"""Find every problem of every table at once: what `check-data` does.

Asks what training will ask, and what only shows afterwards in wasted hours: rewards that no longer
fit their values, rows that come twice. Reads in chunks; per row it keeps 8 bytes. Repairs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gptoss_tools.chat.harmony import GENERATION_PROMPT, find_special, is_harmony
from gptoss_tools.data.check_prompts import PromptCheck
from gptoss_tools.data.columns import row_actions, row_efforts
from gptoss_tools.data.convert import convert_prompt
from gptoss_tools.data.decisions import as_messages, refuse_answered
from gptoss_tools.data.duplicates import SeenRows
from gptoss_tools.data.prompt_columns import is_harmony_column
from gptoss_tools.data.rewrite import Progress
from gptoss_tools.data.stages import expand
from gptoss_tools.data.tables import numbers, read_chunks, text_column, values
from gptoss_tools.errors import DataError

# Two values closer than this, relative to their size, count as equal.
TOLERANCE = 1e-9
# Any day will do to see whether messages can be rendered.
_RENDERING: dict[str, Any] = {"date": "2000-01-01"}


@dataclass(frozen=True)
class Problem:
    """One thing wrong; `row` counts from 1 below the header, None where the whole file is meant."""

    file: Path
    row: int | None
    column: str | None
    message: str

    def __str__(self) -> str:
        row = "" if self.row is None else f" row {self.row}"
        column = "" if self.column is None else f", column {self.column}"
        return f"{self.file}{row}{column}: {self.message}"


def check(
    paths: Sequence[str | Path],
    *,
    encoding: str = "utf-8",
    delimiter: str = ",",
    shard: str | None = None,
    limit: int = 20,
    on_progress: Progress | None = None,
    on_prompts: Callable[[Path, str], None] | None = None,
) -> list[Problem]:
    """All problems that stand between these tables and training, in file and row order.

    Of each kind at most `limit` rows per file are listed, the rest is counted in one more line.
    `on_prompts` hears of each table with answers, references or rubrics what it holds. Raises
    DataError only where the paths themselves lead to no table.
    """
    problems: list[Problem] = []
    seen = SeenRows()
    for path in expand(paths, stage="check", shard=shard):
        file = _FileCheck(path, limit)
        try:
            for frame in read_chunks(path, encoding=encoding, delimiter=delimiter):
                file.add(frame)
                seen.add(path, frame)
                if on_progress is not None:
                    on_progress(path, file.rows)
        except DataError as error:
            file.say(None, None, str(error).removeprefix(str(path)).lstrip(" :,"))
        file.finish()
        problems += file.problems
        if on_prompts is not None and (summary := file.prompts.summary()):
            on_prompts(path, summary)
    repeats, more = seen.repeats(limit)
    problems += [Problem(f, r, None, f"the row repeats {o} row {n}") for f, r, o, n in repeats]
    if more:
        problems.append(Problem(repeats[-1][0], None, None, f"... and {more} more repeated rows"))
    return problems


class _FileCheck:
    """Collects the problems of one file, chunk by chunk."""

    def __init__(self, path: Path, limit: int):
        self.path, self.limit = path, limit
        self.problems: list[Problem] = []
        self.rows = 0
        self._counts: Counter[tuple[str | None, str]] = Counter()
        self._sums_to_one = 0
        self._sums: list[tuple[int, float]] = []
        self.prompts = PromptCheck(self.say)

    def say(self, row: int | None, column: str | None, message: str, kind: str = "") -> None:
        """Note a problem; of one column and kind only the first `limit` are kept."""
        key = (column, kind or message)
        self._counts[key] += 1
        if self._counts[key] <= self.limit:
            self.problems.append(Problem(self.path, row, column, message))

    def add(self, frame: pd.DataFrame) -> None:
        """Check the rows of one chunk."""
        first_row = self.rows + 1
        self.rows += len(frame)
        if first_row == 1 and not len(frame):
            self.say(None, None, "the table has no rows")
            return
        if "prompt" in frame:
            self._check_prompts(frame, first_row)
        else:
            text = "the column is missing (gptoss prepare-data makes tables of prompts)"
            self._once("prompt", text)
        row_efforts(frame, "medium", "", first_row, self._say_cell)
        try:
            choice = row_actions(frame, "the table", first_row, self._say_cell)
        except DataError as error:
            self._once(None, str(error))
            return
        frame, q_names, reward_names = choice.frame, choice.q, choice.rewards
        has_values = bool(q_names or reward_names)
        if self.prompts.add(frame, first_row, alone=not has_values) and not has_values:
            return
        inside = np.arange(max(len(q_names), len(reward_names))) < choice.counts[:, None]
        if not q_names:
            self._once("q_action_0", "the q_action columns are missing")
        if not reward_names:
            self._once("reward_action_0", "the reward columns are missing: run gptoss calc-reward")
        q = self._values(frame, q_names, first_row)
        rewards = self._values(frame, reward_names, first_row)
        if q_names:
            masked = np.isnan(q)
            if len(q_names) == len(reward_names):
                # --missing mask: an unknown value without a reward, beside actions that have one.
                masked &= np.isnan(rewards) & (~np.isnan(rewards)).any(axis=1, keepdims=True)
            else:
                masked[:] = False
            self._check_q(q, inside[:, : len(q_names)] & ~masked, q_names, first_row)
            if "optimal_action" in frame:
                self._check_optimal(frame, q, inside[:, : len(q_names)], first_row)
        if reward_names:
            self._check_rewards(rewards, inside[:, : len(reward_names)], reward_names, first_row)
        if inside.shape[1]:
            for name in (c for c in frame.columns if str(c).startswith("baseline_")):
                self._choices(frame, name, inside, first_row)
        if q_names and reward_names:
            if len(q_names) != len(reward_names):
                text = f"{len(q_names)} q_action but {len(reward_names)} reward_action columns"
                self._once(None, text)
                return
            self._check_stale(q, rewards, inside, q_names, reward_names, first_row)

    def finish(self) -> None:
        """What can be said only after the last row."""
        # Softmax rewards sum to 1; other methods' do not, so only an exception among many counts.
        if self._sums_to_one > self.rows / 2:
            for row, total in self._sums:
                self.say(row, None, f"the rewards sum to {total:.9g}, not to 1", "sum")
        self.problems.sort(key=lambda problem: problem.row or 0)
        for (column, kind), count in self._counts.items():
            if count > self.limit:
                text = f"... and {count - self.limit} more rows like the above ({kind})"
                self.problems.append(Problem(self.path, None, column, text))

    def _say_cell(self, row: int, column: str, message: str) -> None:
        self.say(row, column, message, "this column")

    def _once(self, column: str | None, message: str) -> None:
        if not self._counts[(column, message)]:
            self.say(None, column, message)

    def _check_prompts(self, frame: pd.DataFrame, first_row: int) -> None:
        cells = text_column(frame, "prompt")
        if cells is None:
            odd, found = range(len(frame)), values(frame, "prompt")
        else:
            odd = np.flatnonzero(~is_harmony_column(cells, complete=True))
            found = cells.take(odd).to_pylist()
        for place, cell in zip(odd, found, strict=True):
            message, kind = _prompt_problem(cell)
            if message:
                self.say(first_row + int(place), "prompt", message, kind)

    def _values(self, frame: pd.DataFrame, names: list[str], first_row: int) -> np.ndarray:
        """Columns as [R, K]; a cell that is no number is noted and read as NaN of its own kind."""
        columns = []
        for name in names:
            try:
                columns.append(numbers(frame, name, str(self.path), first_row))
            except DataError:
                columns.append(self._slowly(frame, name, first_row))
        return np.stack(columns, axis=1) if columns else np.empty((len(frame), 0))

    def _slowly(self, frame: pd.DataFrame, name: str, first_row: int) -> np.ndarray:
        found = np.full(len(frame), np.nan)
        for place, cell in enumerate(values(frame, name)):
            one = pd.DataFrame({name: pd.Series([cell], dtype=object)})
            try:
                found[place] = numbers(one, name, "")[0]
            except DataError:
                self.say(first_row + place, name, f"{cell!r} is not a number", "not a number")
                found[place] = 0.0  # said once: not also missing
        return found

    def _check_q(self, q: np.ndarray, inside: np.ndarray, names: list[str], first_row: int) -> None:
        for bad, text in (
            (np.isnan(q) & inside, "the value is missing (empty or NaN)"),
            (np.isposinf(q) & inside, "the value is +inf"),
        ):
            for row, action in np.argwhere(bad):
                self.say(first_row + int(row), names[action], text)
        for row in np.flatnonzero(~(np.isfinite(q) & inside).any(axis=1)):
            self.say(first_row + int(row), None, "no q_action has a finite value")

    def _check_rewards(
        self, rewards: np.ndarray, inside: np.ndarray, names: list[str], first_row: int
    ) -> None:
        for row, action in np.argwhere(np.isinf(rewards) & inside):
            self.say(first_row + int(row), names[action], "the reward is infinite")
        held = ~np.isnan(rewards) & inside
        for row in np.flatnonzero(~held.any(axis=1)):
            self.say(first_row + int(row), None, "no action has a reward")
        totals = np.where(held, rewards, 0).sum(axis=1)
        good = np.abs(totals - 1) <= 1e-6
        self._sums_to_one += int(good.sum())
        room = self.limit + 1 - len(self._sums)
        off = np.flatnonzero(~good & held.any(axis=1))[: max(room, 0)]
        self._sums += [(first_row + int(row), float(totals[row])) for row in off]

    def _check_optimal(
        self, frame: pd.DataFrame, q: np.ndarray, inside: np.ndarray, first_row: int
    ) -> None:
        index = self._choices(frame, "optimal_action", inside, first_row)
        valued = np.where(np.isnan(q) | ~inside, -np.inf, q)
        best = valued.max(axis=1)
        own = valued[np.arange(len(q)), np.maximum(index, 0)]
        with np.errstate(invalid="ignore"):
            worse = own < best - TOLERANCE * np.maximum(1, np.abs(best))
        for row in np.flatnonzero((index >= 0) & worse & np.isfinite(best)):
            text = f"action {index[row]} is not the best: action {int(valued[row].argmax())} is"
            self.say(first_row + int(row), "optimal_action", text, "not the best")

    def _choices(
        self, frame: pd.DataFrame, name: str, inside: np.ndarray, first_row: int
    ) -> np.ndarray:
        """A column of actions [R]; -1 where it is empty or, as is noted, no action of the row."""
        chosen = self._values(frame, [name], first_row)[:, 0]
        known = (chosen == np.floor(chosen)) & (chosen >= 0) & (chosen < inside.sum(axis=1))
        for row in np.flatnonzero(~known & ~np.isnan(chosen)):
            text = f"{chosen[row]:g} is not one of the row's actions"
            self.say(first_row + int(row), name, text, "no such action")
        return np.where(known, chosen, -1).astype(int)

    def _check_stale(
        self,
        q: np.ndarray,
        rewards: np.ndarray,
        inside: np.ndarray,
        q_names: list[str],
        names: list[str],
        first_row: int,
    ) -> None:
        """Whatever the method and tau, a better action never has the smaller reward."""
        known = inside & ~np.isnan(q) & ~np.isposinf(q)
        for row, action in np.argwhere(np.isnan(rewards) & known):
            text = f"the reward is missing though {q_names[action]} has a value"
            self.say(first_row + int(row), names[action], text, "reward missing")
        compared = known & np.isfinite(rewards)
        order = np.argsort(np.where(compared, q, np.inf), axis=1, kind="stable")
        by_value = np.take_along_axis(np.where(compared, rewards, np.nan), order, axis=1)
        ahead = np.fmax.accumulate(by_value, axis=1)
        with np.errstate(invalid="ignore"):
            wrong = (by_value[:, 1:] < ahead[:, :-1] - TOLERANCE).any(axis=1)
        for row in np.flatnonzero(wrong):
            text = "the rewards do not fit the Q values: run gptoss calc-reward again"
            self.say(first_row + int(row), None, text)


def _prompt_problem(cell: Any) -> tuple[str, str]:
    """What keeps a prompt from being trained on, and the kind of problem; empty if nothing."""
    if not isinstance(cell, list) and (not isinstance(cell, str) or not cell.strip()):
        return "the prompt is empty", ""
    if (messages := as_messages(cell)) is not None:
        try:
            refuse_answered(messages)
            convert_prompt(cell, "messages", _RENDERING)
        except DataError as error:
            return str(error), "messages"
    elif not isinstance(cell, str):
        return "the prompt is neither text nor a list of messages", ""
    elif is_harmony(cell):
        if not cell.endswith(GENERATION_PROMPT):
            return f"the prompt does not end with {GENERATION_PROMPT}", ""
    elif special := find_special(cell):
        return f"the prompt contains {special}, a special token of gpt-oss", "special token"
    else:
        return "the prompt is not in Harmony form: run gptoss convert-harmony", ""
    return "", ""
