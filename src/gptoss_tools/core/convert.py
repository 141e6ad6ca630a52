"""Tables of legacy prompts -> tables of Harmony prompts: what `convert-harmony` does.

Leaves out how a prompt is parsed and rendered (core.harmony) and how files are written whole
(core.rewrite).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from gptoss_tools.core.columns import row_efforts
from gptoss_tools.core.data import as_messages
from gptoss_tools.core.harmony import find_special, is_harmony, parse_legacy, render
from gptoss_tools.core.rewrite import Progress, refuse_clashes, rewrite_tables
from gptoss_tools.core.stages import HARMONY_SUFFIX, REWARD_SUFFIX, expand
from gptoss_tools.core.tables import values
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
    sources = expand(paths, stage="convert", suffix=suffix)
    outputs = {s: [s.with_name(f"{s.stem}{suffix}{s.suffix}")] for s in sources}
    refuse_clashes(outputs, overwrite, "pass --overwrite to replace it, or another --suffix")
    rows = dict.fromkeys(sources, 0)
    passed = dict.fromkeys(sources, 0)

    def change(path: Path, frame: pd.DataFrame, first_row: int) -> pd.DataFrame:
        if "prompt" not in frame:
            listed = ", ".join(map(str, frame.columns))
            raise DataError(f"{path} has no column prompt", hint=f"it has: {listed}")
        efforts = row_efforts(frame, reasoning_effort, str(path), first_row)
        prompts = []
        for row, cell in enumerate(values(frame, "prompt"), start=first_row):
            own = {**options, "reasoning_effort": efforts[row - first_row]}
            try:
                prompt = convert_prompt(cell, format, own)
            except DataError as error:
                raise DataError(f"{path} row {row}: {error}", hint=error.hint) from error
            passed[path] += prompt is cell
            prompts.append(prompt)
        rows[path] += len(frame)
        # Columns of text keep their type; messages that became text are plain objects.
        kind = frame["prompt"].dtype
        kind = kind if "string" in str(kind) else object
        frame["prompt"] = pd.Series(prompts, index=frame.index, dtype=kind)
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


def _later_stage(target: Path) -> Path | None:
    later = target.with_name(f"{target.stem}{REWARD_SUFFIX}{target.suffix}")
    return later if later.exists() else None
