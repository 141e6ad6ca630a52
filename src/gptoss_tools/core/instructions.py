"""Instructions and their answers, from tables, JSON files or a dataset of the Hub.

Which columns hold them: core.instruction_rows. How an example becomes text: core.prompter.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gptoss_tools.core.data import load_table
from gptoss_tools.core.instruction_rows import READERS, Example, Rendered, format_of
from gptoss_tools.core.stages import expand
from gptoss_tools.core.stream import StepStream
from gptoss_tools.core.tables import SUFFIXES, read_chunks, values
from gptoss_tools.errors import DataError, MachineError, first_line

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
    turns: str = "all",
    max_examples: int | None = None,
    seed: int = 42,
    encoding: str = "utf-8",
    delimiter: str = ",",
    **harmony: Any,
) -> Instructions:
    """Read the examples of files, folders and globs, or of a Hub dataset's `split`.

    `turns`: every answer of a conversation is an example ("all"), or its last one ("last").
    `max_examples` draws that many at random under `seed`. `harmony` goes to `load_table`. Raises
    DataError naming file, row and column, MachineError where the Hub does not give a dataset.
    """
    paths = [paths] if isinstance(paths, str) else paths
    found = Instructions([], [])
    for where, frames in _sources(paths, split, encoding, delimiter):
        first_row = 1
        for frame in frames:
            kind = format_of(map(str, frame.columns), data_format, where)
            if kind == "decisions":
                _add_decisions(found, where, encoding=encoding, delimiter=delimiter, **harmony)
                break
            for place, cells in enumerate(_rows(frame)):
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


def _sources(
    paths: Sequence[str], split: str, encoding: str, delimiter: str
) -> Iterator[tuple[str, Iterator[pd.DataFrame]]]:
    """Every file once, and every dataset of the Hub."""
    seen: set[Path] = set()
    for path in paths:
        if _is_hub_id(path):
            yield path, read_hub(path, split)
            continue
        for file in _files(path):
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield str(file), _frames(file, encoding, delimiter)


def read_hub(name: str, split: str) -> Iterator[pd.DataFrame]:
    """Yield a dataset of the Hub (or a folder `datasets` can read) as frames of Python objects."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub import constants as hub

    try:
        if not Path(name).is_dir() and not hub.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, timeout=10)  # or an unreachable Hub is retried for minutes
        loaded: Any = datasets.load_dataset(name, split=split)
    except Exception as error:  # whichever library fails below has classes of its own
        if isinstance(error, ValueError) and "split" in str(error).lower():
            raise DataError(f"{name} has no split {split!r}: {first_line(error)}") from error
        raise MachineError(
            f"data {name} is no file here and the Hub did not give it: {first_line(error)}",
            hint="check the name and the network, log in for gated data, or name a file",
        ) from error
    for batch in loaded.iter(batch_size=10_000):
        yield pd.DataFrame({column: _objects(cells) for column, cells in batch.items()})


def _is_hub_id(path: str) -> bool:
    return (
        _HUB_ID.fullmatch(path) is not None
        and not path.startswith(".")
        and Path(path).suffix.lower() not in (*SUFFIXES, ".json")
        and not Path(path).exists()
        and not Path(path).parent.is_dir()  # then it is a name mistyped
    )


def _files(path: str) -> list[Path]:
    """Tables as every command finds them, and JSON files, which only this one reads."""
    if Path(path).suffix.lower() == ".json" and Path(path).is_file():
        return [Path(path)]
    # An empty path is refused by `expand`; here it would become the root of the file system.
    pattern = f"{path}/**/*.json" if path and Path(path).is_dir() else path
    names = glob.glob(pattern, recursive=True)
    found = [Path(name) for name in sorted(names) if name.endswith(".json")]
    try:
        return [*expand(path, stage="train"), *found]
    except DataError:
        if not found:
            raise
        return found


def _frames(path: Path, encoding: str, delimiter: str) -> Iterator[pd.DataFrame]:
    if path.suffix.lower() != ".json":
        yield from read_chunks(path, encoding=encoding, delimiter=delimiter)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig" if encoding == "utf-8" else encoding))
    except (OSError, ValueError) as error:
        hint = "one object per line is JSONL: name such a file .jsonl"
        raise DataError(f"{path} cannot be read as JSON: {first_line(error)}", hint) from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds no JSON array", hint="[ {...}, {...} ], or JSONL")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path} row {number} is not a JSON object")
    columns = dict.fromkeys(name for row in rows for name in row)
    yield pd.DataFrame({name: _objects([row.get(name) for row in rows]) for name in columns})


def _rows(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    columns = {str(name): values(frame, name) for name in frame.columns}
    for place in range(len(frame)):
        yield {name: cells[place] for name, cells in columns.items()}


def _add_decisions(found: Instructions, path: str, **options: Any) -> None:
    """The best action of every row of a decision table, as gpt-oss is asked to answer."""
    if not Path(path).is_file():
        raise DataError(f"{path} is a decision table: download it and name the file")
    table = load_table(path, **options)
    worth = table.q if table.q is not None else table.rewards
    assert worth is not None  # load_table refuses tables without values
    for row, prompt in enumerate(table.prompts):
        where = table.where(row)
        if np.isnan(worth[row]).all():
            raise DataError(f"{where} has no values, so no best action")
        best = int(np.nanargmax(worth[row]))
        name = table.names[row][best] if table.names and table.names[row] else best
        found.examples.append(Rendered(prompt, f"[{name}]"))
        found.places.append(where)


def _objects(cells: list[Any]) -> np.ndarray:
    array = np.empty(len(cells), dtype=object)
    array[:] = cells
    return array
