"""Copies that the file system shares where it can, and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gptoss_tools.core.publish import sync
from gptoss_tools.errors import GptossError, RunFolderError

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


@contextmanager
def whole_folder(out: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a hidden folder beside `out` that takes its name when the block ends without error.

    An error removes it; what a killed process left is cleared by the next call. An existing `out`
    is kept until the new folder is complete, and must not exist without `replace`. Raises
    RunFolderError while another process writes the same folder.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"{out} cannot be written: {error.strerror}", hint="name another folder with --out"
        ) from error
    handle = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunFolderError(f"another process is writing {out}") from error
        for left in partial.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield partial
            sync(partial)
            _take_name(partial, out, replace)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise GptossError(f"the disk of {out.parent} is full; nothing was kept") from error
            raise
    finally:
        os.close(handle)


def _take_name(partial: Path, out: Path, replace: bool) -> None:
    old = out.with_name(f".{out.name}.old")
    if out.exists():
        empty = out.is_dir() and not any(out.iterdir())
        if not replace and not empty:
            raise RunFolderError(f"{out} appeared while the export ran", hint="pass --overwrite")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(out, old)
    os.rename(partial, out)
    sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _reflink(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError:
        return False
    return True
