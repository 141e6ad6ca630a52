"""Plain text to learn from: files, folders, globs, or one column of tables.

A corpus is a list of texts in order: one for each file, or one for each row of the tables. Leaves
out how texts become tokens (models.text_tokenizers).
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss_tools.data.stages import expand
from gptoss_tools.data.tables import SUFFIXES as TABLES
from gptoss_tools.data.tables import is_missing, read_chunks, values
from gptoss_tools.errors import ConfigError, DataError

SUFFIXES = (".txt", ".md")


@dataclass(frozen=True)
class Corpus:
    """Texts and where they come from; `sha256` covers the texts in order, not the paths."""

    texts: list[str]
    files: list[Path]
    sha256: str

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))

    def __str__(self) -> str:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


def read_corpus(
    paths: Sequence[str | Path],
    *,
    text_column: str | None = None,
    encoding: str = "utf-8",
    delimiter: str = ",",
) -> Corpus:
    """Read every text under `paths`; with `text_column` they are tables and each row is a text.

    Any file that is named is read as text; in folders and globs those named *.txt and *.md are, in
    the order of their names. Line ends become \\n. Raises DataError naming the file, and the row or
    line where one is at fault; empty texts are left out, and none at all is an error too.
    """
    if not paths:
        raise DataError("no text was named", hint="name files, folders or globs with --data")
    if text_column is None:
        files = text_files(paths)
        texts = [_read(file, encoding) for file in files]
    else:
        files = expand(paths, stage="train")
        texts = [t for file in files for t in _cells(file, text_column, encoding, delimiter)]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError(f"{', '.join(map(str, paths))}: there is no text in it")
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(f"{len(data)} ".encode() + data)
    return Corpus(texts, files, digest.hexdigest())


def text_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the text files under files, folders (searched recursively) and globs, each once."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        for file in _files(path):
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix.lower() in TABLES:
            raise DataError(f"{path} is a table", hint="name its column with --text-column")
        return [path]
    if path.is_dir():
        inside, root = [*path.rglob("*")], path
    elif glob.has_magic(str(path)):
        inside, root = [Path(name) for name in glob.glob(str(path), recursive=True)], Path()
    else:
        raise DataError(f"{path} does not exist", hint="name a text file, a folder or a glob")
    chosen = sorted(p for p in inside if p.suffix.lower() in SUFFIXES and _is_visible(p, root))
    if not chosen:
        raise DataError(f"{path} holds no text file", hint=" or ".join(SUFFIXES))
    return chosen


def _is_visible(path: Path, root: Path) -> bool:
    # Hidden files are half-written or somebody else's.
    parts = path.relative_to(root).parts if path.is_relative_to(root) else path.parts
    return path.is_file() and not any(p.startswith(".") and p not in (".", "..") for p in parts)


def _read(path: Path, encoding: str) -> str:
    try:
        # As tables are read: a byte order mark is no part of the text.
        text = path.read_bytes().decode(encoding).removeprefix("\ufeff")
    except LookupError:
        raise ConfigError(
            f"encoding {encoding!r} is unknown", hint="for example utf-8, cp932, utf-16, latin-1"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} line {line} is not {encoding} text", hint="try --encoding latin-1, or utf-16"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _cells(path: Path, column: str, encoding: str, delimiter: str) -> Iterator[str]:
    row = 0
    for frame in read_chunks(path, encoding=encoding, delimiter=delimiter):
        if column not in frame.columns:
            if frame.empty:
                continue
            known = ", ".join(map(str, frame.columns))
            raise DataError(f"{path} has no column {column!r}", hint=f"its columns: {known}")
        for cell in values(frame, column):
            row += 1
            if isinstance(cell, str):
                yield cell.replace("\r\n", "\n")
            elif not is_missing(cell):
                raise DataError(f"{path} row {row}, column {column}: {cell!r:.60} is no text")
