"""Read CSV files fast, in blocks, and say where a broken one is broken.

Arrow reads; it says little about what it cannot read, and nothing about some of it, so slower
readers look before and after. Leaves out other kinds of tables (data.tables).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from gptoss_tools.errors import ConfigError, DataError

_BLOCK_BYTES = (4 << 20, 64 << 20)  # of CSV; the second where a row is larger than the first


def read_csv(path: Path, encoding: str, delimiter: str, chunk_rows: int) -> Iterator[pd.DataFrame]:
    """Yield a CSV file as frames of text, of a few megabytes and `chunk_rows` rows at most."""
    encoding = codec_of(encoding)
    header = _header(path, encoding, delimiter)
    _refuse_open_quote(path, encoding, delimiter)
    rows = 0
    for block_bytes in _BLOCK_BYTES:
        try:
            for batch in _batches(path, encoding, delimiter, header, block_bytes, rows):
                for begin in range(0, batch.num_rows, chunk_rows):
                    yield batch.slice(begin, chunk_rows).to_pandas(types_mapper=pd.ArrowDtype)
                rows += batch.num_rows
            break
        except (pa.ArrowInvalid, UnicodeError) as error:
            if "straddling" not in str(error) or block_bytes == _BLOCK_BYTES[-1]:
                raise _diagnose(path, encoding, delimiter, len(header), error) from error
    if not rows:
        yield pd.DataFrame({name: pd.array([], pd.ArrowDtype(pa.string())) for name in header})


def _batches(
    path: Path, encoding: str, delimiter: str, header: list[str], block_bytes: int, done: int
) -> pyarrow.csv.CSVStreamingReader:
    """Rows after the first `done`, as Arrow reads them: a block in memory, every cell text."""
    return pyarrow.csv.open_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(
            block_size=block_bytes,
            encoding="utf8" if encoding == "utf-8-sig" else encoding,
            skip_rows_after_names=done,
        ),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
        ),
    )


def _header(path: Path, encoding: str, delimiter: str) -> list[str]:
    try:
        with path.open(encoding=encoding, newline="") as file:
            rows = csv.reader(file, delimiter=delimiter)
            header = next((row for row in rows if row), None)
    except (UnicodeError, csv.Error) as error:
        raise _diagnose(path, encoding, delimiter, None, error) from error
    if header is None:
        raise DataError(f"{path} is empty: it has no header")
    header[0] = header[0].removeprefix("\ufeff")
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if twice:
        raise DataError(f"{path} has the column {twice[0]!r} more than once")
    for other, flag in ((";", '";"'), ("\t", "$'\\t'"), (",", ","), ("|", '"|"')):
        if len(header) == 1 and other != delimiter and other in header[0]:
            raise DataError(
                f"{path} has a single column named {header[0]!r}", hint=f"try --delimiter {flag}"
            )
    return header


def _refuse_open_quote(path: Path, encoding: str, delimiter: str) -> None:
    """A quote that is never closed swallows all rows after it, and fast readers say nothing."""
    with path.open("rb") as file:
        quotes = 0
        while block := file.read(_BLOCK_BYTES[0]):
            quotes += int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord('"')))
    if quotes % 2 == 0:
        return
    row = 0
    with path.open(encoding=encoding, newline="", errors="replace") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            while next(reader, None) is not None:
                row += 1
        except (UnicodeError, csv.Error) as error:
            if "unexpected end of data" in str(error):
                raise DataError(f"{path} row {row} opens a quote that is never closed") from error


def _diagnose(
    path: Path, encoding: str, delimiter: str, width: int | None, error: Exception
) -> DataError:
    """Find the row that a fast reader could not read, with a slow one that counts rows."""
    try:
        with path.open(encoding=encoding, newline="", errors="surrogateescape") as file:
            for row, cells in enumerate(filter(None, csv.reader(file, delimiter=delimiter))):
                place = f"{path} row {row}" if row else f"{path}, header"
                if re.search("[\udc80-\udcff]", "".join(cells)):
                    return wrong_encoding(place, encoding)
                if width is not None and len(cells) != width:
                    return DataError(
                        f"{place} has {len(cells)} cells where the header has {width}",
                        hint='a cell with a separator or a line break needs "quotes" around it',
                    )
    except UnicodeError:
        return wrong_encoding(str(path), encoding)
    except csv.Error as slow:
        error = slow
    return DataError(f"{path} cannot be read as CSV: {error}")


def wrong_encoding(place: str, encoding: str) -> DataError:
    """What to raise where the bytes at a place are no text of this encoding."""
    encoding = "utf-8" if encoding == "utf-8-sig" else encoding
    return DataError(f"{place} is not {encoding} text", hint="try --encoding cp932, or utf-16")


def codec_of(encoding: str) -> str:
    """Python's name for an encoding that a user gave; ConfigError if it has none."""
    try:
        "".encode(encoding)
    except LookupError:
        raise ConfigError(
            f"encoding {encoding!r} is unknown", hint="for example utf-8, cp932, utf-16, latin-1"
        ) from None
    # A byte order mark is never part of the first column's name.
    return "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
