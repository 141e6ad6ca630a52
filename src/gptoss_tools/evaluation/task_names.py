"""Whether a task of lm-eval may be of that name, told from the text of its definitions.

lm-eval knows its 14 000 names once it has parsed every definition, some seconds after libraries of
some seconds more. A name that stands in none of the files is none, and that is known at once.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from gptoss_tools.errors import ConfigError

# What a definition calls itself, its group or tags: enough to find what was meant.
_NAMED = re.compile(rb"(?m)^[ \t]*(?:task|group|tag|-)[ \t]*:?[ \t]*[\"']?([\w.:/+-]+)")


def refuse_unwritten(names: Sequence[str], folder: str | Path | None = None) -> None:
    """Raise ConfigError for a name that stands in no definition, lm-eval's own or in `folder`.

    Imports nothing of lm-eval; without it, or without the folder, it is silent: `Tasks` says that.
    """
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        return
    if folder is not None and not Path(folder).is_dir():
        return
    own = b"" if folder is None else _text(Path(folder))
    missing = [name for name in names if not _stands_in(own, name)]
    if not missing:
        return
    known = _text(Path(found.submodule_search_locations[0]) / "tasks")
    for name in missing:
        if not _stands_in(known, name):
            called = {word.decode() for word in _NAMED.findall(known + own)}
            raise unknown(name, called, folder)


def unknown(name: str, known: Collection[str], folder: str | Path | None) -> ConfigError:
    """Return the error that names what is near among `known`."""
    near = difflib.get_close_matches(name, known, n=3)
    where = "lm-eval" if folder is None else f"lm-eval or {folder}"
    hint = f"near it: {', '.join(near)}" if near else "lm-eval ls tasks lists them all"
    return ConfigError(f"`tasks` names {name!r}, which is no task of {where}", hint=hint)


def _stands_in(text: bytes, name: str) -> bool:
    """Whether a name is there as a whole word."""
    return re.search(rb"(?<!\w)" + re.escape(name.encode()) + rb"(?!\w)", text) is not None


def _text(folder: Path) -> bytes:
    """All files under a folder but programs: definitions include others of any name."""
    paths = (path for path in folder.rglob("*") if path.suffix not in (".py", ".pyc"))
    return b"\n".join(path.read_bytes() for path in paths if path.is_file())
