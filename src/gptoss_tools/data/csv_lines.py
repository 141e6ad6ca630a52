"""Columns -> the lines of a CSV file, at once and not cell by cell.

Cells are quoted only where they must be; floats are what Python's repr says. Leaves out files
(data.table_writer).
"""

# pyarrow makes its compute functions at import, where no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gptoss_tools.data.tables import text_bytes

_SPECIAL_BYTES = b'",\r\n'
_SPECIAL_CELL = r'[",\r\n]'
_TEXT = pa.large_string()  # a column of a chunk may hold more than 2 GB


def csv_lines(columns: list[pa.Array]) -> pa.Array:
    """Rows of a CSV file from columns of large strings without null, quoted where needed."""
    pieces = []
    for cells in columns:
        edge, inside = _quoted(cells, alone=len(columns) == 1)
        pieces += [edge, inside, edge, _text(",")] if edge is not None else [cells, _text(",")]
    return pc.binary_join_element_wise(*pieces[:-1], _text("\n"), _text(""))


def float_texts(numbers: np.ndarray) -> pa.Array:
    """repr() of every float, empty for NaN, without a Python loop where Arrow writes the same.

    Both write the fewest digits that read back to the same number; they differ in where exponents
    begin and how they look, and in whole numbers.
    """
    size = np.abs(numbers)
    same = (size < 1e-10) | (size >= 1e-4) & (size < 1e9) | (size >= 1e16)
    odd = ~same | (numbers == np.floor(numbers)) & (size < 1e16)
    odd &= ~np.isnan(numbers)
    texts = pa.array(numbers, from_pandas=True).cast(_TEXT).fill_null("")
    exact = pa.array(map(repr, numbers[odd].tolist()), _TEXT)
    return pc.replace_with_mask(texts, pa.array(odd), exact) if len(exact) else texts


def _quoted(cells: pa.Array, alone: bool) -> tuple[pa.Array | pa.Scalar | None, pa.Array]:
    """What stands around each cell, None where all are plain, and the cells with doubled quotes."""
    found = [bool((text_bytes(cells) == byte).any()) for byte in _SPECIAL_BYTES]
    if not any(found) and not alone:
        return None, cells
    needs = pc.match_substring_regex(cells, _SPECIAL_CELL)
    if alone:  # an empty line would be no row at all
        needs = pc.or_(needs, pc.equal(cells, _text("")))
    edge = _text('"') if pc.all(needs).as_py() else pc.if_else(needs, _text('"'), _text(""))
    return edge, pc.replace_substring(cells, '"', '""') if found[0] else cells


def _text(text: str) -> pa.Scalar:
    return pa.scalar(text, _TEXT)
