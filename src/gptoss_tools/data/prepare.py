"""Published datasets to tables of prompts, train and test: what `prepare-data` does.

Rows stream through in chunks; of each, the hash of its content stays in memory to find duplicates.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from gptoss_tools.core.publish import MANIFEST, read_manifest, write_json
from gptoss_tools.core.whole_folder import whole_folder
from gptoss_tools.data.prepare_formats import Unusable, choose_format
from gptoss_tools.data.prepare_report import Report
from gptoss_tools.data.prepare_rows import PreparedRow, RowPreparer
from gptoss_tools.data.prepared_tables import Columns, PreparedWriter
from gptoss_tools.data.rewrite import Progress
from gptoss_tools.data.sources import read_sources, rows_of
from gptoss_tools.errors import DataError, GptossError, RunFolderError
from gptoss_tools.settings import PrepareDataSettings, PrepareRowSettings

REPORT = "report.json"
MADE_BY = "prepare-data"

Sources = Iterable[tuple[str, Iterable[Iterable[Mapping[str, Any]]]]]


@dataclass(frozen=True)
class Prepared:
    """What was written where; a side without rows has no file."""

    out: Path
    train: Path | None
    test: Path | None
    report: Report
    written: bool


@dataclass(frozen=True)
class PreparedRows:
    """Prepared rows in memory, all with the same columns."""

    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    report: Report


def prepare(settings: PrepareDataSettings, *, on_progress: Progress | None = None) -> Prepared:
    """Write `out/train`, `out/test` and `out/report.json`, all of them or none.

    A dry run reads and counts everything. Raises DataError where no row is left, or any is left out
    under `strict`; RunFolderError where `out` is in the way; MachineError where the Hub does not
    give a dataset.
    """
    out, report = Path(settings.out), Report()
    _refuse_in_the_way(out, settings.overwrite)
    rows = _rows(_files(settings), settings, report, on_progress)
    if settings.dry_run:
        _survey(rows, report, settings)
    else:
        with whole_folder(out, replace=settings.overwrite, made_by=MADE_BY) as folder:
            _write(folder, rows, report, settings)
    paths = {
        side: out / f"{side}.{settings.out_format}" if count else None
        for side, count in (("train", report.train), ("test", report.test))
    }
    return Prepared(out, paths["train"], paths["test"], report, not settings.dry_run)


def prepare_rows(
    rows: Iterable[Mapping[str, Any]], settings: PrepareRowSettings, *, source: str = "rows"
) -> PreparedRows:
    """Prepare rows that are in memory: the same rows, ids and sides as `prepare` makes of a file.

    Raises DataError as `prepare` does.
    """
    report = Report()
    found = list(_rows([(source, [rows])], settings, report))
    draw, columns = _survey(found, report, settings)
    sides: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for row in found:
        if draw.takes(row.rank):
            sides[row.train].append({name: row.cells.get(name) for name in columns.names})
    return PreparedRows(sides[True], sides[False], report)


def _write(
    folder: Path, rows: Iterable[PreparedRow], report: Report, settings: PrepareDataSettings
) -> None:
    """Fill the folder: rows are put aside until the draw and the columns of all are known."""
    aside = folder / "rows.tmp"
    with aside.open("w+", encoding="utf-8") as file:
        draw, columns = _survey(_put_aside(rows, file), report, settings)
        file.seek(0)
        with ExitStack() as stack:
            writers = {
                train: stack.enter_context(
                    PreparedWriter(folder / f"{side}.{settings.out_format}", columns)
                )
                for train, side, count in (
                    (True, "train", report.train),
                    (False, "test", report.test),
                )
                if count
            }
            for rank, train, cells in map(json.loads, file):
                if draw.takes(rank):
                    writers[train].write(cells)
    aside.unlink()
    asked = settings.model_dump(exclude={"dry_run", "overwrite", "out"})
    write_json(folder / REPORT, report.as_json(asked))


def _put_aside(rows: Iterable[PreparedRow], file: TextIO) -> Iterator[PreparedRow]:
    for row in rows:
        file.write(json.dumps([row.rank, row.train, row.cells]) + "\n")
        yield row


class _Draw:
    """The rows of smallest rank, which stay the same ones while others come and go."""

    def __init__(self, most: int | None):
        self.most = most
        self._drawn: list[tuple[int, bool]] = []  # the largest rank first, whether it trains
        self._counts = Counter[bool]()

    def offer(self, row: PreparedRow) -> None:
        """Take a row into the draw, maybe for another."""
        self._counts[row.train] += 1
        if self.most is None:
            return
        heapq.heappush(self._drawn, (-row.rank, row.train))
        if len(self._drawn) > self.most:
            self._counts[heapq.heappop(self._drawn)[1]] -= 1

    def takes(self, rank: int) -> bool:
        """Whether the row of a rank is among those drawn, once all were offered."""
        return self.most is None or rank <= -self._drawn[0][0]

    @property
    def sides(self) -> tuple[int, int]:
        """Rows drawn for training and for evaluation."""
        return self._counts[True], self._counts[False]


def _survey(
    rows: Iterable[PreparedRow], report: Report, settings: PrepareRowSettings
) -> tuple[_Draw, Columns]:
    """Go through all rows once: which are drawn, and which columns there are; finish the report."""
    draw, columns = _Draw(settings.max_examples), Columns()
    for row in rows:
        draw.offer(row)
        columns.add(row.cells)
    report.refuse_nothing()
    if settings.strict:
        report.refuse_drops()
    report.train, report.test = draw.sides
    report.beyond_max_examples = report.kept - report.train - report.test
    return draw, columns


def _rows(
    sources: Sources,
    settings: PrepareRowSettings,
    report: Report,
    on_progress: Progress | None = None,
) -> Iterator[PreparedRow]:
    """Yield every row that can be prepared, the first of its content; count the others."""
    make, seen = RowPreparer(settings), set[bytes]()
    for where, chunks in sources:
        count = report.begin(where)
        label = Path(where).name if Path(where).is_file() else where
        read, columns = None, {}
        for chunk in chunks:
            rows = list(chunk)
            if read is None and rows:
                columns = dict.fromkeys(str(name) for row in rows for name in row)
                read = choose_format(columns, settings.data_format, where)
                count.format = read.name
                if settings.split_by is not None and settings.split_by not in columns:
                    held = ", ".join(columns)
                    raise DataError(f"{where} has no column {settings.split_by}", f"it has {held}")
            for cells in rows:
                count.read += 1
                place = f"{where} row {count.read}"
                try:
                    row = make(read, {**columns, **cells}, label)  # type: ignore[arg-type]
                except Unusable as error:
                    report.drop(error.reason, place, error.detail)
                    continue
                except GptossError as error:
                    raise type(error)(f"{place}: {error}", error.hint) from error
                except Exception as error:  # a format of the user's own may raise anything
                    said = f"{type(error).__name__}: {error}"
                    raise DataError(f"{place}: the format {count.format} raises {said}") from error
                if row.digest in seen:
                    report.drop("duplicate", place)
                    continue
                seen.add(row.digest)
                count.kept += 1
                report.columns_left_out.update(row.left_out)
                yield row
            if on_progress is not None:
                on_progress(Path(where), count.read)


def _files(settings: PrepareDataSettings) -> Sources:
    found = read_sources(
        settings.paths,
        split=settings.split,
        subset=settings.subset,
        revision=settings.revision,
        encoding=settings.encoding,
        delimiter=settings.delimiter,
    )
    return ((where, map(rows_of, frames)) for where, frames in found)


def _refuse_in_the_way(out: Path, overwrite: bool) -> None:
    """RunFolderError unless `out` is free, or may be replaced and holds nothing else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise RunFolderError(f"{out} exists", hint="pass --overwrite, or name another --out")
    manifest = read_manifest(out) or {}
    ours = {MANIFEST, *manifest.get("files", ())} if manifest.get("made_by") == MADE_BY else set()
    foreign = (
        sorted(path.name for path in out.iterdir() if path.name not in ours)
        if (out.is_dir())
        else [out.name]
    )
    if foreign:
        raise RunFolderError(
            f"{out} holds what prepare-data did not write: {', '.join(foreign[:3])}",
            hint="name another --out",
        )
