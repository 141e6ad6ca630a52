"""Write table files: CSV, JSONL and Parquet, chunk by chunk, whole or not at all.

Output is always UTF-8 with commas: later commands read it without options. Leaves out what the
columns mean (data.decisions).
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from gptoss_tools.core.publish import clear_leftovers, sync, temporary_name
from gptoss_tools.data.csv_lines import csv_lines, float_texts
from gptoss_tools.data.tables import SUFFIXES, text_bytes, values
from gptoss_tools.errors import DataError, GptossError, RunFolderError

_TEXT = pa.large_string()  # a column of a chunk may hold more than 2 GB
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


class TableWriter:
    """Write frames to a table that appears whole or not at all.

    Use it as a context manager, or call `commit` or `abort` yourself to finish several files
    together. Float columns are written in the shortest form that reads back to the same number.
    """

    def __init__(self, target: str | Path):
        # A link keeps pointing at its file: the file behind it is replaced.
        self.target = Path(os.path.realpath(target))
        self.suffix = self.target.suffix.lower()
        if self.suffix not in SUFFIXES:
            raise DataError(f"{target} is not a table", hint=f"known kinds: {', '.join(SUFFIXES)}")
        self._temporary = temporary_name(self.target)
        self._columns: list[str] | None = None
        self._parquet: pyarrow.parquet.ParquetWriter | None = None
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            clear_leftovers(self.target)
            self._file = self._temporary.open("wb")
        except OSError as error:
            raise RunFolderError(f"{target} cannot be written: {error.strerror}") from error

    def write(self, frame: pd.DataFrame) -> None:
        """Append the rows of a frame; a CSV or Parquet table keeps the columns of the first one."""
        try:
            self._write(frame)
        except OSError as error:
            raise self._failed(error) from error

    def _write(self, frame: pd.DataFrame) -> None:
        first = self._columns is None
        if first:
            self._columns = list(frame.columns)
        if self.suffix == ".jsonl":
            columns = [_json_values(frame, name) for name in frame.columns]
            names = list(frame.columns)
            for row in zip(*columns, strict=True):
                record = dict(zip(names, row, strict=True))
                self._file.write(_ENCODE(record).encode() + b"\n")
        elif list(frame.columns) != self._columns:
            raise DataError(f"{self.target}: the columns of later rows differ from the first ones")
        elif self.suffix == ".csv":
            if first:
                names = [pa.array([str(name)], _TEXT) for name in frame.columns]
                self._file.write(text_bytes(csv_lines(names)).data)
            lines = csv_lines([_cells(frame, name) for name in frame.columns])
            self._file.write(text_bytes(lines).data)
        else:
            self._write_parquet(frame)

    def commit(self) -> None:
        """Sync what was written and give it the target's name."""
        try:
            self._close()
            sync(self._temporary)
            if self.target.exists():
                os.chmod(self._temporary, self.target.stat().st_mode & 0o7777)
            os.replace(self._temporary, self.target)
            sync(self.target.parent)
        except OSError as error:
            self.abort()
            raise self._failed(error) from error

    def abort(self) -> None:
        """Remove what was written; the target is as it was."""
        with contextlib.suppress(OSError):  # a full disk takes no last bytes
            self._close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None:
            self.commit()
        else:
            self.abort()

    def _write_parquet(self, frame: pd.DataFrame) -> None:
        columns = {str(name): _arrow(frame, name) for name in frame.columns}
        if self._parquet is None:
            table = pa.table(columns)
            self._parquet = pyarrow.parquet.ParquetWriter(self._file, table.schema)
        table = pa.table(columns).cast(self._parquet.schema)
        self._parquet.write_table(table)

    def _failed(self, error: OSError) -> GptossError:
        return GptossError(
            f"{self.target} cannot be written: {error.strerror or error}",
            hint="nothing of it was kept; make room, or write to another place",
        )

    def _close(self) -> None:
        if self._parquet is not None:
            self._parquet.close()
            self._parquet = None
        self._file.close()


def _json_values(frame: pd.DataFrame, column: str) -> list[Any]:
    if frame[column].dtype == float:
        return [x if x == x else None for x in frame[column].tolist()]
    return values(frame, column)


def _arrow(frame: pd.DataFrame, column: str) -> pa.Array:
    array = frame[column].array
    if hasattr(array, "__arrow_array__"):
        found = pa.array(array)
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    if frame[column].dtype == float:
        return pa.array(frame[column].to_numpy(), from_pandas=True)
    return pa.array(values(frame, column))


def _cells(frame: pd.DataFrame, column: str) -> pa.Array:
    """Text of a CSV column: floats by repr, messages as JSON, nothing for what is not there."""
    if frame[column].dtype == float:
        return float_texts(frame[column].to_numpy())
    array = frame[column].array
    if hasattr(array, "__arrow_array__"):
        found = _arrow(frame, column)
        if pa.types.is_string(found.type) or pa.types.is_large_string(found.type):
            return found.cast(_TEXT).fill_null("")
    texts = [
        v if isinstance(v, str) else "" if v is None else json.dumps(v, ensure_ascii=False)
        for v in values(frame, column)
    ]
    return pa.array(texts, _TEXT)
