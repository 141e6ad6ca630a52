"""Read table files in chunks: CSV, JSONL and Parquet, in bounded memory.

CSV cells stay text, so what no command touches comes out as it went in (data.table_writer writes
it). Leaves out what the columns mean (data.decisions).
"""

# pyarrow makes its compute functions at import, where no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from gptoss_tools.data.csv_reading import codec_of, read_csv, wrong_encoding
from gptoss_tools.errors import DataError

SUFFIXES = (".csv", ".jsonl", ".parquet")
MISSING_WORDS = frozenset({"", "na", "n/a", "nan", "null", "none"})

_CHUNK_BYTES = 32 << 20  # of JSONL and Parquet, whose rows may be of any size
_BUFFER_BYTES = 1 << 20
_SAMPLE_ROWS = 64  # tell how large the rows of a Parquet file are
_TEXT = pa.large_string()  # a column of a chunk may hold more than 2 GB
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")  # may be a whole pair: look closer


def read_chunks(
    path: str | Path, *, encoding: str = "utf-8", delimiter: str = ",", chunk_rows: int = 50_000
) -> Iterator[pd.DataFrame]:
    """Yield a table as frames of at most `chunk_rows` rows; an empty table yields one empty frame.

    CSV cells are text; JSONL values are Python objects; Parquet values keep their types. Raises
    DataError naming the file, the row where one is at fault, and the option that helps.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file")
    suffix = path.suffix.lower()
    if suffix == ".csv":
        chunks = read_csv(path, encoding, delimiter, chunk_rows)
    elif suffix == ".jsonl":
        chunks = _read_jsonl(path, encoding, chunk_rows)
    elif suffix == ".parquet":
        chunks = _read_parquet(path, chunk_rows)
    else:
        raise DataError(f"{path} is not a table", hint=f"known kinds: {', '.join(SUFFIXES)}")
    try:
        yield from chunks
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def values(frame: pd.DataFrame, column: str) -> list[Any]:
    """One column as Python objects, None where there is no value."""
    array = frame[column].array
    if hasattr(array, "__arrow_array__"):
        return pa.array(array).to_pylist()
    # tolist gives Python's own numbers, which JSON knows, for NumPy's.
    return [None if v is None or v is pd.NA else v for v in frame[column].tolist()]


def text_column(frame: pd.DataFrame, column: str) -> pa.Array | None:
    """A column of text and empty cells as one Arrow array of large strings; None if it is other."""
    array = frame[column].array
    try:
        arrow = hasattr(array, "__arrow_array__")
        found = pa.array(array) if arrow else pa.array(frame[column].to_numpy(), _TEXT)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None
    if isinstance(found, pa.ChunkedArray):
        found = found.combine_chunks()
    kinds = (pa.types.is_string, pa.types.is_large_string)
    return found.cast(_TEXT) if any(is_kind(found.type) for is_kind in kinds) else None


def text_bytes(cells: pa.Array) -> np.ndarray:
    """The UTF-8 bytes of all cells of an Arrow array of large strings, one after the other."""
    _, places, content = cells.buffers()
    if content is None:
        return np.empty(0, np.uint8)
    places = np.frombuffer(places, np.int64)[cells.offset : cells.offset + len(cells) + 1]
    return np.frombuffer(content, np.uint8)[places[0] : places[-1]]


def is_missing(cell: Any) -> bool:
    """Whether a cell holds no value: nothing, NaN, or a word for it (see `numbers`)."""
    if isinstance(cell, str):
        return cell.strip().lower() in MISSING_WORDS
    return cell is None or cell is pd.NA or (isinstance(cell, float) and cell != cell)


def numbers(frame: pd.DataFrame, column: str, where: str, first_row: int = 1) -> np.ndarray:
    """One column as float64, exactly as Python's float() reads it; NaN where there is no value.

    Empty cells and the words NA, N/A, NaN, null, None are no value. `where` is the file and
    `first_row` the 1-based number of the frame's first row, for the DataError of other text.
    """
    cells: Any = frame[column].array
    if hasattr(cells, "__arrow_array__"):
        cells = pa.array(cells)
        try:
            if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
                cells = pc.replace_with_mask(
                    cells, pc.equal(cells, ""), pa.scalar(None, cells.type)
                )
            return pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            cells = cells.to_pylist()  # some cell is odd: find out which, at Python's pace
    else:
        cells = frame[column].tolist()
        if set(map(type, cells)) <= {float, int, type(None)}:
            with contextlib.suppress(OverflowError):
                return np.array(cells, float)
    return np.array([_number(c, where, first_row + i, column) for i, c in enumerate(cells)], float)


def _read_jsonl(path: Path, encoding: str, chunk_rows: int) -> Iterator[pd.DataFrame]:
    row, empty, encoding = 0, True, codec_of(encoding)
    with path.open("rb") as file:
        while lines := _lines(file, chunk_rows):
            records = []
            for line in lines:
                text = _decode(line, encoding, path, row + 1)
                if not text.strip():
                    continue
                row += 1
                try:
                    record = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path} row {row} is not JSON: {error}") from error
                if not isinstance(record, dict):
                    raise DataError(f"{path} row {row} is not a JSON object")
                if "\\u" in text and _HALF_CHARACTER.search(text):
                    _refuse_half_characters(record, f"{path} row {row}")
                records.append(record)
            columns = list(dict.fromkeys(name for record in records for name in record))
            if records:
                empty = False
                yield pd.DataFrame(
                    {n: _objects([record.get(n) for record in records]) for n in columns}
                )
    if empty:
        yield pd.DataFrame()


def _lines(file: BinaryIO, most: int) -> list[bytes]:
    """The next lines: at most so many, and no more after they have _CHUNK_BYTES."""
    lines, size = [], 0
    for line in islice(file, most):
        lines.append(line)
        size += len(line)
        if size >= _CHUNK_BYTES:
            break
    return lines


def _read_parquet(path: Path, chunk_rows: int) -> Iterator[pd.DataFrame]:
    try:
        # Without a buffer size a row group would be read whole, however large somebody made it.
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
            if not file.metadata.num_rows:
                yield file.read().to_pandas(types_mapper=pd.ArrowDtype)
                return
            sample = next(file.iter_batches(batch_size=_SAMPLE_ROWS))
            chunk_rows = min(chunk_rows, 1 + _CHUNK_BYTES * len(sample) // max(sample.nbytes, 1))
            for batch in file.iter_batches(batch_size=chunk_rows):
                yield batch.to_pandas(types_mapper=pd.ArrowDtype)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def _decode(line: bytes, encoding: str, path: Path, row: int) -> str:
    try:
        return line.decode(encoding)
    except UnicodeError as error:
        raise wrong_encoding(f"{path} row {row}", encoding) from error


def _refuse_half_characters(record: dict[str, Any], place: str) -> None:
    """An escape such as \\ud800 alone is valid JSON and no text: no file could hold it."""
    for column, value in record.items():
        try:
            json.dumps({column: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            name = column.encode(errors="replace").decode()
            raise DataError(
                f"{place}, column {name}: half of a surrogate pair is no character",
                hint="write the character itself, or both halves",
            ) from None


def _number(cell: Any, where: str, row: int, column: str) -> float:
    if is_missing(cell):
        return float("nan")
    try:
        if isinstance(cell, bool | list | dict):
            raise ValueError
        return float(cell)
    except (ValueError, TypeError, OverflowError):
        shown = repr(cell) if len(repr(cell)) <= 60 else repr(cell)[:57] + "..."
        raise DataError(f"{where} row {row}, column {column}: {shown} is not a number") from None


def _objects(cells: list[Any]) -> np.ndarray:
    array = np.empty(len(cells), dtype=object)
    array[:] = cells
    return array
