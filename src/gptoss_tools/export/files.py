"""Copies that the file system shares where it can."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gptoss_tools.errors import GptossError

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file (Btrfs, XFS)
_PIECE = 64 << 20
_CANNOT = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF}


def copy_file(source: Path, target: Path, on_bytes: Callable[[int], None]) -> str:
    """Copy one file by reflink, in the kernel, or through memory; return which it was.

    `on_bytes` gets the size of each piece. Raises GptossError where the disk is too small, before
    the first byte where that can be known.
    """
    size = source.stat().st_size
    if share_or_reserve(source, target):
        on_bytes(size)
        return "reflink"
    require_room(target, size)
    return fill(source, target, on_bytes)


def share_or_reserve(source: Path, target: Path) -> bool:
    """Make `target` a reflink of `source` (True) or a file of its size for `fill` (False)."""
    with source.open("rb") as reader, target.open("wb") as writer:
        if _reflink(reader.fileno(), writer.fileno()):
            return True
        os.ftruncate(writer.fileno(), os.fstat(reader.fileno()).st_size)
    return False


def fill(
    source: Path,
    target: Path,
    on_bytes: Callable[[int], None],
    holes: Iterable[tuple[int, int]] = (),
) -> str:
    """Copy all but the `holes`, (offset, bytes), to the same places; say how, as `copy_file`."""
    how = "copy_file_range" if hasattr(os, "copy_file_range") else "read and write"
    with source.open("rb") as reader, target.open("r+b", buffering=0) as writer:
        for first, last in _between(holes, os.fstat(reader.fileno()).st_size):
            at = first
            while at < last and how == "copy_file_range":
                count, size = 0, min(_PIECE, last - at)
                try:
                    count = os.copy_file_range(reader.fileno(), writer.fileno(), size, at, at)
                except OSError as error:
                    if error.errno not in _CANNOT:
                        raise
                if not count:
                    how = "read and write"
                at += count
                on_bytes(count)
            reader.seek(at)
            writer.seek(at)
            while at < last and (piece := reader.read(min(_PIECE // 16, last - at))):
                writer.write(piece)
                at += len(piece)
                on_bytes(len(piece))
    return how


def _between(holes: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """The ranges (first, last) of a file that no hole covers."""
    at = 0
    for offset, count in sorted(holes):
        if offset > at:
            yield at, offset
        at = offset + count
    if size > at:
        yield at, size


def require_room(path: Path, needed: int) -> None:
    """Raise GptossError unless the disk of `path` has that many bytes left."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise disk_full(path, needed, free)


def disk_full(path: Path, needed: int, free: int) -> GptossError:
    """The error for a disk without room."""
    return GptossError(
        f"the disk of {path.parent} is too small: {needed / 1e9:.2f} GB needed, "
        f"{free / 1e9:.2f} GB free",
        hint="name another folder with --out",
    )


def _reflink(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError:
        return False
    return True
