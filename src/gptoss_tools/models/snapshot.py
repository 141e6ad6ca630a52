"""A base checkpoint as files on disk: where they are, and whether they are still the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import snapshot_download

from gptoss_tools.errors import MachineError
from gptoss_tools.models.names import resolve_model

# The published repositories hold the weights three times over; the root files are all that is used.
ROOT_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "LICENSE", "USAGE_POLICY"]
OTHER_COPIES = ["original/*", "metal/*"]


def checkpoint_folder(name: str | Path, *, cache_dir: Path | None = None) -> Path:
    """Return the folder of a base model's files: its own, the tiny model's, or the Hub cache's.

    Downloads a Hub id's root files if they are not in the cache yet. Raises MachineError where the
    Hub does not give them, ConfigError for what names no model.
    """
    resolved = resolve_model(name, cache_dir=cache_dir)
    if Path(resolved).is_dir():
        return Path(resolved)
    try:
        return Path(
            snapshot_download(resolved, allow_patterns=ROOT_FILES, ignore_patterns=OTHER_COPIES)
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MachineError(
            f"the files of {resolved} are not here and the Hub did not give them: {reason}",
            hint="check the network, log in for gated models, or name a folder with --base",
        ) from error


def fingerprint(model: str | Path, *, sample: int = 1 << 20) -> str | None:
    """Return a hash that tells a changed model folder; None for a Hub id, whose files are not here.

    Of config.json every byte counts, of each weights file its size, first and last `sample` bytes:
    enough to tell another training or another recipe, and cheap for 14 GB.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(sample))
            file.seek(max(0, size - sample))
            digest.update(file.read(sample))
    return digest.hexdigest()
