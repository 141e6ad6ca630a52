"""Copies that the file system shares where it can."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from gptoss_tools.core.whole_folder import whole_folder
from gptoss_tools.errors import GptossError

__all__ = ["copy_file", "disk_full", "whole_folder"]

_FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file (Btrfs, XFS)
_PIECE = 64 << 20
_CANNOT = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF}


def copy_file(source: Path, target: Path, on_bytes: Callable[[int], None]) -> str:
    """Copy one file by reflink, in the kernel, or through memory; return which it was.

    `on_bytes` gets the size of each piece. Raises GptossError where the disk is too small, before
    the first byte where that can be known.
    """
    size = source.stat().st_size
    with source.open("rb") as reader, target.open("wb") as writer:
        if _reflink(reader.fileno(), writer.fileno()):
            on_bytes(size)
            return "reflink"
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise disk_full(target, size, free)
        how = "copy_file_range" if hasattr(os, "copy_file_range") else "read and write"
        done = 0
        while done < size and how == "copy_file_range":
            try:
                count = os.copy_file_range(reader.fileno(), writer.fileno(), _PIECE, done, done)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                count = 0
            if not count:
                how = "read and write"
            done += count
            on_bytes(count)
        reader.seek(done)
        writer.seek(done)
        while piece := reader.read(_PIECE // 16):
            writer.write(piece)
            on_bytes(len(piece))
    return how


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
