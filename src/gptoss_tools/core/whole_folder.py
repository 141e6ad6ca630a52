"""A folder written by one process at a time, which appears whole or not at all.

`publish` for writers that hold no other lock: the hidden folder that is written is locked itself,
and the system drops the lock when its holder dies.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptoss_tools.core.publish import TEMPORARY, is_published, publish
from gptoss_tools.errors import GptossError, RunFolderError

try:
    import fcntl
except ImportError:  # Windows: no lock, the later of two writers wins
    fcntl = None

_FULL = {
    errno.ENOSPC: "the disk of {} is full",
    errno.EDQUOT: "the disk quota in {} is used up",
    errno.EFBIG: "{} may not hold a file that large",
}


@contextlib.contextmanager
def whole_folder(final: Path, *, replace: bool = False, **facts: Any) -> Iterator[Path]:
    """Yield an empty hidden folder beside `final` that is published when the block ends well.

    An error removes it; what a killed process left is cleared by the next call, and a `final` that
    it had moved aside gets its name back. An existing `final` is kept until the new folder is
    complete; without `replace` it may only be empty. Raises RunFolderError while another process
    writes the same folder or where nothing can be written, GptossError where the disk is full.
    """
    partial = final.with_name(f".{final.name}.partial")
    handle = _lock_folder(partial, final)
    try:
        _put_back(final)
        for left in partial.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        try:
            yield partial
            if not replace and final.exists() and (final.is_file() or any(final.iterdir())):
                raise RunFolderError(f"{final} appeared meanwhile", hint="pass --overwrite")
            publish(partial, final, **facts)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in _FULL:
                reason = _FULL[error.errno].format(final.parent)
                raise GptossError(
                    f"{reason}; nothing was kept", hint="name another folder with --out"
                ) from error
            raise
    finally:
        os.close(handle)


def _lock_folder(partial: Path, final: Path) -> int:
    """Make `partial` and lock it; the system drops the lock if this process dies."""
    while True:
        made = False
        try:
            partial.mkdir(parents=True, exist_ok=True)
            made = True
            handle = os.open(partial, os.O_RDONLY)
        except OSError as error:
            if made and error.errno == errno.ENOENT:  # another writer's got its name just now
                continue
            raise RunFolderError(
                f"{final} cannot be written: {error.strerror}",
                hint="name another folder with --out",
            ) from error
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), partial.stat()):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise RunFolderError(f"another process is writing {final}") from error
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks: no guard is better than no export
            return handle
        os.close(handle)  # locked what is `final` by now


def _put_back(final: Path) -> None:
    """Undo half a replacement; call it only while holding the lock for `final`."""
    for path in final.parent.glob(f"{TEMPORARY}*-{glob.escape(final.name)}-old"):
        if path.name.count("-") != final.name.count("-") + 3:
            continue  # the star matched more than a process: another folder's
        if is_published(path) and not final.exists():
            os.replace(path, final)
        else:
            shutil.rmtree(path, ignore_errors=True)
