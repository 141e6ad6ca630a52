"""Rows of raw data: files, folders and globs (tables and JSON arrays), or a dataset of the Hub.

Leaves out what the columns mean: data.instruction_rows for examples to imitate,
data.prepare_formats for prompts to answer.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gptoss_tools.data.stages import expand, is_hub_id
from gptoss_tools.data.tables import read_chunks, values
from gptoss_tools.errors import DataError, MachineError, first_line

CHUNK_ROWS = 2_000  # of texts, which may be pages long


def read_sources(
    paths: Sequence[str] | str,
    *,
    split: str = "train",
    subset: str | None = None,
    revision: str | None = None,
    encoding: str = "utf-8",
    delimiter: str = ",",
) -> Iterator[tuple[str, Iterator[pd.DataFrame]]]:
    """Yield every file once, and every dataset of the Hub, with its rows as frames.

    `split`, `subset` and `revision` are for the Hub. A JSON array is one frame; all else comes in
    chunks. Raises DataError naming file and row, MachineError where the Hub does not give a
    dataset.
    """
    seen: set[Path] = set()
    for path in [paths] if isinstance(paths, str) else paths:
        if is_hub_id(path):
            yield path, read_hub(path, split, subset=subset, revision=revision)
            continue
        for file in _files(path):
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield str(file), _frames(file, encoding, delimiter)


def read_hub(
    name: str, split: str, *, subset: str | None = None, revision: str | None = None
) -> Iterator[pd.DataFrame]:
    """Yield a dataset of the Hub (or a folder `datasets` can read) as frames of Python objects."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub import constants as hub

    try:
        if not Path(name).is_dir() and not hub.HF_HUB_OFFLINE:
            # An unreachable Hub would be asked again for minutes.
            HfApi().dataset_info(name, revision=revision, timeout=10)
        loaded: Any = datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # whichever library fails below has classes of its own
        _refuse_subset(name, subset, error)
        if isinstance(error, ValueError) and "split" in str(error).lower():
            raise DataError(f"{name} has no split {split!r}: {first_line(error)}") from error
        raise MachineError(
            f"data {name} is no file here and the Hub did not give it: {first_line(error)}",
            hint="check the name and the network, log in for gated data, or name a file",
        ) from error
    for batch in loaded.iter(batch_size=CHUNK_ROWS):
        yield pd.DataFrame({column: objects(cells) for column, cells in batch.items()})


def rows_of(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the rows of a frame as Python objects by column, None where there is no value."""
    columns = {str(name): values(frame, name) for name in frame.columns}
    for place in range(len(frame)):
        yield {name: cells[place] for name, cells in columns.items()}


def objects(cells: Sequence[Any]) -> np.ndarray:
    """An array that holds each cell as it is: NumPy would make a table of lists."""
    array = np.empty(len(cells), dtype=object)
    array[:] = cells
    return array


def _refuse_subset(name: str, subset: str | None, error: Exception) -> None:
    """DataError if what `datasets` says is that a subset is missing, or has another name."""
    text = str(error)
    if not isinstance(error, ValueError) or "onfig" not in text:
        return
    if "Config name is missing" in text or "BuilderConfig" in text:
        said = f"no subset {subset!r}" if subset else "several subsets"
        known = text[text.find("[") :].splitlines()[0] if "[" in text else first_line(error)
        raise DataError(f"{name} has {said}: {known}", hint="name one with --subset") from error


def _files(path: str) -> list[Path]:
    """Tables as every command finds them, and JSON files."""
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
        yield from read_chunks(path, encoding=encoding, delimiter=delimiter, chunk_rows=CHUNK_ROWS)
        return
    try:
        text = path.read_text(encoding="utf-8-sig" if encoding == "utf-8" else encoding)
        rows = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        hint = "one object per line is JSONL: name such a file .jsonl"
        raise DataError(f"{path} cannot be read as JSON: {first_line(error)}", hint) from error
    if not isinstance(rows, list):
        raise DataError(f"{path} holds no JSON array", hint="[ {...}, {...} ], or JSONL")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path} row {number} is not a JSON object")
        if "\\ud" in text.lower():  # maybe half of a surrogate pair, which no file can hold
            try:
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                said = "half of a surrogate pair is no character"
                raise DataError(f"{path} row {number}: {said}") from None
    columns = dict.fromkeys(name for row in rows for name in row)
    yield pd.DataFrame({name: objects([row.get(name) for row in rows]) for name in columns})
