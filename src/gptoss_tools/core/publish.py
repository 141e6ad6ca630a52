"""Files and folders that appear whole or not at all.

A file is written under a temporary name beside its target, synced, and renamed. A folder gets a
manifest (names and sizes) before its rename, so a reader can also tell a damaged copy. Temporary
names start with `.tmp-`; `sweep` removes what a killed process left. Knows nothing of checkpoints.
Writers without a lock of their own use `core.whole_folder`, which publishes too.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from gptoss_tools.errors import RunFolderError

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"


def temporary_name(target: Path) -> Path:
    """Return a name beside `target`, of this process alone, that `sweep` recognises."""
    return target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")


def clear_leftovers(target: Path, older_than: float = 600.0) -> None:
    """Remove temporary files for `target` whose process was killed and left them behind.

    A process that is not found here might run on another machine that shares the folder, so what
    changed in the last `older_than` seconds stays.
    """
    for path in target.parent.glob(f"{TEMPORARY}*-{glob.escape(target.name)}"):
        number = path.name.removeprefix(TEMPORARY).split("-", 1)[0]
        with contextlib.suppress(OSError):
            old = time.time() - path.stat().st_mtime > older_than
            if number.isdigit() and old and not _runs(int(number)):
                path.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def sync(path: Path) -> None:
    """Flush a file or folder to the disk; folders are skipped where the system cannot sync them."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as strictly valid JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, whole or not at all."""
    temporary = temporary_name(path)
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def publish(temporary: str | Path, final: str | Path, **facts: Any) -> Path:
    """Turn the finished folder `temporary` into `final`, atomically; return `final`.

    Everything is synced before the rename and the parent after it, so a power cut cannot leave a
    folder whose name is there and whose bytes are not. `facts` go into the manifest. An existing
    `final` is replaced: it moves aside first, so that at no moment a half folder has its name.
    """
    temporary, final = Path(temporary), Path(final)
    files = {}
    for path in sorted(temporary.rglob("*")):
        if path.name != MANIFEST or path.parent != temporary:
            sync(path)
            if path.is_file():
                files[path.relative_to(temporary).as_posix()] = path.stat().st_size
    write_json(temporary / MANIFEST, {**facts, "files": files})
    sync(temporary)
    aside = None
    if final.exists():
        aside = temporary_name(final.with_name(final.name + "-old"))
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
    os.replace(temporary, final)
    sync(final.parent)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Return the manifest of a published folder, or None if there is no readable one."""
    try:
        manifest = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "files" in manifest else None


def is_complete(folder: str | Path) -> bool:
    """Whether `folder` was published and every file still has the size it had then."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None or folder.name.startswith(TEMPORARY):
        return False
    try:
        return all((folder / n).stat().st_size == size for n, size in manifest["files"].items())
    except (OSError, TypeError, AttributeError):
        return False


def remove(folder: Path) -> None:
    """Delete a published folder so that a kill midway leaves no half folder under its name."""
    aside = temporary_name(folder)
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> list[Path]:
    """Remove what killed processes left in `folder`; call it only while holding the run's lock.

    A folder that had moved aside for a replacement that never came gets its name back.
    """
    if not folder.is_dir():
        return []
    removed = []
    for path in sorted(folder.glob(TEMPORARY + "*")):
        name = path.name[len(TEMPORARY) :].partition("-")[2]
        home = folder / name.removesuffix("-old")
        if name.endswith("-old") and is_published(path) and not home.exists():
            os.replace(path, home)
            continue
        removed.append(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return removed


def is_published(folder: Path) -> bool:
    """Whether a folder under any name holds a manifest."""
    return folder.is_dir() and read_manifest(folder) is not None


def require_free(path: Path, hint: str) -> None:
    """Raise RunFolderError if `path` is a file or a folder that holds anything visible."""
    if path.is_file():
        raise RunFolderError(f"{path} is a file, not a folder", hint=hint)
    if path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise RunFolderError(f"{path} is not empty", hint=hint)
