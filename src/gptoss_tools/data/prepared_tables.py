"""Tables of prepared rows: the columns of all of them, and files that hold these from the start.

Leaves out how a table gets its name only when it is whole (data.table_writer).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pyarrow as pa

from gptoss_tools.data.prepare_rows import STANDARD
from gptoss_tools.data.sources import CHUNK_ROWS, objects
from gptoss_tools.data.table_writer import TableWriter

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TYPES: dict[frozenset[str], Any] = {
    frozenset({"bool"}): pa.bool_(),
    frozenset({"int"}): pa.int64(),
    frozenset({"float"}): pa.float64(),
    frozenset({"int", "float"}): pa.float64(),
    frozenset({"messages"}): _MESSAGES,
}


class Columns:
    """Which columns rows have, and what kinds of cells are in each."""

    def __init__(self) -> None:
        self._kinds: dict[str, set[str]] = {}

    def add(self, cells: Mapping[str, Any]) -> None:
        """Take the cells of one more row into account."""
        for name, cell in cells.items():
            self._kinds.setdefault(name, set()).update(_kind(cell))

    @property
    def names(self) -> list[str]:
        """All columns, the standard ones first."""
        order = {name: place for place, name in enumerate(STANDARD)}
        return sorted(self._kinds, key=lambda name: order.get(name, len(order)))

    def arrow(self, name: str, cells: list[Any]) -> Any:
        """Cells of one column in the type that all cells of it fit: at worst their text."""
        kind = _TYPES.get(frozenset(self._kinds[name]))
        if kind is None:
            cells = [c if c is None or isinstance(c, str) else _text(c) for c in cells]
        return pd.array(cells, dtype=pd.ArrowDtype(kind or pa.string()))  # type: ignore[call-overload]


class PreparedWriter:
    """Write rows one by one to a table; use it as a context manager."""

    def __init__(self, path: Path, columns: Columns):
        self._columns, self._typed = columns, path.suffix == ".parquet"
        self._writer, self._rows = TableWriter(path), list[Mapping[str, Any]]()

    def write(self, cells: Mapping[str, Any]) -> None:
        """Append a row; columns it does not have are empty."""
        self._rows.append(cells)
        if len(self._rows) == CHUNK_ROWS:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: object
    ) -> None:
        try:
            if error is None:
                self._flush()
        except BaseException:
            self._writer.abort()
            raise
        if error is None:
            self._writer.commit()
        else:
            self._writer.abort()

    def _flush(self) -> None:
        columns = {n: [row.get(n) for row in self._rows] for n in self._columns.names}
        arrange = self._columns.arrow if self._typed else lambda name, cells: objects(cells)
        self._writer.write(pd.DataFrame({n: arrange(n, cells) for n, cells in columns.items()}))
        self._rows.clear()


def _kind(cell: Any) -> set[str]:
    """The kind of a cell, none of an empty one."""
    match cell:
        case None:
            return set()
        case bool():
            return {"bool"}
        case int():
            return {"int" if -(2**63) <= cell < 2**63 else "text"}
        case float():
            return {"float"}
        case [*messages] if all(
            isinstance(m, dict) and m.keys() == {"role", "content"} for m in messages
        ):
            return {"messages"}
        case _:
            return {"text"}


def _text(cell: Any) -> str:
    return json.dumps(cell, ensure_ascii=False)
