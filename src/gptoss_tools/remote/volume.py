"""The volumes at Modal: sending files to one, and keeping what a run writes on it."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gptoss_tools.core.runs import Run

WORK, WORK_MOUNT = "gptoss-work", "/vol/gptoss"  # runs, exports, evaluations; the working folder
HUB, HUB_MOUNT = "gptoss-hub", "/vol/hub"  # what was downloaded from the Hub


@dataclass(frozen=True)
class Upload:
    """One file to send: where it is, or what it holds, and its path on the volume."""

    source: Path | bytes
    remote: str


class Receiver(Protocol):
    """What is asked of a volume from outside."""

    def batch_upload(self, force: bool = False) -> Any: ...


class Volume(Protocol):
    """What is asked of a volume where it is mounted."""

    def reload(self) -> Any: ...

    def commit(self) -> Any: ...


def send(volume: Receiver, uploads: Iterable[Upload]) -> None:
    """Put the files on the volume; content that is there already is not sent again."""
    with volume.batch_upload(force=True) as batch:
        for one in uploads:
            source = io.BytesIO(one.source) if isinstance(one.source, bytes) else str(one.source)
            batch.put_file(source, f"/{one.remote}")


@contextlib.contextmanager
def committing(
    volume: Volume | None, run: Run | None, every: float, say: Callable[[str], Any]
) -> Iterator[None]:
    """Commit the volume whenever the run has something new, and at the end."""
    if volume is None:
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        kept = _written(run)
        while not ended.wait(every):
            now = _written(run)
            if now == kept:
                continue
            try:
                volume.commit()
                kept = now
            except Exception as error:  # the next round tries again, and the end insists
                say(f"the volume could not be committed: {error}\n")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        volume.commit()


def _written(run: Run | None) -> tuple[Any, ...]:
    """What tells whether a run has something new: its complete checkpoints and its metrics."""
    if run is None:
        return ()
    metrics = run.metrics_path
    size = metrics.stat().st_size if metrics.exists() else 0
    return tuple(point.path.name for point in run.checkpoints()), size
