"""Hourly cooling load and grid carbon intensity: generated from a seed, or read from CSV files.

Three generated days of the grid: `duck` (solar hollows out the day, a steep evening), `noon` (a
shallow midday dip over a high night), `peak` (flat, with an afternoon peak). Load exists in the
plant's decision hours only. All constants are our own, in the range of measured grids. Left out:
seasons, weekends, any correlation of weather over days.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gptoss_tools.core.publish import write_text
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.tes.plant import Floats, Plant


@dataclass(frozen=True)
class Profile:
    """The carbon day of one kind of grid, in kgCO2/kWh; each day draws around these."""

    night: float
    dip: float  # how far solar pulls the day down
    dip_hour: float
    dip_width: float  # hours
    peak: float  # how far the later peak rises
    peak_hour: float
    peak_width: float  # hours


PROFILES = {
    "duck": Profile(0.34, 0.24, 11.5, 3.0, 0.16, 19.0, 2.5),
    "noon": Profile(0.48, 0.20, 12.0, 3.5, 0.04, 19.5, 3.0),
    "peak": Profile(0.38, 0.08, 9.0, 2.5, 0.18, 16.0, 2.5),
}


@dataclass(frozen=True)
class Series:
    """Hours in a row: `time` [n] datetimes, `load_kw` [n] and `carbon` [n] in kgCO2/kWh."""

    time: tuple[datetime, ...]
    load_kw: Floats
    carbon: Floats
    name: str = "series"

    def __len__(self) -> int:
        return len(self.time)

    @property
    def hours(self) -> NDArray[np.int64]:
        """The hour of day of each entry."""
        return np.array([t.hour for t in self.time], dtype=np.int64)

    @property
    def day(self) -> NDArray[np.int64]:
        """The calendar day of each entry, counted from the first."""
        return np.array([(t.date() - self.time[0].date()).days for t in self.time], dtype=np.int64)


def generate(
    profile: str, days: int, seed: int, *, plant: Plant | None = None, start: str = "2025-06-02"
) -> Series:
    """Draw `days` + 1 days of a profile; the extra day is what values the energy left at the end.

    The same arguments give the same series. Raises ConfigError for an unknown profile or no day.
    """
    if profile not in PROFILES:
        raise ConfigError(f"profile {profile!r} is not one of {', '.join(PROFILES)}")
    if days < 1:
        raise ConfigError(f"days must be 1 or more, not {days}")
    shape, hours_allowed = PROFILES[profile], (plant or Plant()).decision_hours
    rng = np.random.default_rng([seed, sorted(PROFILES).index(profile)])
    hours = np.arange(24.0)
    carbon, load = [], []
    for _ in range(days + 1):
        dip = shape.dip * rng.uniform(0.45, 1.15)
        dip_hour = shape.dip_hour + rng.normal(0, 1.2)
        peak = shape.peak * rng.uniform(0.6, 1.3)
        day = shape.night + 0.03 * rng.normal()
        day = day - dip * np.exp(-(((hours - dip_hour) / shape.dip_width) ** 2))
        day = day + peak * np.exp(-(((hours - shape.peak_hour) / shape.peak_width) ** 2))
        carbon.append(np.clip(day + _drift(rng, 24, 0.012), 0.03, None))
        mean = rng.uniform(18, 46)
        afternoon = 1 + 0.15 * np.sin(2 * np.pi * (hours - 9) / 24)
        day = mean * afternoon * (1 + 0.08 * rng.normal(size=24))
        load.append(np.where(np.isin(hours, hours_allowed), day, 0.0))
    first = datetime.fromisoformat(start)
    time = tuple(first + timedelta(hours=i) for i in range(24 * (days + 1)))
    return Series(
        time,
        np.array(np.concatenate(load), dtype=np.float64).round(1),
        np.array(np.concatenate(carbon), dtype=np.float64).round(3),
        name=f"{profile}-{seed}",
    )


def write_series(series: Series, path: str | Path) -> None:
    """Write a CSV that `read_series` reads back as the same series; whole or not at all."""
    lines = ["datetime,load_kw,carbon_kg_per_kwh"]
    for time, load, carbon in zip(series.time, series.load_kw, series.carbon, strict=True):
        lines.append(f"{time.isoformat(' ')},{float(load)!r},{float(carbon)!r}")
    write_text(Path(path), "\n".join(lines) + "\n")


def read_all(
    paths: Sequence[str | Path],
    time_column: str | None = None,
    load_column: str | None = None,
    carbon_column: str | None = None,
    encoding: str = "utf-8-sig",
) -> list[Series]:
    """Read the CSV files under files, folders (searched recursively) and globs by `read_series`.

    Sorted within each path; a file reached twice comes once. Raises DataError where a path leads to
    no file, and for two files of one name, because a series is known by its name.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        for file in _csv_files(path):
            files.setdefault(file.resolve(), file)
    named: dict[str, Path] = {}
    for file in files.values():
        other = named.setdefault(file.stem, file)
        if other is not file:
            raise DataError(
                f"{other} and {file}: two series are named {file.stem!r}",
                hint="a series has the name of its file: rename one, or give one",
            )
    columns = (time_column, load_column, carbon_column)
    return [read_series(file, *columns, encoding) for file in files.values()]


def _csv_files(path: Path) -> list[Path]:
    if path.is_dir():
        below = ((p, p.relative_to(path).parts) for p in path.rglob("*"))
        found = [p for p, parts in below if not any(part.startswith(".") for part in parts)]
    elif path.exists() or not glob.has_magic(str(path)):
        return [path]  # a name that leads nowhere is said by read_series
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    if found := sorted(p for p in found if p.suffix.lower() == ".csv" and p.is_file()):
        return found
    raise DataError(
        f"{path}: no CSV file with hourly series",
        hint="gptoss make-dataset --write-series FOLDER writes some",
    )


def read_series(
    path: str | Path,
    time_column: str | None = None,
    load_column: str | None = None,
    carbon_column: str | None = None,
    encoding: str = "utf-8-sig",
) -> Series:
    """Read an hourly CSV of one's own; a column that is not named is guessed if only one fits.

    Raises DataError for a missing or ambiguous column, an unreadable value, a gap or a repeated
    hour, naming the file, the column and the row (1-based, the header not counted).
    """
    path = Path(path)
    try:
        frame = pd.read_csv(path, dtype=str, encoding=encoding, keep_default_na=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except LookupError as error:
        raise ConfigError(f"{encoding!r} is not an encoding Python knows") from error
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(
            f"{path}: not a CSV in {encoding} ({error})",
            hint="try --series-encoding cp932 or latin-1",
        ) from error
    named = {"time": time_column, "load": load_column, "carbon": carbon_column}
    columns = _find_columns(path, [str(c) for c in frame.columns], named)
    time = _times(path, columns["time"], frame[columns["time"]].tolist())
    numbers = {
        k: _numbers(path, columns[k], frame[columns[k]].tolist()) for k in ("load", "carbon")
    }
    if (negative := numbers["load"] < 0).any():
        row = int(np.argmax(negative)) + 1
        raise DataError(f"{path}: row {row}, column {columns['load']!r}: a load below 0")
    return Series(time, numbers["load"], numbers["carbon"], name=path.stem)


_WORDS = {
    "time": ("datetime", "timestamp", "date", "time", "日時", "時刻"),
    "load": ("load", "demand", "cooling", "需要", "負荷", "冷房"),
    "carbon": ("carbon", "co2", "emission", "intensity", "排出", "炭素"),
}


def _find_columns(path: Path, available: list[str], named: dict[str, str | None]) -> dict[str, str]:
    """Take the named columns, guess the others by their words; DataError unless one fits."""
    listing = ", ".join(available)
    found: dict[str, str] = {}
    for role, name in named.items():
        if name is not None and name not in available:
            raise DataError(f"{path}: no column {name!r} for {role}", hint=f"columns: {listing}")
        if name is not None:
            found[role] = name
    for role in (r for r in named if r not in found):
        free = [c for c in available if c not in found.values()]
        matches = [c for c in free if any(word in c.lower() for word in _WORDS[role])]
        if len(matches) != 1:
            what = f"{len(matches)} columns could be" if matches else "no column looks like"
            raise DataError(
                f"{path}: {what} the {role}; name it",
                hint=f"--{role}-column with one of: {listing}",
            )
        found[role] = matches[0]
    if len(set(found.values())) < len(found):
        raise DataError(f"{path}: one column is named for two roles ({found})")
    return found


def _times(path: Path, column: str, texts: Sequence[str]) -> tuple[datetime, ...]:
    """Parse timestamps and check that each is one hour after the one before."""
    time: list[datetime] = []
    for row, text in enumerate(texts, 1):
        parsed = pd.to_datetime(text, errors="coerce")
        if pd.isna(parsed):
            raise DataError(f"{path}: row {row}, column {column!r}: no time in {text!r}")
        time.append(parsed.to_pydatetime().replace(tzinfo=None))
        if row > 1 and time[-1] - time[-2] != timedelta(hours=1):
            fault = "repeats" if time[-1] == time[-2] else "is not one hour after"
            raise DataError(f"{path}: row {row}, column {column!r}: {text!r} {fault} row {row - 1}")
    if not time:
        raise DataError(f"{path}: no rows")
    return tuple(time)


def _numbers(path: Path, column: str, texts: Sequence[str]) -> Floats:
    """Parse numbers; anything that is not finite is an error."""
    values = np.array(pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce"), np.float64)
    if (bad := ~np.isfinite(values)).any():
        row = int(np.argmax(bad))
        raise DataError(f"{path}: row {row + 1}, column {column!r}: {texts[row]!r} is not a number")
    return values


def _drift(rng: np.random.Generator, n: int, size: float) -> Floats:
    """Return AR(1) noise of standard deviation about `size`, 0.8 carried over per hour."""
    out = np.zeros(n)
    for i, shock in enumerate(rng.normal(0, size * 0.6, n)):
        out[i] = (0.8 * out[i - 1] if i else 0.0) + shock
    return out
