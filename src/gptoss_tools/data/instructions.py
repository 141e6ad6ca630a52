"""Instructions and their answers, from tables, JSON files or a dataset of the Hub.

Which columns hold them: data.instruction_rows. Where rows come from: data.sources. How an example
becomes text: data.prompter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_tools.chat.families import RawPrompts
from gptoss_tools.chat.harmony_reading import messages_of_text
from gptoss_tools.core.stream import StepStream
from gptoss_tools.data.decisions import as_messages, load_table
from gptoss_tools.data.instruction_rows import (
    READERS,
    Conversation,
    Example,
    Rendered,
    format_of,
)
from gptoss_tools.data.sources import read_sources, rows_of
from gptoss_tools.errors import DataError


@dataclass(frozen=True)
class Instructions:
    """Examples in the order of their files; `places` says of each where it comes from."""

    examples: list[Example]
    places: list[str]

    def __len__(self) -> int:
        return len(self.examples)


def load_instructions(
    paths: Sequence[str] | str,
    *,
    data_format: str = "auto",
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    turns: str = "all",
    max_examples: int | None = None,
    seed: int = 42,
    encoding: str = "utf-8",
    delimiter: str = ",",
    rendered: bool = True,
    **harmony: Any,
) -> Instructions:
    """Read the examples of files, folders and globs, or of a Hub dataset's `split` and `subset`.

    `turns`: every answer of a conversation is an example ("all"), or its last one ("last").
    `max_examples` draws that many at random under `seed`. The prompts of decision tables come
    `rendered` for gpt-oss, for which `harmony` goes to `load_table`, or as messages. Raises
    DataError naming file, row and column, MachineError where the Hub does not give a dataset.
    """
    paths = [paths] if isinstance(paths, str) else paths
    found = Instructions([], [])
    part = {"split": split, "subset": subset, "revision": revision}
    for where, frames in read_sources(paths, **part, encoding=encoding, delimiter=delimiter):
        first_row = 1
        for frame in frames:
            kind = format_of(map(str, frame.columns), data_format, where)
            if kind == "decisions":
                options = {"encoding": encoding, "delimiter": delimiter, **harmony}
                _add_decisions(found, where, rendered, **options)
                break
            for place, cells in enumerate(rows_of(frame)):
                row = f"{where} row {first_row + place}"
                for example in READERS[kind](cells, row, turns):
                    found.examples.append(example)
                    found.places.append(row)
            first_row += len(frame)
    if not found.examples:
        raise DataError(f"{', '.join(paths)}: there are no examples in it")
    if max_examples is not None and max_examples < len(found):
        drawn = np.sort(StepStream(len(found), max_examples, 1, seed).draw(0))
        found = Instructions(*([part[i] for i in drawn] for part in (found.examples, found.places)))
    return found


def _add_decisions(found: Instructions, path: str, rendered: bool, **options: Any) -> None:
    """The best action of every row of a decision table, as models are asked to answer."""
    if not Path(path).is_file():
        raise DataError(f"{path} is a decision table: download it and name the file")
    table = load_table(path, **options, prompts=None if rendered else RawPrompts())
    worth = table.q if table.q is not None else table.rewards
    assert worth is not None  # load_table refuses tables without values
    for row, prompt in enumerate(table.prompts):
        where = table.where(row)
        if np.isnan(worth[row]).all():
            raise DataError(f"{where} has no values, so no best action")
        best = int(np.nanargmax(worth[row]))
        name = table.names[row][best] if table.names and table.names[row] else best
        found.examples.append(_decision(prompt, f"[{name}]", rendered))
        found.places.append(where)


def _decision(prompt: str, answer: str, rendered: bool) -> Example:
    if rendered:
        return Rendered(prompt, answer)
    messages = as_messages(prompt) or messages_of_text(prompt)
    return Conversation((*messages, {"role": "assistant", "content": answer}))
