"""A lock on a folder that the system drops when its holder dies, however it dies.

Where the system or the file system has no `flock`, nothing is locked: no guard is better than no
training.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gptoss_tools.errors import RunFolderError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def hold(path: Path, what: str, patience: float = 2.0) -> Iterator[None]:
    """Hold the lock file `path`; RunFolderError, naming `what`, if another live process holds it.

    `patience` (seconds) outlasts another command's short look through `is_locked`.
    """
    try:
        opened = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise RunFolderError(f"{what} cannot be written: {error.strerror}") from error
    with opened as handle:
        deadline = time.monotonic() + patience
        while not _try(handle, exclusive=True):
            if time.monotonic() >= deadline:
                handle.seek(0)
                holder = handle.read().strip() or "another process"
                raise RunFolderError(
                    f"{what} is in use by {holder}",
                    hint="wait for it or stop it, or name another folder",
                )
            time.sleep(0.05)
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {platform.node()}")
        handle.flush()
        yield


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock file `path`."""
    try:
        with path.open(encoding="utf-8") as handle:
            return not _try(handle, exclusive=False)
    except OSError:
        return False


def _try(handle: IO[str], *, exclusive: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
