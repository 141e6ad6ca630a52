"""What a setting names here, as files to send and as the path it has on the volume.

Files go into a folder named after their content, so that a job's inputs never change under it.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptoss_tools.errors import DataError
from gptoss_tools.remote.volume import Upload

FOLDER = "inputs"
BUILT_THERE = "tiny"


def sent(value: str | list[str]) -> tuple[Any, list[Upload]]:
    """Return a setting's value as it reads on the volume, and the files it stands for."""
    if isinstance(value, list):
        pairs = [sent(one) for one in value]
        return [new for new, _ in pairs], [upload for _, found in pairs for upload in found]
    path = Path(value)
    if value == BUILT_THERE:
        return value, []
    if path.is_file():
        root, files, inside = path.parent, [path], path.name
    elif path.is_dir():
        path = path.resolve()
        root, files, inside = path.parent, _files_in(path), path.name
    elif glob.has_magic(value) and (matches := glob.glob(value, recursive=True)):
        parts = path.parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        root, inside = Path(*parts[:fixed]), ""
        files = [Path(match) for match in sorted(matches) if Path(match).is_file()]
    else:
        return value, []
    if not files:
        raise DataError(f"{value} holds no file")
    named = [(file.relative_to(root).as_posix(), file) for file in files]
    home = f"{FOLDER}/{_digest(named)}"
    uploads = [Upload(file, f"{home}/{name}") for name, file in named]
    return f"{home}/{inside}".rstrip("/"), uploads


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a folder; of a finished run not its checkpoints."""
    skipped = "checkpoints" if (folder / "outcome.json").is_file() else None
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] != skipped and not any(p.startswith(".") for p in parts):
            found.append(path)
    return found


def _digest(named: Sequence[tuple[str, Path]]) -> str:
    total = hashlib.sha256()
    for name, path in named:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        total.update(f"{name}\n{content}\n".encode())
    return total.hexdigest()[:16]
