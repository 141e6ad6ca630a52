"""Where the tiny model lives: built once under the user's cache folder, then found again.

The folder's name is a hash of the recipe and the prompts, so a changed recipe never meets an old
model. Processes that come at once are safe: one builds under a lock, the others wait and find it;
the folder appears by a rename, whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path

from gptoss_tools.core.publish import is_complete, publish, temporary_name
from gptoss_tools.errors import ConfigError, GptossError, MachineError
from gptoss_tools.models.tiny import Recipe, build_tiny

try:
    import fcntl
except ImportError:  # Windows: no lock, two builders both work and the later rename wins
    fcntl = None

PROMPTS = "tiny_prompts.json"


def shipped_prompts() -> list[str]:
    """The decision prompts that come with the package, rendered Harmony, one JSON list of texts."""
    file = resources.files("gptoss_tools.models").joinpath(PROMPTS)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"this installation lacks {PROMPTS}", hint="install it again") from None


def default_cache() -> Path:
    """The cache folder where none is named."""
    return Path.home() / ".cache" / "gptoss"


def tiny_path(
    cache_dir: Path | None = None,
    *,
    prompts: Sequence[str] | None = None,
    recipe: Recipe | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> Path:
    """The tiny model's folder, built on the first call (see `build_tiny`).

    `prompts` default to the shipped ones. Raises MachineError where the cache cannot be written.
    """
    recipe = recipe or Recipe()
    prompts = shipped_prompts() if prompts is None else list(prompts)
    text = json.dumps([asdict(recipe), prompts], sort_keys=True)
    name = "tiny-" + hashlib.sha256(text.encode()).hexdigest()[:12]
    cache = cache_dir or default_cache()
    folder = cache / name
    if is_complete(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{name}.lock"):
            if is_complete(folder):  # another process built it while this one waited
                return folder
            temporary = temporary_name(folder)
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                build_tiny(temporary, prompts=prompts, recipe=recipe, on_progress=on_progress)
                return publish(temporary, folder)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except GptossError:
        raise
    except OSError as error:
        raise MachineError(
            f"the tiny model cannot be kept in {cache}: {error.strerror or error}",
            hint="name another cache folder",
        ) from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock; the system lets go of it if this process dies."""
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
