"""Split and render whole columns of prompts at once, where their form is the usual one.

What chat.harmony does for one prompt, at a hundredth of the time per row. A prompt of any other
form is left to chat.harmony: this module says which ones it knows and is never the judge of an
odd one.
"""

# pyarrow makes its compute functions at import, where no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gptoss_tools.chat.harmony import GENERATION_PROMPT, legacy_pieces

_BLANK = " \t\n"
# Possible special tokens, white space beside _BLANK, and the beginning of a JSON list.
_ODD = (
    r"<\||\A[ \t\n]*\[|[\r\x0b\x0c\x1c-\x1f\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}"
    r"\x{202f}\x{205f}\x{3000}]"
)
_MARKER = r"(?im)^[ \t]*(?:system|user):"
_USER = r"(?im)^[ \t]*user:"
_SYSTEM = r"(?i)\Asystem:"
_HARMONY = "<|start|>system<|message|>"


@dataclass(frozen=True)
class LegacyColumn:
    """Legacy prompts in parts: `known` says for each of R cells whether it is among these.

    `system` (empty where there is none) and `user` have a text per known cell.
    """

    known: np.ndarray
    system: pa.Array
    user: pa.Array


def is_harmony_column(cells: pa.Array, complete: bool = False) -> np.ndarray:
    """Which cells surely are Harmony text: those that begin as gpt-oss's template does.

    With `complete`, only those that also end where the model answers.
    """
    found = pc.starts_with(cells, _HARMONY)
    if complete:
        found = pc.and_(found, pc.ends_with(cells, GENERATION_PROMPT))
    return _mask(found)


def split_legacy(cells: pa.Array) -> LegacyColumn:
    """Take `system:` / `user:` text apart as `parse_legacy` does, where each comes but once."""
    cells = pc.fill_null(cells, _NONE)
    texts = pc.ascii_trim(cells, _BLANK)
    parts = pc.split_pattern_regex(texts, _USER, max_splits=1)
    flat, sizes = parts.flatten(), np.asarray(pc.list_value_length(parts))
    ends = np.cumsum(sizes)
    asked = sizes == 2
    marked = pc.if_else(pa.array(asked), flat.take(pa.array(np.where(asked, ends - 2, 0))), _NONE)
    user = pc.ascii_trim(flat.take(pa.array(np.maximum(ends - 1, 0))), _BLANK)
    ruled = _mask(pc.match_substring_regex(marked, _SYSTEM))
    system = pc.ascii_trim(pc.replace_substring_regex(marked, _SYSTEM, ""), _BLANK)
    bare = ~asked | _mask(pc.equal(marked, _NONE)) | ruled
    markers = np.asarray(pc.count_substring_regex(texts, _MARKER))
    known = bare & (markers == asked.astype(int) + ruled) & _mask(pc.not_equal(user, _NONE))
    known &= ~_mask(pc.match_substring_regex(cells, _ODD))
    if known.all():
        return LegacyColumn(known, system, user)
    return LegacyColumn(known, system.filter(pa.array(known)), user.filter(pa.array(known)))


def render_legacy(column: LegacyColumn, efforts: Sequence[str], **options: Any) -> pa.Array:
    """The Harmony prompts of a column's parts, as `render` gives them; one effort per part."""
    ruled = _mask(pc.not_equal(column.system, _NONE))
    kinds = list(zip(efforts, ruled.tolist(), strict=True))
    pieces = {
        kind: legacy_pieces(kind[1], reasoning_effort=kind[0], **options)
        for kind in dict.fromkeys(kinds)
    }
    if len(pieces) == 1:
        ((head, middle, tail),) = pieces.values()
        around = [pa.scalar(text, pa.large_string()) for text in (head, middle, tail)]
    else:
        places = {kind: place for place, kind in enumerate(pieces)}
        which = pa.array([places[kind] for kind in kinds], pa.int32())
        texts = zip(*pieces.values(), strict=True)
        around = [pa.array(each, pa.large_string()).take(which) for each in texts]
    head, middle, tail = around
    return pc.binary_join_element_wise(head, column.system, middle, column.user, tail, _NONE)


_NONE = pa.scalar("", pa.large_string())


def _mask(found: pa.Array) -> np.ndarray:
    """An Arrow mask as NumPy's, False where nothing is known."""
    return np.asarray(pc.fill_null(found, False))
