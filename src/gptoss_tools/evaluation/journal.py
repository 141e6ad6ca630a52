"""answers.jsonl: every answer as soon as it is there, so that an interruption costs one batch.

The first line says what the answers depend on; a journal of anything else is not continued. Keys
are who answered, the draw (None: greedy) and the question. Leaves out what answers are worth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_tools.core.history import append
from gptoss_tools.errors import RunFolderError

NAME = "answers.jsonl"

Key = tuple[str, int | None, str]
"""Who ("policy" or "base"), draw, question ("17" is the table's row 17, from 0)."""


class Journal:
    """Open `folder`'s journal, or begin it; `plan` holds plain JSON values.

    Raises RunFolderError where the folder holds answers of another plan.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.path = folder / NAME
        self.answers: dict[Key, dict[str, Any]] = {}
        if not self.path.exists() or self.path.stat().st_size == 0:
            append(self.path, json.dumps({"plan": plan}, ensure_ascii=False) + "\n")
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            lines = file.readlines()
        _refuse_other_plan(self.path, _object(lines[0]).get("plan"), plan)
        for record in map(_object, lines[1:]):
            if "who" in record:
                key = (record["who"], record["draw"], record["question"])
                self.answers[key] = record
        if not lines[-1].endswith("\n"):  # a kill cut the last line off
            append(self.path, "\n")

    def __len__(self) -> int:
        return len(self.answers)

    def get(self, key: Key) -> dict[str, Any] | None:
        """Return the record of an answer that is there already."""
        return self.answers.get(key)

    def add(self, key: Key, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write an answer down; return its record as `get` will."""
        who, draw, question = key
        whole = {"who": who, "draw": draw, "question": question, **record}
        append(self.path, json.dumps(whole, ensure_ascii=False) + "\n")
        self.answers[key] = whole
        return whole


def _object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _refuse_other_plan(path: Path, held: Any, plan: Mapping[str, Any]) -> None:
    if held == plan:
        return
    if not isinstance(held, dict):
        raise RunFolderError(
            f"{path} is no journal of an evaluation", hint="name another folder with --out"
        )
    names = [name for name in sorted({*held, *plan}) if held.get(name) != plan.get(name)]
    raise RunFolderError(
        f"{path.parent} holds an evaluation of something else: {', '.join(names)} differ",
        hint="--overwrite replaces it, --out names another folder",
    )
