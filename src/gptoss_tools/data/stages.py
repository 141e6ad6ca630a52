"""Which tables a command takes from the paths it is given.

A table passes through stages whose files lie beside each other: `x.csv` (legacy text),
`x_harmony.csv`, `x_with_reward.csv`, `x_harmony_with_reward.csv`. In a folder or glob each such
family counts once, so no row is converted, scored or trained on twice. Files named one by one are
always taken. Leaves out reading them (data.tables).
"""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gptoss_tools.data.tables import SUFFIXES
from gptoss_tools.errors import ConfigError, DataError

Stage = Literal["convert", "score", "train", "check"]

HARMONY_SUFFIX = "_harmony"
REWARD_SUFFIX = "_with_reward"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def expand(
    paths: Sequence[str | Path] | str | Path,
    *,
    stage: Stage,
    suffix: str = HARMONY_SUFFIX,
    shard: str | None = None,
) -> list[Path]:
    """Tables under files, folders (searched recursively) and globs, sorted within each path.

    "convert" takes the furthest member of a family that is not yet Harmony, "score" the furthest
    without rewards, "train" and "check" the furthest. A file reached twice comes once. `shard`
    "i/n" takes every n-th of these tables, from the i-th on (from 1). Raises DataError for paths
    that do not exist, are no tables, or leave nothing to do.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    if not paths:
        raise DataError("no table was named", hint="name files, folders or globs")
    found: dict[Path, Path] = {}
    for path in paths:
        if str(path) == "":
            raise DataError("a path is empty", hint="name files, folders or globs; . is this one")
        for table in _tables(Path(path), stage, suffix):
            found.setdefault(table.resolve(), table)
    return list(found.values()) if shard is None else _part(list(found.values()), shard)


def stage_of(path: Path, suffix: str = HARMONY_SUFFIX) -> tuple[str, bool, bool]:
    """Family name, whether the name says Harmony, whether it says rewards."""
    stem, harmony, reward = path.stem, False, False
    while True:
        if not reward and stem.endswith(REWARD_SUFFIX):
            stem, reward = stem.removesuffix(REWARD_SUFFIX), True
        elif not harmony and suffix and stem.endswith(suffix):
            stem, harmony = stem.removesuffix(suffix), True
        else:
            return stem, harmony, reward


def is_hub_id(path: str) -> bool:
    """Whether a path that leads nowhere reads like a dataset of the Hub, owner/name."""
    return (
        _HUB_ID.fullmatch(path) is not None
        and not path.startswith(".")
        and Path(path).suffix.lower() not in (*SUFFIXES, ".json")
        and not Path(path).exists()
        and not Path(path).parent.is_dir()  # then it is a name mistyped
    )


def _part(tables: list[Path], shard: str) -> list[Path]:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise ConfigError(f"shard {shard!r} is no part of a whole", hint="1/4, 2/4, 3/4 or 4/4")
    if part > len(tables):
        are = "is one table" if len(tables) == 1 else f"are {len(tables)} tables"
        raise DataError(
            f"shard {shard} is empty: there {are}", hint="a table is never split: use fewer shards"
        )
    return tables[part - 1 :: parts]


def _tables(path: Path, stage: Stage, suffix: str) -> list[Path]:
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            hint = f"known kinds: {', '.join(SUFFIXES)}"
            if path.suffix.lower() == ".json":
                hint += f"; of a dataset in JSON, gptoss prepare-data {path} makes one"
            raise DataError(f"{path} is not a table", hint)
        return [path]
    if path.is_dir():
        inside = [p for p in path.rglob("*") if _is_table(p, path)]
        if not inside:
            raise DataError(f"the folder {path} holds no table", hint=f"{', '.join(SUFFIXES)}")
    elif glob.has_magic(str(path)):
        matches = [Path(name) for name in glob.glob(str(path), recursive=True)]
        inside = [p for p in matches if _is_table(p, Path())]
        if not inside:
            raise DataError(f"no table matches {path}", hint="the pattern is relative to here")
    else:
        raise _not_there(path)
    chosen = _one_per_family(inside, stage, suffix)
    if not chosen:
        done = "converted" if stage == "convert" else "scored"
        raise DataError(f"{path}: every table in it is {done} already")
    return chosen


def _one_per_family(tables: list[Path], stage: Stage, suffix: str) -> list[Path]:
    families: dict[tuple[Path, str, str], list[tuple[tuple[int, bool], Path]]] = {}
    for table in sorted(tables):
        family, harmony, reward = stage_of(table, suffix)
        if (stage == "convert" and harmony) or (stage == "score" and reward):
            continue
        key = (table.parent, family, table.suffix.lower())
        families.setdefault(key, []).append(((harmony + reward, harmony), table))
    return [max(members, key=lambda member: member[0])[1] for members in families.values()]


def _is_table(path: Path, root: Path) -> bool:
    # Hidden files are half-written or somebody else's.
    hidden = any(part.startswith(".") and part not in (".", "..") for part in _below(path, root))
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _below(path: Path, root: Path) -> tuple[str, ...]:
    return path.relative_to(root).parts if path.is_relative_to(root) else path.parts


def _not_there(path: Path) -> DataError:
    if path.is_symlink():
        return DataError(f"{path} is a link that leads nowhere", hint=f"ls -l {path}")
    if path.exists():
        return DataError(f"{path} is neither a file nor a folder")
    if is_hub_id(str(path)):
        hint = f"of a dataset of the Hub, gptoss prepare-data {path} makes tables"
        return DataError(f"{path} does not exist", hint)
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else None
    return DataError(f"{path} does not exist", hint=hint)
