"""gptoss verify-export."""

from __future__ import annotations

from pathlib import Path

from ..console import align, out
from ..errors import GptossError
from ..load import Loaded
from ..settings import VerifyExportSettings
from .common import build_tiny_first, cache_dir
from .options import command


@command(
    "verify-export",
    VerifyExportSettings,
    positional="folder",
    examples=[
        "gptoss verify-export exports/first",
        "gptoss verify-export exports/first --base openai/gpt-oss-20b --no-forward",
    ],
)
def verify_export(settings: VerifyExportSettings, loaded: Loaded) -> None:
    """Check an export: structure, bytes against its base, values.

    Compares every byte that the adapter left alone with the base, where the base's files are on
    this machine; --base names it otherwise. Runs a prompt where memory allows. Changes nothing.
    Exit code 1 if there is any problem, with all of them listed.
    """
    from ..export.verify import read_record
    from ..export.verify import verify_export as verify

    folder = Path(settings.folder)
    base = _base(settings.base, str(read_record(folder).get("base")))
    with out.progress("bytes", None, every=1 << 30) as update:
        found = verify(
            folder,
            base,
            forward=settings.forward,
            on_progress=lambda what, done, total: update(done, total=total, doing=what),
        )
    data = {
        "folder": folder,
        "format": found.format,
        "base": base,
        "checks": dict(found.checks),
        "problems": found.problems,
    }
    rows = [{"check": name, "outcome": outcome} for name, outcome in found.checks]
    out.result(data, "\n".join([align(rows), *found.problems]))
    if found.problems:
        count = len(found.problems)
        raise GptossError(
            f"{count} problem{'s' if count > 1 else ''} in {folder}", hint="export it again"
        )


def _base(given: str | None, recorded: str) -> Path | None:
    """Return the base's folder: the given one, else the recorded one if its files are here."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    from ..models.snapshot import checkpoint_folder

    if given:
        build_tiny_first(given)
        return checkpoint_folder(given, cache_dir=cache_dir())
    for folder in (Path(recorded), cache_dir() / recorded):  # the tiny model is in the cache
        if (folder / "config.json").is_file():
            return folder
    try:
        return Path(snapshot_download(recorded, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
