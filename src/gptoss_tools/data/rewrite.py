"""Change tables chunk by chunk, so that all of them change or none does.

Everything goes to temporary names first; targets get their names only when the last row of the last
file went through. Leaves out what is changed: the caller hands in one function per chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from gptoss_tools.data.table_writer import TableWriter
from gptoss_tools.data.tables import read_chunks
from gptoss_tools.errors import RunFolderError

Change = Callable[[Path, pd.DataFrame, int], pd.DataFrame]
Progress = Callable[[Path, int], None]


def rewrite_tables(
    targets: Mapping[Path, Sequence[Path]],
    change: Change,
    *,
    encoding: str,
    delimiter: str,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> None:
    """Write `change(source, frame, first_row)` of every chunk of every source to its targets.

    `first_row` is the 1-based number of the frame's first row. A dry run reads and checks all of it
    and writes nothing. `on_progress` gets the source and the rows done in it.
    """
    writers: list[TableWriter] = []
    try:
        for source, outputs in targets.items():
            opened = [] if dry_run else [TableWriter(output) for output in outputs]
            writers += opened
            first_row = 1
            # While one chunk is written, the next is read: Arrow and the disk need no Python.
            with ThreadPoolExecutor(1) as behind:
                writing: Future[None] | None = None
                for frame in read_chunks(source, encoding=encoding, delimiter=delimiter):
                    changed = change(source, frame, first_row)
                    if writing is not None:
                        writing.result()
                    writing = behind.submit(_write, opened, changed)
                    first_row += len(frame)
                    if on_progress is not None:
                        on_progress(source, first_row - 1)
                if writing is not None:
                    writing.result()
        for writer in writers:
            writer.commit()
    except BaseException:
        for writer in writers:
            writer.abort()
        raise


def _write(writers: Sequence[TableWriter], frame: pd.DataFrame) -> None:
    for writer in writers:
        writer.write(frame)


def refuse_clashes(targets: Mapping[Path, Sequence[Path]], overwrite: bool, remedy: str) -> None:
    """RunFolderError if an output exists (unless `overwrite`), is also an input, or comes twice."""
    sources = {source.resolve() for source in targets}
    seen: dict[Path, Path] = {}
    for source, outputs in targets.items():
        for output in outputs:
            place = output.resolve()
            if place in sources and place != source.resolve():
                raise RunFolderError(
                    f"{output} is an input and also the output of {source}",
                    hint="name one of the two, or the folder, which takes each table once",
                )
            if place in seen:
                raise RunFolderError(f"{output} would be written from {seen[place]} and {source}")
            seen[place] = source
            if output.exists() and not overwrite:
                raise RunFolderError(f"{output} exists", hint=remedy)
