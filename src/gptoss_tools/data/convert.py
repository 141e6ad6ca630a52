"""Tables of legacy prompts -> tables of Harmony prompts: what `convert-harmony` does.

Leaves out how a prompt is parsed and rendered (chat.harmony) and how files are written whole
(data.rewrite).
"""

# pyarrow makes its compute functions at import, where no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import datetime
import itertools
import json
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gptoss_tools.chat.harmony import find_special, is_harmony, parse_legacy, render
from gptoss_tools.data.columns import row_efforts
from gptoss_tools.data.decisions import as_messages
from gptoss_tools.data.prompt_columns import is_harmony_column, render_legacy, split_legacy
from gptoss_tools.data.rewrite import Progress, refuse_clashes, rewrite_tables
from gptoss_tools.data.stages import HARMONY_SUFFIX, REWARD_SUFFIX, expand
from gptoss_tools.data.tables import text_column, values
from gptoss_tools.errors import ConfigError, DataError

Format = Literal["text", "messages"]


@dataclass(frozen=True)
class FileResult:
    """What became of one table; `stale` is a later stage that was made from an older output."""

    source: Path
    target: Path
    rows: int
    converted: int
    passed_through: int
    stale: Path | None = None


def convert(
    paths: Sequence[str | Path],
    *,
    suffix: str = HARMONY_SUFFIX,
    overwrite: bool = False,
    encoding: str = "utf-8",
    delimiter: str = ",",
    date: str | None = None,
    reasoning_effort: str = "medium",
    model_identity: str | None = None,
    format: Format = "text",
    shard: str | None = None,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> list[FileResult]:
    """Write `<stem><suffix>` beside every table, with its `prompt` column as Harmony prompts.

    `format="messages"` keeps messages as JSON text, to be rendered when the table is loaded.
    Prompts that are Harmony already pass through unchanged. `date` defaults to today; a row's own
    `reasoning_effort` goes before the one given here. Nothing is written unless every row of every
    file converts; errors name file and row.
    """
    if not suffix or "/" in suffix or "\\" in suffix:
        raise ConfigError(f"suffix {suffix!r} cannot end a file name", hint="for example _harmony")
    options: dict[str, Any] = {
        "date": date or datetime.date.today().isoformat(),
        "model_identity": model_identity,
    }
    sources = expand(paths, stage="convert", suffix=suffix, shard=shard)
    outputs = {s: [s.with_name(f"{s.stem}{suffix}{s.suffix}")] for s in sources}
    refuse_clashes(outputs, overwrite, "pass --overwrite to replace it, or another --suffix")
    rows = dict.fromkeys(sources, 0)
    passed = dict.fromkeys(sources, 0)

    def change(path: Path, frame: pd.DataFrame, first_row: int) -> pd.DataFrame:
        if "prompt" not in frame:
            listed = ", ".join(map(str, frame.columns))
            raise DataError(f"{path} has no column prompt", hint=f"it has: {listed}")
        efforts = row_efforts(frame, reasoning_effort, str(path), first_row)

        def one(place: int, cell: Any) -> Any:
            own = {**options, "reasoning_effort": efforts[place]}
            try:
                return convert_prompt(cell, format, own)
            except DataError as error:
                where = f"{path} row {first_row + place}"
                raise DataError(f"{where}: {error}", hint=error.hint) from error

        cells = text_column(frame, "prompt")
        if cells is None:
            old = values(frame, "prompt")
            prompts = [one(place, cell) for place, cell in enumerate(old)]
            passed[path] += sum(map(operator.is_, old, prompts))
            frame["prompt"] = pd.Series(prompts, index=frame.index, dtype=object)
        else:
            fresh, same = _convert_column(cells, one, efforts, options, format)
            passed[path] += same
            kind = frame["prompt"].dtype
            if isinstance(kind, pd.ArrowDtype):
                fresh = fresh.cast(kind.pyarrow_dtype)
            frame["prompt"] = pd.Series(pd.arrays.ArrowExtensionArray(fresh), index=frame.index)
        rows[path] += len(frame)
        return frame

    rewrite_tables(
        outputs,
        change,
        encoding=encoding,
        delimiter=delimiter,
        dry_run=dry_run,
        on_progress=on_progress,
    )
    return [
        FileResult(
            source=source,
            target=outputs[source][0],
            rows=rows[source],
            converted=rows[source] - passed[source],
            passed_through=passed[source],
            stale=_later_stage(outputs[source][0]),
        )
        for source in sources
    ]


def convert_prompt(cell: Any, format: Format, options: dict[str, Any]) -> Any:
    """One prompt cell in the wanted form; the very same object if it is in that form already."""
    messages = as_messages(cell)
    if messages is None:
        if not isinstance(cell, str) or not cell.strip():
            raise DataError("the prompt is empty")
        if is_harmony(cell):
            return cell
        special = find_special(cell)
        if special:
            raise DataError(
                f"the prompt contains {special}, which gpt-oss would read as a special token",
                hint="remove it or write it differently",
            )
        messages = parse_legacy(cell)
    elif format == "messages":
        render(messages, **options)  # what cannot be rendered should not wait for training
        return cell
    if format == "messages":
        return json.dumps(messages, ensure_ascii=False)
    return render(messages, **options)


def _convert_column(
    cells: pa.Array,
    one: Callable[[int, Any], Any],
    efforts: list[str],
    options: dict[str, Any],
    format: Format,
) -> tuple[pa.Array, int]:
    """A column of prompts in the wanted form, and how many were in it already.

    What has the usual form is done at once; `one` converts the cell at a place.
    """
    done = is_harmony_column(cells)
    same, fresh = int(done.sum()), cells
    if format == "text" and same < len(cells):
        legacy = split_legacy(cells)
        if legacy.known.any():
            own = list(itertools.compress(efforts, legacy.known))
            rendered = render_legacy(legacy, own, **options)
            fresh = pc.replace_with_mask(cells, pa.array(legacy.known), rendered)
            done = done | legacy.known
    places = np.flatnonzero(~done)
    if len(places):
        old = cells.take(pa.array(places)).to_pylist()
        rest = [one(place, cell) for place, cell in zip(places.tolist(), old, strict=True)]
        same += sum(map(operator.is_, old, rest))
        fresh = pc.replace_with_mask(fresh, pa.array(~done), pa.array(rest, cells.type))
    return fresh, same


def _later_stage(target: Path) -> Path | None:
    later = target.with_name(f"{target.stem}{REWARD_SUFFIX}{target.suffix}")
    return later if later.exists() else None
