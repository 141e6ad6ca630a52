"""What a table still lacks before it can be trained on: Harmony prompts, rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss_tools.chat.harmony import is_harmony
from gptoss_tools.data.columns import row_actions
from gptoss_tools.data.decisions import as_messages
from gptoss_tools.data.stages import expand
from gptoss_tools.data.tables import read_chunks, values


@dataclass(frozen=True)
class Readiness:
    """What one table has: rows, prompts that are all Harmony text or messages, reward columns.

    `rewards` also where there are no values that they could be made of: other rewards than
    `decision` need none.
    """

    path: Path
    rows: int
    harmony: bool
    rewards: bool

    @property
    def ready(self) -> bool:
        return self.harmony and self.rewards


def survey(
    paths: Sequence[str | Path], *, encoding: str = "utf-8", delimiter: str = ","
) -> list[Readiness]:
    """Look at the furthest table of every family under `paths`.

    Raises DataError for paths that lead to no table and for tables that cannot be read; what else
    may be wrong is for `check` to say.
    """
    found = []
    for path in expand(paths, stage="train"):
        rows, harmony, rewards = 0, True, True
        for frame in read_chunks(path, encoding=encoding, delimiter=delimiter):
            if "prompt" in frame:
                harmony = harmony and all(map(_is_rendered, values(frame, "prompt")))
            found_here = row_actions(frame, str(path), rows + 1)
            rewards = rewards and (bool(found_here.rewards) or not found_here.q)
            rows += len(frame)
        found.append(Readiness(path, rows, harmony, rewards))
    return found


def _is_rendered(cell: object) -> bool:
    return as_messages(cell) is not None or (isinstance(cell, str) and is_harmony(cell))
